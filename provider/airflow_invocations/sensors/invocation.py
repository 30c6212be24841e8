"""The sensor that waits for an invocation it didn't start."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseSensorOperator
from airflow.sdk.configuration import conf

from ..exceptions import error_of, raise_unless_completed
from ..links import InvocationLink
from ..links.invocation import URL_KEY
from ..operators.action import SHORTEST_DEFERRAL
from ..operators.arguments import check_arguments
from ..platform.roboto import invocation_url
from ..waiting import GivenUp, Reason, Waiting, record_of

if TYPE_CHECKING:
    from airflow.sdk import Context

    from ..hooks import RobotoHook
    from ..model import InvocationRecord


class InvocationSensor(BaseSensorOperator):
    """Wait until an invocation has ended; succeed if, and only if, it is Completed.

    Killing the sensor doesn't cancel the invocation: it belongs to whoever started it.

    :param invocation_id: what to wait for. (templated)
    :param conn_id: the Airflow connection. (templated)
    :param deferrable: wait in the triggerer. Default: `[operators] default_deferrable`.
    :param poke_interval: seconds between two looks, as every sensor has it.
    :raises InvocationError: one of the tree in `airflow_invocations.exceptions`, by what has happened.
    """

    template_fields: Sequence[str] = ("invocation_id", "conn_id")
    operator_extra_links = (InvocationLink(),)
    ui_color = "#e3f1ee"

    def __init__(
        self,
        *,
        invocation_id: str,
        conn_id: str = "roboto_default",
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        poke_interval: timedelta | float = 5.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(poke_interval=poke_interval, **kwargs)
        self.invocation_id = invocation_id
        self.conn_id = conn_id
        self.deferrable = deferrable
        self.invocation_url: str | None = None
        check_arguments(self.task_id, {"invocation_id": invocation_id, "conn_id": conn_id})

    def execute(self, context: Context) -> Any:
        """Look once; then wait here, or have the triggerer wait."""
        self.invocation_url = invocation_url(self._hook().settings, self.invocation_id)
        context["ti"].xcom_push(key=URL_KEY, value=self.invocation_url)
        if not self.deferrable:
            return super().execute(context)
        if not self.poke(context):
            from ..triggers import InvocationTrigger

            self.defer(
                trigger=InvocationTrigger(
                    conn_id=self.conn_id,
                    invocation_id=self.invocation_id,
                    poll_interval=self.poke_interval,
                    stream_logs=False,
                    not_before=time.time() + SHORTEST_DEFERRAL,
                    cancel_on_kill=False,
                ),
                method_name="execute_complete",
                timeout=timedelta(seconds=self.timeout),
            )
        return None

    def execute_complete(self, context: Context, event: dict[str, Any]) -> None:
        """Take the verdict from the platform itself, whatever the event says of the end."""
        self.invocation_url = url = invocation_url(self._hook().settings, event["invocation_id"])
        if event["given_up"] is not None:
            given_up = GivenUp(Reason(event["given_up"]), event["detail"])
            raise error_of(given_up, None, event["invocation_id"], url)
        super().execute(context)

    def poke(self, context: Context) -> bool:
        """Whether it is Completed; False while it hasn't ended, or while the platform is out of reach."""
        hook = self._hook()
        record = self._look(hook)
        if record is None or not record.current.status.is_terminal:
            return False
        raise_unless_completed(record, invocation_url(hook.settings, record.invocation_id), [])
        self.log.info("Invocation %s: %s", record.invocation_id, record.current.status)
        return True

    def _look(self, hook: RobotoHook) -> InvocationRecord | None:
        once = Waiting(self.invocation_id, poll_interval=self.poke_interval, outage_limit=0.0)
        try:
            return hook.run(lambda: record_of(hook.connect, once))
        except GivenUp as given_up:
            if given_up.reason is Reason.Unreachable:
                self.log.warning("%s is not given up: %s", self.invocation_id, given_up)
                return None
            url = invocation_url(hook.settings, self.invocation_id)
            raise error_of(given_up, None, self.invocation_id, url) from given_up

    def _hook(self) -> RobotoHook:
        from ..hooks import RobotoHook

        return RobotoHook(self.conn_id)
