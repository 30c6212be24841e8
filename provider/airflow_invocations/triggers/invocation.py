"""Waits in the triggerer for one invocation, and cancels it when its task is killed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from ..hooks.roboto import RobotoHook
from ..task_log import ActionLog
from ..waiting import (
    OUTAGE_LIMIT,
    GivenUp,
    Lines,
    Rate,
    Waiting,
    cancel_and_confirm,
    follow,
)

if TYPE_CHECKING:
    from airflow.models.taskinstance import TaskInstance

#: Lines a second, and at once, that one invocation may write into its task's log while it is waited for;
#: what comes faster is shown by the worker when the wait is over.
LINES_PER_SECOND = 100.0
LINES_AT_ONCE = 500.0

#: The same for all triggers of the triggerer: a line costs its event loop about 0.4 ms, for which all others
#: wait (facts/airflow.md, section 9).
_all_lines = Rate(per_second=500.0, burst=1000.0)

#: States of a task that has come to its end: whoever gave it one of these means its invocation too.
_FINAL_STATES = frozenset({"success", "failed", "skipped", "upstream_failed", "removed"})

#: States of a task that sees to its invocation itself: it has resumed, or was cleared and begins anew, and
#: then it cancels what it had invoked before.
_SELF_RELIANT_STATES = frozenset({"running", "restarting", "up_for_retry"})

#: Seconds between two looks at a task that is on its way to a new state, and how often it is looked at.
_LOOK_PAUSE = 0.5
_LOOKS = 8

#: Cancels under way. Airflow gives on_kill about one second and then cancels it (facts/airflow.md, section
#: 4); what is kept here goes on to its end.
_cancelling: set[asyncio.Task[None]] = set()


class InvocationTrigger(BaseTrigger):
    """Waits until an invocation has ended; all triggers of a connection share one watcher.

    Its event is {"invocation_id", "cursor", "log_tail", "given_up", "detail"}: how far its log has been
    shown, the last lines of that, and, if the wait ended before the invocation did, the reason and its
    words. The verdict isn't in it: whoever resumes reads it from the platform. The arguments are stored in
    Airflow's database as plain text, so none of them is a secret.

    :param conn_id: the Airflow connection.
    :param invocation_id: what to wait for.
    :param poll_interval: seconds between two looks, where the platform doesn't push.
    :param stream_logs: write the action's log lines to the task's log.
    :param not_before: the event isn't fired before this time (seconds since 1970), so that Airflow has
        digested the deferral (see `SHORTEST_DEFERRAL` in operators/action.py).
    :param cancel_on_kill: cancel the invocation when the task is killed or its time is over; False for
        those that only watch.
    :param outage_limit: seconds for which the platform may be out of reach.
    :param deadline: when the task's time is over (seconds since 1970); None: never.
    :param queue_deadline: when the invocation must not be Queued any more; None: it may be for ever.
    """

    def __init__(
        self,
        *,
        conn_id: str,
        invocation_id: str,
        poll_interval: float,
        stream_logs: bool,
        not_before: float = 0.0,
        cancel_on_kill: bool = True,
        outage_limit: float = OUTAGE_LIMIT,
        deadline: float | None = None,
        queue_deadline: float | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.conn_id = conn_id
        self.invocation_id = invocation_id
        self.poll_interval = poll_interval
        self.stream_logs = stream_logs
        self.not_before = not_before
        self.cancel_on_kill = cancel_on_kill
        self.outage_limit = outage_limit
        self.deadline = deadline
        self.queue_deadline = queue_deadline
        self._has_fired = False

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
                "cancel_on_kill": self.cancel_on_kill,
                "outage_limit": self.outage_limit,
                "deadline": self.deadline,
                "queue_deadline": self.queue_deadline,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait, show the log, fire once."""
        log = ActionLog()
        cursor: str | None = None
        reason: str | None = None
        detail: str | None = None
        waiting = Waiting(
            self.invocation_id,
            poll_interval=self.poll_interval,
            outage_limit=self.outage_limit,
            lines=(Rate(LINES_PER_SECOND, LINES_AT_ONCE), _all_lines) if self.stream_logs else None,
            deadline=self.deadline,
            queue_deadline=self.queue_deadline,
            cancels=self.cancel_on_kill,
        )
        if self.stream_logs and 0 < self.not_before < time.time():
            self.log.info("another triggerer had begun this wait: the log is shown from its beginning again")
        try:
            async for step in follow(self.conn_id, RobotoHook(self.conn_id).connect, waiting):
                if isinstance(step, Lines):
                    await log.write(step.records)
                    cursor = step.cursor
                else:
                    self.log.warning("invocation %s: %s", self.invocation_id, step.text)
        except GivenUp as given_up:
            reason, detail = given_up.reason.value, given_up.detail
            self.log.error("invocation %s: %s", self.invocation_id, detail)
        await asyncio.sleep(self.not_before - time.time())
        event = {
            "invocation_id": self.invocation_id,
            "cursor": cursor,
            "log_tail": log.last,
            "given_up": reason,
            "detail": detail,
        }
        self._has_fired = True
        yield TriggerEvent(event)  # type: ignore[no-untyped-call]

    async def on_kill(self) -> None:
        """Cancel the invocation, unless the task still wants it (Airflow calls this then too)."""
        if not self.cancel_on_kill or self._has_fired:
            return
        task = asyncio.create_task(self._cancel_unless_wanted())
        _cancelling.add(task)
        task.add_done_callback(_cancelling.discard)
        await asyncio.shield(task)

    async def _cancel_unless_wanted(self) -> None:
        if await self._is_still_wanted():
            self.log.info("this trigger is being moved, invocation %s goes on", self.invocation_id)
            return
        self.log.warning("the task was killed, cancelling invocation %s", self.invocation_id)
        await self._cancel()

    async def _cancel(self) -> None:
        try:
            async with await RobotoHook(self.conn_id).connect() as platform:
                record = await cancel_and_confirm(platform, self.invocation_id)
        except Exception as error:
            self.log.error(
                "invocation %s could not be cancelled: %s", self.invocation_id, error or "no answer"
            )
            return
        status = record.current.status if record else "not known (any more)"
        self.log.info("invocation %s: %s", self.invocation_id, status)

    async def _is_still_wanted(self) -> bool:
        """Whether the task goes on with this invocation, or sees to its end itself.

        A trigger that was merely handed to another triggerer is told to die as a killed one is
        (facts/airflow.md, trap T3), so the task instance is asked. Deferred: its XCom names the invocation
        that it waits for now. On its way to a worker: it was cleared, or resumes; it is looked at again,
        but not for long, as a cleared one may have to wait for a slot.
        """
        if self.task_instance is None:
            return False
        try:
            for _ in range(_LOOKS):
                states = await self._task_states(self.task_instance)
                if states & _FINAL_STATES:
                    return False
                if states & _SELF_RELIANT_STATES:
                    return True
                if "deferred" in states:
                    return await self._is_named_by_xcom(self.task_instance)
                await asyncio.sleep(_LOOK_PAUSE)
        except Exception as error:
            self.log.warning("the task's state can't be read, so it counts as killed: %s", error)
        return False

    async def _task_states(self, instance: TaskInstance) -> set[str]:
        from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

        states = await asyncio.to_thread(
            RuntimeTaskInstance.get_task_states,
            dag_id=instance.dag_id,
            task_ids=[instance.task_id],
            run_ids=[instance.run_id],
            map_index=instance.map_index,
        )
        return {str(state) for run in states.values() for state in run.values()}

    async def _is_named_by_xcom(self, instance: TaskInstance) -> bool:
        from airflow.sdk.execution_time.xcom import XCom

        from ..operators.action import INVOCATION_ID_KEY

        named = await asyncio.to_thread(
            XCom.get_one,
            key=INVOCATION_ID_KEY,
            dag_id=instance.dag_id,
            task_id=instance.task_id,
            run_id=instance.run_id,
            map_index=instance.map_index,
        )
        return bool(named == self.invocation_id)
