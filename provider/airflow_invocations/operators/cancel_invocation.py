"""The operator that cancels invocations and waits until the platform confirms."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, cast

from airflow.sdk import BaseOperator

from ..exceptions import InvocationError, platform_task_error, unconfirmed_cancel_error
from ..platforms import Platform, PlatformError
from ..platforms.registry import DEFAULT_CONN_ID
from ..tasks.validation import DAY, Check, seconds
from ..tasks.xcom import storable
from ..waiters import cancel_and_confirm
from ._base import BaseInvocationOperator

if TYPE_CHECKING:
    from airflow.sdk import Context

    from ..models import InvocationRecord

#: The largest number of concurrent cancels.
_CONCURRENCY = 8


class CancelInvocationOperator(BaseInvocationOperator, BaseOperator):
    """Cancel invocations and wait until the platform confirms that they have ended.

    Invocations that have ended are left unchanged, and invocations that the platform doesn't know count as
    ended. If nothing was invoked (None, an empty list), nothing is cancelled. The operator can therefore be
    used as a teardown task. Its result (XCom) is a dict from ids to status names (None for unknown ids).

    :param invocation_ids: the invocations to cancel: an id, an operator's result, or a list of either, such
        as a mapped task's XComs. (templated)
    :param conn_id: the Airflow connection. (templated)
    :param timeout: seconds to wait for the confirmation of each cancel; the task fails after that.
    :raises ValueError: when the DAG is parsed, for invalid arguments; the message names the task.
    :raises PlatformUnavailableError: the platform is unavailable, or didn't confirm within `timeout`.
    :raises RequestRejectedError: the platform can't stop an invocation (`CannotStopError` in the message).
    """

    template_fields: Sequence[str] = ("invocation_ids", "conn_id")
    ui_color = "#e3f1ee"

    _checked = ("invocation_ids", "conn_id", "timeout")
    _checks: ClassVar[Mapping[str, Check]] = {"timeout": seconds(1, DAY)}

    def __init__(
        self,
        *,
        invocation_ids: Any,
        conn_id: str = DEFAULT_CONN_ID,
        timeout: float = 60.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.invocation_ids = invocation_ids
        self.conn_id = conn_id
        self.timeout = timeout
        self._check()

    def execute(self, context: Context) -> dict[str, str | None]:
        """Cancel all of them; an error with one doesn't keep the others from being cancelled."""
        ids: list[str] = self._read()["invocation_ids"]
        if not ids:
            self.log.info("No invocations to cancel")
            return {}
        hook = self._hook()
        outcomes = hook.ask(partial(cancel_all, ids=ids, limit=self.timeout))
        statuses: dict[str, str | None] = {}
        for invocation_id, outcome in outcomes.items():
            if isinstance(outcome, Exception):
                self.log.error("Invocation %s: %s", invocation_id, outcome or "the cancel was not confirmed")
                continue
            statuses[invocation_id] = None if outcome is None else outcome.current.status.name
            self.log.info("Invocation %s: %s", invocation_id, statuses[invocation_id] or "unknown")
        for invocation_id, outcome in outcomes.items():
            if isinstance(outcome, Exception):
                raise self._error(outcome, invocation_id, hook.url(invocation_id)) from outcome
        return cast("dict[str, str | None]", storable(statuses))

    def _error(self, cause: Exception, invocation_id: str, url: str) -> InvocationError:
        if isinstance(cause, PlatformError):
            what = f"invocation {invocation_id} could not be cancelled"
            return platform_task_error(cause, what, invocation_id=invocation_id, url=url)
        return unconfirmed_cancel_error(invocation_id, self.timeout, url)


async def cancel_all(
    platform: Platform, ids: Sequence[str], limit: float
) -> dict[str, InvocationRecord | Exception | None]:
    """Cancel several invocations; return for each its last record, None if it is unknown, or the error.

    :param limit: seconds to wait for the confirmation of each cancel.
    """
    outcomes: dict[str, InvocationRecord | Exception | None] = dict.fromkeys(ids)
    remaining = iter(ids)

    async def cancel() -> None:
        for invocation_id in remaining:
            try:
                outcomes[invocation_id] = await cancel_and_confirm(platform, invocation_id, limit)
            except (PlatformError, TimeoutError) as error:
                outcomes[invocation_id] = error

    await asyncio.gather(*(cancel() for _ in range(min(_CONCURRENCY, len(ids)))))
    return outcomes
