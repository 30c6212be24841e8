"""Tells whether a trigger that is told to die belongs to a killed task, and cancels its invocations if so."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow.triggers.base import BaseTrigger
from asgiref.sync import sync_to_async

from ..hooks import InvocationHook
from ..tasks.result import INVOCATION_ID_KEY
from ..tasks.sdk_calls import complete
from ..version_compat import TELLS_OF_KILLS
from ..waiters import cancel_and_confirm

if TYPE_CHECKING:
    from airflow.models.taskinstance import TaskInstance

#: States of a task whose invocation is to be cancelled: the task has ended, or was cleared while a worker
#: ran it ("restarting"), for instance at the moment of its deferral.
_UNWANTING_STATES = frozenset({"success", "failed", "skipped", "upstream_failed", "removed", "restarting"})

#: States of a task that handles its invocation itself: it has resumed, or was cleared and starts again. It
#: then cancels its earlier invocation, or continues with it.
_SELF_RELIANT_STATES = frozenset({"running", "up_for_retry", "up_for_reschedule"})

#: Seconds between two looks at a task that is on its way to a new state, and how often it is looked at.
_LOOK_PAUSE = 0.5
_LOOKS = 8

#: Seconds to fetch the statuses of a killed task's invocations.
_LOOK_TIME = 5.0

#: Seconds in which a triggerer that stops is gone.
_STOP_TIME = 1.0

#: Cancels in progress. Before 3.4 Airflow cancels a trigger, and with it `on_kill`, every second until it has
#: ended; the cancels kept here run to completion.
_cancelling: set[asyncio.Task[None]] = set()


class BaseInvocationTrigger(BaseTrigger):
    """A trigger that waits for invocations of its task's own, and cancels them when the task is killed."""

    conn_id: str
    #: False for those that only watch.
    cancel_on_kill: bool
    #: Whether the task is in a task loop, where Airflow can't tell the state of one iteration.
    in_loop = False
    _has_fired = False

    async def on_kill(self) -> None:
        """Cancel the invocations, unless the task still wants them (Airflow calls this then too)."""
        if self._has_to_cancel:
            await asyncio.shield(self._start_to_cancel())

    async def cleanup(self) -> None:
        """See to the invocations where Airflow tells a trigger no more than that it ends.

        By a timer, which is forgotten without a word when the triggerer stops: that ends all of its triggers
        too, and then answers nothing any more.
        """
        if not TELLS_OF_KILLS and self._has_to_cancel:
            asyncio.get_running_loop().call_later(_STOP_TIME, self._start_to_cancel)

    @property
    def _has_to_cancel(self) -> bool:
        return self.cancel_on_kill and not self._has_fired

    def _start_to_cancel(self) -> asyncio.Task[None]:
        task = asyncio.create_task(self._cancel_unless_wanted())
        _cancelling.add(task)
        task.add_done_callback(_cancelling.discard)
        return task

    async def _own_ids(self) -> Sequence[str]:
        """What there is to cancel; it may have to wait for an answer that is on its way."""
        raise NotImplementedError

    @property
    def _named(self) -> Any:
        """What the task's XCom `invocation_id` holds while it waits for these."""
        raise NotImplementedError

    async def _cancel_unless_wanted(self) -> None:
        ids = await self._own_ids()
        if not ids:
            return
        if await self._is_still_wanted():
            self.log.info("this trigger is being moved, invocation %s goes on", ", ".join(ids))
            return
        active = await self._active(ids)
        if not active:
            self.log.info("Nothing to cancel: invocation %s has ended", ", ".join(ids))
            return
        self.log.warning("the task was killed, cancelling invocation %s", ", ".join(active))
        await self._cancel(active)

    async def _active(self, ids: Sequence[str]) -> Sequence[str]:
        """Return the ids of the active invocations, or all ids if the platform doesn't answer.

        A task that ended by itself, in another triggerer or a worker, has no active invocation.
        """
        try:
            async with asyncio.timeout(_LOOK_TIME), await InvocationHook(self.conn_id).connect() as platform:
                statuses = await platform.statuses(ids)
        except Exception:
            return ids
        ended = {one.invocation_id for one in statuses if one.status.is_terminal}
        return [one for one in ids if one not in ended]

    async def _cancel(self, ids: Sequence[str]) -> None:
        for invocation_id in ids:
            try:
                async with await InvocationHook(self.conn_id).connect() as platform:
                    record = await cancel_and_confirm(platform, invocation_id)
            except Exception as error:
                self.log.error(
                    "invocation %s could not be cancelled: %s", invocation_id, error or "no answer"
                )
            else:
                status = record.current.status if record else "not known (any more)"
                self.log.info("invocation %s: %s", invocation_id, status)

    async def _is_still_wanted(self) -> bool:
        """Whether the task still waits for its invocation, or handles its end itself.

        Before Airflow 3.4 a trigger that moves to another triggerer is stopped in the same way as a killed
        one. In every version a triggerer that was blocked stops its trigger after another triggerer has ended
        the wait. So the task instance's state decides. If it is deferred, its XCom names the invocation that
        it waits for now. If it is queued or scheduled, it was cleared or resumes; its state is read again,
        but not for long, because a cleared task may have to wait for a slot.
        """
        if self.task_instance is None:
            return False
        try:
            for _ in range(_LOOKS):
                states = await self._task_states(self.task_instance)
                if states & _UNWANTING_STATES:
                    return False
                if states & _SELF_RELIANT_STATES:
                    # It may be an earlier iteration that runs, where a clear has replaced this one.
                    may_be_another = self.in_loop and "running" in states
                    return not (may_be_another and await self._was_replaced(self.task_instance))
                if "deferred" in states:
                    return await self._is_named_by_xcom(self.task_instance)
                await asyncio.sleep(_LOOK_PAUSE)
        except Exception as error:
            # Who isn't told of kills may just as well end with the triggerer, and that cancels nothing.
            counts_as = "killed" if TELLS_OF_KILLS else "alive"
            self.log.warning("the task's state can't be read, so it counts as %s: %s", counts_as, error)
            return not TELLS_OF_KILLS
        return False

    async def _was_replaced(self, instance: TaskInstance) -> bool:
        """Return whether a clear has replaced this task instance of a loop by another.

        Airflow returns only the state of a loop's latest iteration, which may be an earlier one that is being
        repeated. A trigger can read XComs only as long as its own task instance is current.
        """
        try:
            await self._is_named_by_xcom(instance)
        except Exception:
            return True
        return False

    async def _task_states(self, instance: TaskInstance) -> set[str]:
        from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

        states = await complete(
            lambda: sync_to_async(RuntimeTaskInstance.get_task_states)(
                dag_id=instance.dag_id,
                task_ids=[instance.task_id],
                run_ids=[instance.run_id],
                map_index=instance.map_index,
            )
        )
        return {str(state) for run in states.values() for state in run.values()}

    async def _is_named_by_xcom(self, instance: TaskInstance) -> bool:
        from airflow.sdk.execution_time.xcom import XCom

        named = await complete(
            lambda: sync_to_async(XCom.get_one)(
                key=INVOCATION_ID_KEY,
                dag_id=instance.dag_id,
                task_id=instance.task_id,
                run_id=instance.run_id,
                map_index=instance.map_index,
            )
        )
        return bool(named == self._named)
