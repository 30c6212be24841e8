"""Waits in the triggerer for one invocation, and cancels it when its task is killed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

from airflow.triggers.base import TriggerEvent

from ..action_log import LiveLog
from ..hooks import InvocationHook
from ..platforms.retry import OUTAGE_LIMIT
from ..tasks.xcom import storable_detail, trigger_event
from ..waiters import WaitAbandoned, WaitOptions
from ._base import BaseInvocationTrigger

#: A trigger that starts more than this many seconds after the deferral may have run in another triggerer.
_LATE_START = 8.0


class InvocationTrigger(BaseInvocationTrigger):
    """Waits until an invocation has ended; all triggers of a connection share one watcher.

    Its event is {"invocation_id", "cursor", "lines_beyond", "shown_until", "log_tail", "given_up", "detail",
    "cancelled"}:
    how far its log is known to have left the triggerer (a cursor, lines beyond it, the time of the last
    line), the last lines of that, and, if the wait ended before the invocation did, the reason and its
    words. The worker shows the rest of the log. The status isn't in the event: the worker reads it from the
    platform. The arguments are stored in Airflow's database as plain text, so none of them is a secret.

    :param conn_id: the Airflow connection.
    :param invocation_id: what to wait for.
    :param poll_interval: seconds between two looks, where the platform doesn't push.
    :param stream_logs: write the action's log lines to the task's log.
    :param not_before: the event isn't fired before this time (seconds since 1970), so that Airflow has
        finished with the deferral (see `compat.SHORTEST_DEFERRAL`).
    :param deferred_at: when the task was deferred (seconds since 1970); 0: not known.
    :param cancel_on_kill: cancel the invocation when the task is killed or its time is over; False for
        those that only watch.
    :param outage_limit: seconds for which the platform may be out of reach.
    :param deadline: when the task's time is over (seconds since 1970); None: never.
    :param queue_deadline: when the invocation must not be Queued any more; None: it may be for ever.
    :param execution_timeout: the task's timeout in seconds, for messages; None: not known.
    :param queue_timeout: the same of the time in the queue.
    :param logs_url: where a person can read the whole log; empty: nowhere.
    :param in_loop: the task is in a task loop of Airflow 3.4.
    """

    def __init__(
        self,
        *,
        conn_id: str,
        invocation_id: str,
        poll_interval: float,
        stream_logs: bool,
        not_before: float = 0.0,
        deferred_at: float = 0.0,
        cancel_on_kill: bool = True,
        outage_limit: float = OUTAGE_LIMIT,
        deadline: float | None = None,
        queue_deadline: float | None = None,
        execution_timeout: float | None = None,
        queue_timeout: float | None = None,
        logs_url: str = "",
        in_loop: bool = False,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.conn_id = conn_id
        self.invocation_id = invocation_id
        self.poll_interval = poll_interval
        self.stream_logs = stream_logs
        self.not_before = not_before
        self.deferred_at = deferred_at
        self.cancel_on_kill = cancel_on_kill
        self.outage_limit = outage_limit
        self.deadline = deadline
        self.queue_deadline = queue_deadline
        self.execution_timeout = execution_timeout
        self.queue_timeout = queue_timeout
        self.logs_url = logs_url
        self.in_loop = in_loop

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """The class and the arguments that make this trigger anew."""
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {
                "conn_id": self.conn_id,
                "invocation_id": self.invocation_id,
                "poll_interval": self.poll_interval,
                "stream_logs": self.stream_logs,
                "not_before": self.not_before,
                "deferred_at": self.deferred_at,
                "cancel_on_kill": self.cancel_on_kill,
                "outage_limit": self.outage_limit,
                "deadline": self.deadline,
                "queue_deadline": self.queue_deadline,
                "execution_timeout": self.execution_timeout,
                "queue_timeout": self.queue_timeout,
                "logs_url": self.logs_url,
                "in_loop": self.in_loop,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait, show the log, fire once."""
        log = LiveLog(self.logs_url, self._warn)
        reason: str | None = None
        detail: str | None = None
        is_cancelled = False
        waiting = WaitOptions(
            self.invocation_id,
            poll_interval=self.poll_interval,
            outage_limit=self.outage_limit,
            lines=log.queue if self.stream_logs else None,
            deadline=self.deadline,
            queue_deadline=self.queue_deadline,
            execution_timeout=self.execution_timeout,
            queue_timeout=self.queue_timeout,
            cancels=self.cancel_on_kill,
            accepted=True,
        )
        late = time.time() - self.deferred_at
        if self.stream_logs and self.deferred_at and late > _LATE_START:
            self.log.info(
                "The task was deferred %.0f s ago; another triggerer may have waited since. "
                "The action's log is shown from its beginning.",
                late,
            )
        try:
            await log.follow(self.conn_id, InvocationHook(self.conn_id).connect, waiting)
        except WaitAbandoned as given_up:
            reason, detail, is_cancelled = given_up.reason.value, given_up.detail, given_up.is_cancelled
            self.log.error("invocation %s: %s", self.invocation_id, detail)
        shown = await log.leave()
        await asyncio.sleep(self.not_before - time.time())
        event = {
            "invocation_id": self.invocation_id,
            **shown.as_event(),
            "given_up": reason,
            "detail": storable_detail(detail),
            "cancelled": is_cancelled,
        }
        self._has_fired = True
        yield trigger_event(event)

    def _warn(self, text: str) -> None:
        self.log.warning("invocation %s: %s", self.invocation_id, text)

    async def _own_ids(self) -> list[str]:
        return [self.invocation_id]

    @property
    def _named(self) -> str:
        return self.invocation_id
