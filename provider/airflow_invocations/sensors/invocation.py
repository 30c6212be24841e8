"""The sensor that waits for invocations that something else started."""

from __future__ import annotations

import datetime
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseSensorOperator
from airflow.sdk.bases.operator import TRIGGER_FAIL_REPR, TriggerFailureReason
from airflow.sdk.bases.sensor import PokeReturnValue

from ..exceptions import InvocationError, task_error
from ..links import InvocationLink, InvocationLogsLink
from ..links.invocation import links_of
from ..operators._base import BaseInvocationOperator
from ..operators._start_from_trigger import check_start_from_trigger, is_unmapped, start_arguments
from ..platforms.registry import DEFAULT_CONN_ID
from ..platforms.retry import OUTAGE_LIMIT
from ..tasks.completion import CompletionCriteria, check, criteria_of, format_ids
from ..tasks.validation import check_arguments, ids_of, is_templated, task_label
from ..tasks.xcom import push_xcom, storable
from ..version_compat import (
    SHORTEST_DEFERRAL,
    AirflowSkipException,
    conf,
    starts_tasks_in_triggerer,
)
from ..waiters import AbandonReason, WaitAbandoned, number_wanted

#: Seconds after which a poking sensor logs again what it waits for.
ANNOUNCEMENT_INTERVAL = 600.0

if TYPE_CHECKING:
    from airflow.sdk import Context, XComArg

    from ..hooks import InvocationHook


class InvocationSensor(BaseInvocationOperator, BaseSensorOperator):
    """Wait for invocations that something else started; succeed when enough of them have completed.

    Pass exactly one of: one invocation (`invocation_id`), several (`invocation_ids`, `wait_for`), or the
    newest of an action (`action`, `since`). The sensor fails as soon as it can't succeed any more; with
    `soft_fail` or `never_fail` it is skipped instead, in every mode. The result (XCom) is the list of the
    ids of completed invocations, or the id if it waits for one. Killing the sensor doesn't cancel any
    invocation.

    :param invocation_id: an id, or an operator's result. (templated)
    :param invocation_ids: several of them; a mapped task's results or XComs are accepted too. (templated)
    :param wait_for: how many of them must complete: "all", "any", or a number.
    :param action: wait for the newest invocation of this action; if there is none, wait for one. (templated)
    :param since: with `action`: ignore invocations created earlier. A time with its offset; None for the
        start of the data interval, or for the time when the run was due if it has no interval. (templated)
    :param conn_id: the Airflow connection. (templated)
    :param deferrable: wait in the triggerer. Default: `[operators] default_deferrable`.
    :param start_from_trigger: start, wait and end in the triggerer. A worker is used only for an error that
        must not be retried, if the task has retries. Not supported for mapped tasks and for tasks that need
        a worker; parsing the DAG then fails.
    :param poke_interval: seconds between two requests where the platform doesn't push.
    :param outage_limit: seconds for which the platform may be unavailable; a poking sensor is limited by
        `timeout` only.
    :raises ValueError: when the DAG is parsed, for invalid arguments; the message names the task.
    :raises InvocationError: the subclass says why it failed; see `airflow_invocations.exceptions`.
    """

    template_fields: Sequence[str] = ("invocation_id", "invocation_ids", "action", "since", "conn_id")
    operator_extra_links = (InvocationLink(), InvocationLogsLink())
    ui_color = "#e3f1ee"

    _checked = ("invocation_id", "invocation_ids", "action", "since", "conn_id", "wait_for", "outage_limit")
    _subjects = ("invocation_id", "invocation_ids", "action")

    def __init__(
        self,
        *,
        invocation_id: str | dict[str, Any] | XComArg | None = None,
        invocation_ids: Sequence[Any] | str | XComArg | None = None,
        wait_for: str | int = "all",
        action: str | None = None,
        since: str | datetime.datetime | None = None,
        conn_id: str = DEFAULT_CONN_ID,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        start_from_trigger: bool = False,
        poke_interval: datetime.timedelta | float = 5.0,
        outage_limit: float = OUTAGE_LIMIT,
        **kwargs: Any,
    ) -> None:
        super().__init__(poke_interval=poke_interval, **kwargs)
        self.invocation_id = invocation_id
        self.invocation_ids = invocation_ids
        self.wait_for = wait_for
        self.action = action
        self.since = since
        self.conn_id = conn_id
        self.deferrable = deferrable
        self.outage_limit = outage_limit
        self.invocation_url: str | None = None
        self.logs_url: str | None = None
        self._announced_at: float | None = None
        self._was_accepted = False
        self._check()
        if start_from_trigger and not is_unmapped(self):
            self._start_from_trigger()

    def execute(self, context: Context) -> Any:
        """Check once; then wait in the worker, or defer."""
        if not self.deferrable:
            return super().execute(context)
        done = self.poke(context)
        if isinstance(done, PokeReturnValue):
            return done.xcom_value
        return self._defer(context)

    def execute_complete(self, context: Context, event: dict[str, Any] | None = None) -> Any:
        """Check again, unless the event says that the wait was abandoned.

        Airflow resumes a task without an event if it was cleared while it was deferring.
        """
        if event is not None and event.get("reason") is not None:
            abandoned = WaitAbandoned(AbandonReason(event["reason"]), event["detail"])
            subject = str(self.invocation_id or self.action or self.invocation_ids)
            raise task_error(abandoned, None, subject, self._hook().url(subject))
        return self.execute(context)

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Resume, also after a trigger that timed out (the sensor times out) or failed (check again)."""
        has_failed = (next_kwargs or {}).get("error") == TriggerFailureReason.TRIGGER_FAILURE
        if next_method == TRIGGER_FAIL_REPR and has_failed:
            self.log.warning("Trigger failed; checking again in the worker")
            next_method, next_kwargs = "execute", None
        return super().resume_execution(next_method, next_kwargs, context)

    def poke(self, context: Context) -> PokeReturnValue | bool:
        """Return whether enough have completed; False while that may change."""
        try:
            completed = self._completed(context)
        except InvocationError as error:
            if self.soft_fail or self.never_fail:
                why = "soft_fail" if self.soft_fail else "never_fail"
                raise AirflowSkipException(f"skipped because {why} is set: {error}") from error
            raise
        if completed is None:
            self._announce(context)
            return False
        self.log.info("Completed: %s", format_ids(completed))
        result = completed if self.invocation_ids is not None else completed[0]
        return PokeReturnValue(True, storable(result))

    def _announce(self, context: Context) -> None:
        """Log what the sensor waits for, at the first poke and every `ANNOUNCEMENT_INTERVAL` seconds."""
        present = time.monotonic()
        if self._announced_at is None or present - self._announced_at >= ANNOUNCEMENT_INTERVAL:
            self._announced_at = present
            self.log.info("Waiting for %s", self._criteria(context))

    def _completed(self, context: Context) -> list[str] | None:
        """Return the ids of completed invocations if they are enough; None to keep waiting."""
        hook, criteria = self._hook(), replace(self._criteria(context), accepted=self._is_accepted(context))
        if len(criteria.ids) == 1:
            self._push_links(context, hook, criteria.ids[0])
        try:
            completed = hook.run(lambda: check(hook.connect, criteria))
            self._was_accepted = True
        except WaitAbandoned as abandoned:
            if abandoned.reason is AbandonReason.Unreachable:
                self.log.warning("Still waiting: %s", abandoned)
                return None
            subject = format_ids(criteria.ids) or f"of action {criteria.action}"
            raise task_error(abandoned, criteria.action, subject, hook.url(subject)) from abandoned
        if completed and criteria.action is not None:
            self._push_links(context, hook, completed[0])
        return completed

    def _is_accepted(self, context: Context) -> bool:
        """Return whether the platform has accepted the credentials before.

        A rescheduled sensor checks in a new process each time. If its first check had been rejected, the
        sensor would have failed, so a reschedule implies that the credentials were accepted.
        """
        if not self._was_accepted and self.reschedule:
            self._was_accepted = context["ti"].get_first_reschedule_date(context) is not None
        return self._was_accepted

    def _push_links(self, context: Context, hook: InvocationHook, invocation_id: str) -> None:
        url = hook.url(invocation_id)
        if url != self.invocation_url:
            self.invocation_url, self.logs_url = url, hook.logs_url(invocation_id)
            for key, link in links_of(self).items():
                push_xcom(context["ti"], key, link)

    def _criteria(self, context: Context) -> CompletionCriteria:
        """Return the criteria that the rendered arguments describe. Raises RequestRejectedError."""
        return criteria_of(task_label(self), self._given, self.poke_interval, context["dag_run"])

    def _check(self) -> None:
        label = task_label(self)
        given = self._given
        subjects = [name for name in self._subjects if given[name] is not None]
        check_arguments(
            label,
            {name: value for name, value in given.items() if name not in {*self._subjects} - {*subjects}},
        )
        if len(subjects) != 1:
            raise ValueError(
                f"{label}: argument {subjects[0] if subjects else self._subjects[0]!r}: given are "
                f"{', '.join(subjects) or 'none'}; allowed: exactly one of {', '.join(self._subjects)}"
            )
        for name, subject in (("wait_for", "invocation_ids"), ("since", "action")):
            if given[name] not in (None, "all", "any", 1) and subjects != [subject]:
                raise ValueError(
                    f"{label}: argument {name!r}: it can't be used with {subjects[0]!r}; "
                    f"allowed: with {subject!r}"
                )
        if self.invocation_ids is not None and not is_templated(self.invocation_ids):
            try:
                number_wanted(self.wait_for, len(ids_of(self.invocation_ids)))
            except ValueError as error:
                raise ValueError(f"{label}: argument 'wait_for': {error}") from None

    def _defer(self, context: Context) -> None:
        from ..triggers import InvocationsTrigger

        present = time.time()
        criteria = self._criteria(context)
        ends = context["ti"].start_date.timestamp() + self.timeout
        self.defer(
            trigger=InvocationsTrigger(
                conn_id=self.conn_id,
                invocation_ids=list(criteria.ids),
                required=criteria.required,
                action=criteria.action,
                since=criteria.since.isoformat(),
                poll_interval=self.poke_interval,
                outage_limit=self.outage_limit,
                accepted=self._was_accepted,
                not_before=present + SHORTEST_DEFERRAL,
            ),
            method_name="execute_complete",
            timeout=datetime.timedelta(seconds=max(1.0, ends - present)),
        )

    def _start_from_trigger(self) -> None:
        given = {name: getattr(self, name) for name in self.template_fields}
        check_start_from_trigger(self, given)
        if not starts_tasks_in_triggerer():
            self.deferrable = True
            return
        self.start_from_trigger = True
        self.start_trigger_args = start_arguments(
            "SensorTrigger",
            {
                **{
                    name: value.isoformat() if isinstance(value, datetime.datetime) else value
                    for name, value in given.items()
                },
                "wait_for": self.wait_for,
                "poll_interval": self.poke_interval,
                "outage_limit": self.outage_limit,
                "soft_fail": self.soft_fail or self.never_fail,
                "push_result": bool(self.do_xcom_push),
            },
            timeout=datetime.timedelta(seconds=self.timeout),
        )
