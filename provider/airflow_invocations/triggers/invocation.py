"""Waits in the triggerer for one invocation, and cancels it when its task is killed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

from airflow.sdk import BaseHook
from airflow.triggers.base import BaseTrigger, TriggerEvent

from ..hooks.roboto import settings_of
from ..platform.roboto import RobotoPlatform, RobotoSettings
from ..task_log import write_lines
from ..waiting import End, cancel_and_confirm, follow

#: Cancels under way. Airflow gives on_kill about one second and then cancels it (facts/airflow.md, section
#: 4); what is kept here goes on to its end.
_cancelling: set[asyncio.Task[None]] = set()


class InvocationTrigger(BaseTrigger):
    """Waits until an invocation has ended; its event is {"invocation_id", "cursor"}.

    The verdict isn't in the event: whoever resumes reads it from the platform, and the log on from the
    cursor. The arguments are stored in Airflow's database as plain text, so none of them is a secret.

    :param conn_id: the Airflow connection.
    :param invocation_id: what to wait for.
    :param poll_interval: seconds between two looks.
    :param stream_logs: write the action's log lines to the task's log.
    :param not_before: the event isn't fired before this time (seconds since 1970), so that Airflow has
        digested the deferral (see `SHORTEST_DEFERRAL` in operators/action.py).
    :param cancel_on_kill: cancel the invocation when the task is killed, False for those that only watch.
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
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.conn_id = conn_id
        self.invocation_id = invocation_id
        self.poll_interval = poll_interval
        self.stream_logs = stream_logs
        self.not_before = not_before
        self.cancel_on_kill = cancel_on_kill
        self._settings: RobotoSettings | None = None

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
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait, show the log, fire once."""
        cursor: str | None = None
        async with RobotoPlatform(await self._read_connection()) as platform:
            steps = follow(
                platform, self.invocation_id, poll_interval=self.poll_interval, stream_logs=self.stream_logs
            )
            async for step in steps:
                if isinstance(step, End):
                    break
                await write_lines(step.records)
                cursor = step.cursor
        await asyncio.sleep(self.not_before - time.time())
        yield TriggerEvent({"invocation_id": self.invocation_id, "cursor": cursor})  # type: ignore[no-untyped-call]

    async def on_kill(self) -> None:
        """Cancel the invocation, unless the task is still waiting for it (Airflow calls this too then)."""
        if not self.cancel_on_kill:
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
        try:
            async with RobotoPlatform(await self._read_connection()) as platform:
                record = await cancel_and_confirm(platform, self.invocation_id)
        except Exception as error:
            self.log.error("invocation %s could not be cancelled: %s", self.invocation_id, error)
            return
        status = record.current.status if record else "not known (any more)"
        self.log.info("invocation %s: %s", self.invocation_id, status)

    async def _is_still_wanted(self) -> bool:
        """Whether the task is deferred on this very invocation: then another triggerer has taken over.

        A trigger that was merely handed to another triggerer is told to die as a killed one is
        (facts/airflow.md, trap T3), so the task instance is asked. After a clear it may be deferred
        again already, but then for another invocation, which its XCom names.
        """
        from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance
        from airflow.sdk.execution_time.xcom import XCom

        from ..operators.action import INVOCATION_ID_KEY

        instance = self.task_instance
        if instance is None:
            return False
        try:
            states = await asyncio.to_thread(
                RuntimeTaskInstance.get_task_states,
                dag_id=instance.dag_id,
                task_ids=[instance.task_id],
                run_ids=[instance.run_id],
                map_index=instance.map_index,
            )
            if "deferred" not in {str(state) for run in states.values() for state in run.values()}:
                return False
            current = await asyncio.to_thread(
                XCom.get_one,
                key=INVOCATION_ID_KEY,
                dag_id=instance.dag_id,
                task_id=instance.task_id,
                run_id=instance.run_id,
                map_index=instance.map_index,
            )
        except Exception as error:
            self.log.warning("the task's state can't be read, so it counts as killed: %s", error)
            return False
        return bool(current == self.invocation_id)

    async def _read_connection(self) -> RobotoSettings:
        if self._settings is None:
            connection = await BaseHook.aget_connection(self.conn_id)
            self._settings = settings_of(connection, await connection.aextra_dejson())
        return self._settings
