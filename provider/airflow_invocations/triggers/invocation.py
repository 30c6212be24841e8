"""Wait in the triggerer for one invocation of a deferred task, and end the task there if it asks for that."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

from airflow.triggers.base import TriggerEvent

from ..action_log import LiveLog
from ..exceptions import InvocationError
from ..hooks import InvocationHook
from ..models import DagRunProvenance
from ..platforms.retry import OUTAGE_LIMIT
from ..tasks.lifecycle import InvocationLifecycle
from ..tasks.xcom import storable_detail, trigger_event
from ..waiters import WaitAbandoned, WaitOptions
from ._base import EndingTrigger

#: A trigger that starts more than this many seconds after the deferral may have run in another triggerer.
_LATE_START = 8.0


@dataclass(kw_only=True, eq=False, repr=False)
class InvocationTrigger(EndingTrigger):
    """Wait until an invocation has ended; all triggers of a connection share one watcher.

    Its event has these fields:

    - `invocation_id`;
    - `cursor`, `lines_beyond`, `long_line`, `shown_until`, `log_tail`: how much of the action's log has left
      the triggerer (a cursor, lines after it, the long line that it ends in, the time of the last line), and
      the last of these lines. The worker shows the rest;
    - `given_up`, `detail`, `cancelled`: why the wait ended before the invocation did, and whether the
      platform confirmed that the invocation is cancelled.

    The worker reads the status from the platform.

    With `provenance`, the trigger ends the task itself (`end_from_trigger`). If a worker has to raise an
    error, the event has the fields `invocation_id` and `error`.

    :param conn_id: the Airflow connection.
    :param invocation_id: the invocation to wait for.
    :param poll_interval: seconds between two status queries, where the platform doesn't push.
    :param stream_logs: write the action's log lines to the task's log.
    :param not_before: an event that resumes a worker isn't fired before this time (seconds since 1970), so
        that Airflow has finished with the deferral (see `version_compat.SHORTEST_DEFERRAL`).
    :param deferred_at: when the task was deferred (seconds since 1970); 0: not known.
    :param cancel_on_kill: cancel the invocation when the task is killed or times out.
    :param outage_limit: seconds for which the platform may be unavailable.
    :param deadline: when the task times out (seconds since 1970); None: never.
    :param queue_deadline: until when the invocation may be Queued (seconds since 1970); None: without limit.
    :param execution_timeout: the task's timeout in seconds, for messages; None: not known.
    :param queue_timeout: the timeout in the queue in seconds, for messages; None: not known.
    :param url: the URL of the invocation's page; empty: there is none.
    :param logs_url: the URL of the whole log; empty: there is none.
    :param in_loop: the task is in a task loop of Airflow 3.4.
    :param provenance: the provenance of the invocation, to end the task here; None: a worker ends it.
    :param action: the action's name, for messages; None: not known.
    :param fail_in_worker: have a worker raise errors, for tasks with retries or failure callbacks.
    :param push_result: store the result as an XCom.
    :param multiple_outputs: store each entry of the result as an XCom of its own, too.
    """

    conn_id: str
    invocation_id: str
    poll_interval: float
    stream_logs: bool
    not_before: float = 0.0
    deferred_at: float = 0.0
    cancel_on_kill: bool = True
    outage_limit: float = OUTAGE_LIMIT
    deadline: float | None = None
    queue_deadline: float | None = None
    execution_timeout: float | None = None
    queue_timeout: float | None = None
    url: str = ""
    logs_url: str = ""
    in_loop: bool = False
    provenance: Mapping[str, Any] | None = None
    action: str | None = None
    fail_in_worker: bool = True
    push_result: bool = True
    multiple_outputs: bool = False

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait, show the log, fire once."""
        log = LiveLog(self.logs_url, self._warn)
        lifecycle = self._lifecycle()
        late = time.time() - self.deferred_at
        if self.stream_logs and self.deferred_at and late > _LATE_START:
            self.log.info(
                "The task was deferred %.0f s ago; another triggerer may have waited since. "
                "The action's log is shown from its beginning.",
                late,
            )
        # `dag.test()` runs triggers without a task instance, and ignores end events.
        if self.provenance is None or self.task_instance is None:
            event = await self._leave_to_worker(lifecycle, log)
        else:
            provenance = DagRunProvenance.model_validate(self.provenance)
            event = await self._end_task(lifecycle.finish(log, provenance))
        if type(event) is TriggerEvent:
            await asyncio.sleep(self.not_before - time.time())
        self._has_fired = True
        yield event

    def _lifecycle(self) -> InvocationLifecycle:
        waiting = WaitOptions(
            self.invocation_id,
            poll_interval=self.poll_interval,
            outage_limit=self.outage_limit,
            deadline=self.deadline,
            queue_deadline=self.queue_deadline,
            execution_timeout=self.execution_timeout,
            queue_timeout=self.queue_timeout,
            cancels=self.cancel_on_kill,
            accepted=True,
        )
        connect = InvocationHook(self.conn_id).connect
        lifecycle = InvocationLifecycle(
            self.conn_id, connect, waiting, self.log, action=self.action, stream_logs=self.stream_logs
        )
        lifecycle.url, lifecycle.logs_url = self.url, self.logs_url
        return lifecycle

    async def _leave_to_worker(self, lifecycle: InvocationLifecycle, log: LiveLog) -> TriggerEvent:
        """Follow the invocation to its end; return the event with which a worker concludes."""
        reason: str | None = None
        detail: str | None = None
        is_cancelled = False
        try:
            await lifecycle.follow(log)
        except WaitAbandoned as abandoned:
            reason, detail, is_cancelled = abandoned.reason.value, abandoned.detail, abandoned.is_cancelled
            self.log.error("Invocation %s: %s", self.invocation_id, detail)
        shown = await log.leave()
        return trigger_event(
            {
                "invocation_id": self.invocation_id,
                **shown.as_event(),
                "given_up": reason,
                "detail": storable_detail(detail),
                "cancelled": is_cancelled,
            }
        )

    def _needs_worker(self, error: InvocationError) -> bool:
        return self.fail_in_worker

    def _warn(self, text: str) -> None:
        self.log.warning("Invocation %s: %s", self.invocation_id, text)

    async def _own_ids(self) -> list[str]:
        return [self.invocation_id]

    @property
    def _invocation_id(self) -> str:
        return self.invocation_id

    @property
    def _named(self) -> str:
        return self.invocation_id
