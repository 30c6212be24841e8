"""Base classes and helpers of this provider's triggers: serialization, kills, and what a worker would do."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from airflow.triggers.base import BaseTrigger, TaskFailedEvent, TaskSuccessEvent, TriggerEvent
from asgiref.sync import sync_to_async

from ..action_log import log_relay
from ..exceptions import InvocationError
from ..hooks import InvocationHook
from ..tasks.cancellation import cancel
from ..tasks.lifecycle import CancelledByClear
from ..tasks.result import INVOCATION_ID_KEY
from ..tasks.sdk_calls import complete
from ..tasks.xcom import storable, trigger_event
from ..version_compat import TELLS_OF_KILLS

if TYPE_CHECKING:
    from airflow.models.taskinstance import TaskInstance

#: Seconds after which a waiting task logs again what it waits for.
ANNOUNCEMENT_INTERVAL = 600.0

#: States of a task whose invocation is to be cancelled: the task has ended, or was cleared while a worker
#: ran it ("restarting"), for instance at the moment of its deferral.
_UNWANTING_STATES = frozenset({"success", "failed", "skipped", "upstream_failed", "removed", "restarting"})

#: States of a task that handles its invocation itself: it has resumed, or was cleared and starts again. It
#: then cancels its earlier invocation, or continues with it.
_SELF_RELIANT_STATES = frozenset({"running", "up_for_retry", "up_for_reschedule"})

#: Seconds between two reads of the state of a task that is about to change it, and the number of reads.
_STATE_PAUSE = 0.5
_STATE_READS = 8

#: Seconds to fetch the statuses of a killed task's invocations.
_STATUS_TIMEOUT = 5.0

#: Seconds that a trigger has to cancel an invocation.
_CANCEL_TIMEOUT = 60.0

#: Seconds within which a triggerer that stops has ended.
_STOP_TIME = 1.0

#: Cancels in progress. Before 3.4 Airflow cancels a trigger, and with it `on_kill`, every second until it has
#: ended; the cancels kept here run to completion.
_cancelling: set[asyncio.Task[None]] = set()


class SerializedFields:
    """Serialize a trigger from the fields of its dataclass, which are also the arguments of its constructor.

    Airflow stores the arguments in its database, so none of them may be a secret.
    """

    def __post_init__(self) -> None:
        """Run the constructor of Airflow's trigger class, which a dataclass does not call."""
        super().__init__()

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class path and the arguments from which Airflow recreates the trigger."""
        fields: Sequence[dataclasses.Field[Any]] = dataclasses.fields(self)  # type: ignore[arg-type]
        arguments = {field.name: getattr(self, field.name) for field in fields}
        return f"{type(self).__module__}.{type(self).__qualname__}", arguments


class BaseInvocationTrigger(SerializedFields, BaseTrigger):
    """A trigger that waits for invocations of its own task, and cancels them when the task is killed.

    Subclasses are dataclasses; see `SerializedFields`.
    """

    conn_id: str
    #: False for tasks that only watch.
    cancel_on_kill: bool
    #: Whether the task is in a task loop, where Airflow can't return the state of one iteration.
    in_loop = False
    _has_fired = False

    async def on_kill(self) -> None:
        """Cancel the invocations, unless the task still needs them (Airflow calls this then too)."""
        if self._has_to_cancel:
            await asyncio.shield(self._start_to_cancel())

    async def cleanup(self) -> None:
        """Cancel the invocations where Airflow does not call `on_kill`.

        A triggerer that stops ends all its triggers too, so the cancel starts later by a timer, which ends
        with the triggerer's event loop.
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
        """Return the ids of the invocations to cancel; may wait for a submission to be answered."""
        raise NotImplementedError

    @property
    def _named(self) -> Any:
        """Return what the task's XCom `invocation_id` contains while it waits for these invocations."""
        raise NotImplementedError

    async def _cancel_unless_wanted(self) -> None:
        ids = await self._own_ids()
        if not ids:
            return
        if await self._is_still_wanted():
            self.log.info("This trigger is being moved; invocation %s continues", ", ".join(ids))
            return
        active = await self._active(ids)
        if not active:
            self.log.info("Nothing to cancel: invocation %s has ended", ", ".join(ids))
            return
        self.log.warning("The task was killed")
        await self._cancel(active)

    async def _active(self, ids: Sequence[str]) -> Sequence[str]:
        """Return the ids of the active invocations, or all ids if the platform doesn't answer.

        A task that ended by itself, in another triggerer or a worker, has no active invocation.
        """
        try:
            async with (
                asyncio.timeout(_STATUS_TIMEOUT),
                await InvocationHook(self.conn_id).connect() as platform,
            ):
                statuses = await platform.statuses(ids)
        except Exception:
            return ids
        ended = {one.invocation_id for one in statuses if one.status.is_terminal}
        return [one for one in ids if one not in ended]

    async def _cancel(self, ids: Sequence[str]) -> None:
        for invocation_id in ids:
            try:
                async with await InvocationHook(self.conn_id).connect() as platform:
                    await cancel(platform, invocation_id, self.log, _CANCEL_TIMEOUT)
            except Exception as error:
                self.log.error("Could not cancel invocation %s: %s", invocation_id, error or "no answer")

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
            for _ in range(_STATE_READS):
                states = await self._task_states(self.task_instance)
                if states & _UNWANTING_STATES:
                    return False
                if states & _SELF_RELIANT_STATES:
                    # An earlier iteration may be running, because a clear replaced this one.
                    may_be_another = self.in_loop and "running" in states
                    return not (may_be_another and await self._was_replaced(self.task_instance))
                if "deferred" in states:
                    return await self._is_named_by_xcom(self.task_instance)
                await asyncio.sleep(_STATE_PAUSE)
        except Exception as error:
            # Before Airflow 3.3 a kill looks like a triggerer's shutdown, which cancels nothing.
            assumed = "killed" if TELLS_OF_KILLS else "running"
            self.log.warning("Could not read the task's state; assuming that it is %s: %s", assumed, error)
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


class EndingTrigger(BaseInvocationTrigger):
    """A trigger that can end its task: it pushes the result's XComs and fires one of Airflow's end events.

    An end event resumes no worker. Airflow then runs no success callback, emits no asset event and calls no
    listener, so operators check that their task needs none of these.
    """

    #: Whether to push the result, the task's `do_xcom_push`.
    push_result: bool
    #: Whether to push each entry of the result as a separate XCom, too.
    multiple_outputs: bool

    async def _end_task(self, result: Awaitable[dict[str, Any]]) -> TriggerEvent:
        """Return the event that ends the task with a result, or that has a worker raise its error."""
        event: TriggerEvent = TaskSuccessEvent()
        try:
            value = await result
        except CancelledByClear:
            event = trigger_event(None)  # a worker starts over
        except InvocationError as error:
            self.log.error("%s", error)
            event = await self._fail(error)
        else:
            if self.push_result:
                await self._push_result(value)
        await flush_task_log()
        return event

    async def _fail(self, error: InvocationError) -> TriggerEvent:
        if self._needs_worker(error):
            return trigger_event({"invocation_id": self._invocation_id, "error": error.as_event()})
        await self._before_failure()
        return TaskFailedEvent()

    async def _push_result(self, value: dict[str, Any]) -> None:
        if self.multiple_outputs:
            for key, part in value.items():
                await push_xcom(self, key, part)
        await push_xcom(self, "return_value", value)

    def _needs_worker(self, error: InvocationError) -> bool:
        """Return whether only a worker can fail the task with this error as its author wants."""
        raise NotImplementedError

    async def _before_failure(self) -> None:
        """Prepare a failure that Airflow may retry."""

    @property
    def _invocation_id(self) -> str | None:
        """Return the id of the invocation; None if there is none yet."""
        raise NotImplementedError


async def push_xcom(trigger: BaseTrigger, key: str, value: Any) -> None:
    """Store an XCom of the task. XComs of an end event would arrive encoded twice."""
    from airflow.sdk.execution_time.xcom import XCom

    instance: Any = trigger.task_instance
    await complete(
        lambda: XCom.aset(
            key,
            storable(value),
            dag_id=instance.dag_id,
            task_id=instance.task_id,
            run_id=instance.run_id,
            map_index=instance.map_index,
        )
    )


async def pull_xcom(trigger: BaseTrigger, key: str) -> Any:
    """Return an XCom of the task, or None.

    XComs of earlier tries are there too, unless a worker has started a try since: that deletes them.
    """
    from airflow.sdk.execution_time.xcom import XCom

    instance: Any = trigger.task_instance
    return await complete(
        lambda: XCom.aget_one(
            key=key,
            dag_id=instance.dag_id,
            task_id=instance.task_id,
            run_id=instance.run_id,
            map_index=instance.map_index,
        )
    )


def has_retries(trigger: BaseTrigger) -> bool:
    """Return whether Airflow may retry the task. A triggerer does not know how many retries are left."""
    instance: Any = trigger.task_instance
    return bool(instance.task.retries)


@asynccontextmanager
async def announced(trigger: BaseTrigger, what: object) -> AsyncIterator[None]:
    """Log what the block waits for, immediately and every `ANNOUNCEMENT_INTERVAL` seconds."""

    async def repeat() -> None:
        began = time.monotonic()
        while True:
            await asyncio.sleep(ANNOUNCEMENT_INTERVAL)
            trigger.log.info("Still waiting after %.0f s for %s", time.monotonic() - began, what)

    trigger.log.info("Waiting for %s", what)
    reminder = asyncio.create_task(repeat())
    try:
        yield
    finally:
        reminder.cancel()


async def flush_task_log() -> None:
    """Wait until a trigger's last log line has left the process, for tasks that end without a worker.

    Airflow closes the task's log when it receives the trigger's event; lines that arrive later are lost.
    """
    await log_relay().drain()
