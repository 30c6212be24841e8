"""The operator that cancels invocations, and doesn't leave it at the asking."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from airflow.sdk import BaseOperator

from ..exceptions import InvocationError, PlatformUnavailableError, at, platform_task_error
from ..platforms import InvocationPlatform, PlatformError
from ..tasks.xcom import storable
from ..waiters import cancel_and_confirm
from ._base import BaseInvocationOperator

if TYPE_CHECKING:
    from airflow.sdk import Context

    from ..hooks import InvocationHook
    from ..models import InvocationRecord

#: Cancels under way at a time.
_AT_ONCE = 8


#: Seconds to try to cancel the invocation of a task that fails right after invoking.
_FAILURE_PATIENCE = 30.0


class CancelInvocationOperator(BaseInvocationOperator, BaseOperator):
    """Cancel invocations and wait until the platform says that they have ended.

    One that has ended stays as it is; one that the platform doesn't know counts as ended; where nothing was
    invoked (None, an empty list), nothing is cancelled. So it does as a teardown, whatever has become of
    the task that invokes. The result (XCom) is a dict from the ids to the statuses' names (None: not known).

    :param invocation_ids: what to cancel: an id, an operator's result, or a list of either, as a mapped
        task's XComs are. (templated)
    :param conn_id: the Airflow connection. (templated)
    :param patience: seconds after which an invocation that hasn't ended fails the task.
    :raises ValueError: when the DAG is parsed, for arguments that can't be right; it names the task.
    :raises PlatformUnavailableError: the platform is out of reach, or hasn't confirmed in time.
    :raises RequestRefusedError: the platform can't stop it (`CannotStopError` says what it was asked).
    """

    template_fields: Sequence[str] = ("invocation_ids", "conn_id")
    ui_color = "#e3f1ee"

    _checked = ("invocation_ids", "conn_id", "patience")

    def __init__(
        self,
        *,
        invocation_ids: Any,
        conn_id: str = "roboto_default",
        patience: float = 60.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.invocation_ids = invocation_ids
        self.conn_id = conn_id
        self.patience = patience
        self._check()

    def execute(self, context: Context) -> dict[str, str | None]:
        """Cancel them all; whatever goes wrong with one, the others are cancelled."""
        values = self._read()
        ids: list[str] = values["invocation_ids"]
        if not ids:
            self.log.info("nothing was invoked, nothing is cancelled")
            return {}
        hook = self._hook()
        outcomes = hook.ask(partial(cancel_all, ids=ids, patience=self.patience))
        statuses: dict[str, str | None] = {}
        for invocation_id, outcome in outcomes.items():
            if isinstance(outcome, Exception):
                self.log.error("invocation %s: %s", invocation_id, outcome or "its cancel isn't confirmed")
                continue
            statuses[invocation_id] = None if outcome is None else outcome.current.status.name
            self.log.info("invocation %s: %s", invocation_id, statuses[invocation_id] or "not known")
        for invocation_id, outcome in outcomes.items():
            if isinstance(outcome, Exception):
                raise self._error(outcome, invocation_id, hook.url(invocation_id)) from outcome
        return cast("dict[str, str | None]", storable(statuses))

    def _error(self, cause: Exception, invocation_id: str, url: str) -> InvocationError:
        if isinstance(cause, PlatformError):
            return platform_task_error(
                cause, f"invocation {invocation_id} can't be cancelled", invocation_id, url
            )
        return PlatformUnavailableError(
            f"invocation {invocation_id}: its cancel isn't confirmed after {self.patience:g} s{at(url)}",
            invocation_id=invocation_id,
            url=url,
        )


@contextmanager
def cancelled_on_failure(
    operator: BaseOperator,
    context: Context,
    hook: InvocationHook,
    invocation_ids: Sequence[str],
    *,
    is_adopted: bool,
) -> Iterator[None]:
    """Cancel a task's invocations if the block fails, unless a retry will continue with them.

    :param is_adopted: whether a retry of the task continues with the invocations of the previous try.
    """
    try:
        yield
    except Exception:
        instance = context["ti"]
        named = ", ".join(invocation_ids)
        if is_adopted and instance.max_tries and instance.try_number <= instance.max_tries:
            operator.log.warning("The task failed after invoking; its retry continues with %s", named)
        elif getattr(operator, "cancel_on_kill", True):
            operator.log.warning("The task failed after invoking; cancelling %s", named)
            outcomes = hook.ask(partial(cancel_all, ids=invocation_ids, patience=_FAILURE_PATIENCE))
            for invocation_id, outcome in outcomes.items():
                if isinstance(outcome, Exception):
                    why = outcome or "no answer"
                    operator.log.error("Could not cancel invocation %s: %s", invocation_id, why)
        raise


async def cancel_all(
    platform: InvocationPlatform, ids: Sequence[str], patience: float
) -> dict[str, InvocationRecord | Exception | None]:
    """Cancel several invocations, and what came of each: its last record, None (not known), or the error."""
    outcomes: dict[str, InvocationRecord | Exception | None] = dict.fromkeys(ids)
    remaining = iter(ids)

    async def cancel() -> None:
        for invocation_id in remaining:
            try:
                outcomes[invocation_id] = await cancel_and_confirm(platform, invocation_id, patience)
            except (PlatformError, TimeoutError) as error:
                outcomes[invocation_id] = error

    await asyncio.gather(*(cancel() for _ in range(min(_AT_ONCE, len(ids)))))
    return outcomes
