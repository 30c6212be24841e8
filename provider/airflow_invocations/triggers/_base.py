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
from ..platforms.retry import backoff
from ..tasks.cancellation import Intent, awaited_invocation, cancel, intent_of, recorded_states
from ..tasks.lifecycle import CancelledByClear
from ..tasks.sdk_calls import complete
from ..tasks.xcom import storable, trigger_event
from ..version_compat import TELLS_OF_KILLS

if TYPE_CHECKING:
    from airflow.models.taskinstance import TaskInstance

#: Seconds after which a waiting task logs again what it waits for.
ANNOUNCEMENT_INTERVAL = 600.0

#: Seconds between two reads of a task's state, if the state doesn't decide. The pause doubles with each read.
_READ_PAUSE = 0.5
_LONGEST_READ_PAUSE = 30.0

#: Seconds for which an undecided state is read again. A cleared task may wait for a slot for long.
_DECISION_LIMIT = 600.0

#: Seconds to fetch the statuses of a killed task's invocations.
_STATUS_TIMEOUT = 5.0

#: Seconds for which a trigger tries to cancel an invocation. It reads the connection again each time, as it
#: may have been deleted or replaced.
_CANCEL_LIMIT = 3600.0

#: Seconds for one attempt to cancel, with the same connection.
_CANCEL_TIMEOUT = 60.0

#: The longest pause in seconds between two attempts.
_LONGEST_CANCEL_PAUSE = 60.0

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
        """Cancel the invocations if the task has ended (Airflow calls this at other times, too)."""
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
        task = asyncio.create_task(self._cancel_if_ended())
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

    async def _cancel_if_ended(self) -> None:
        """Cancel the invocations if Airflow confirms that the task has ended, was cleared or deleted."""
        ids = await self._own_ids()
        if not ids:
            return
        named = ", ".join(ids)
        why = await self._reason_to_keep()
        if why:
            self.log.info("Not cancelling invocation %s: %s", named, why)
            return
        active = await self._active(ids)
        if not active:
            self.log.info("Nothing to cancel: invocation %s has ended", named)
            return
        self.log.warning("The task was killed")
        await asyncio.gather(*(self._cancel(one) for one in active))

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

    async def _cancel(self, invocation_id: str) -> None:
        """Cancel an invocation, repeatedly until the platform confirms; see `_CANCEL_LIMIT`."""
        deadline = time.monotonic() + _CANCEL_LIMIT
        attempt = 0
        while True:
            try:
                async with await InvocationHook(self.conn_id).connect() as platform:
                    await cancel(platform, invocation_id, self.log, _CANCEL_TIMEOUT)
                return
            except Exception as error:
                pause = backoff(attempt, cap=_LONGEST_CANCEL_PAUSE)
                is_last = time.monotonic() + pause > deadline
                what = "Could not cancel invocation %s: %s"
                if is_last:
                    self.log.error(what, invocation_id, error or "no answer")
                    return
                self.log.warning(f"{what}; trying again", invocation_id, error or "no answer")
            await asyncio.sleep(pause)
            attempt += 1

    async def _reason_to_keep(self) -> str:
        """Return why the invocation must not be cancelled; empty if Airflow confirms that nothing needs it.

        Being asked to stop proves nothing: before Airflow 3.4 a trigger that moves to another triggerer is
        stopped in the same way as a killed one, and in every version a triggerer that was blocked stops its
        trigger after another triggerer has ended the wait. So the task instance's record decides. Where it
        doesn't yet, or Airflow doesn't answer, it is read again, for `_DECISION_LIMIT` seconds.
        """
        if self.task_instance is None:
            return "this trigger has no task instance"
        why = ""
        pause, passed = _READ_PAUSE, 0.0
        while passed < _DECISION_LIMIT:
            try:
                decision = await self._decide(self.task_instance)
            except Exception as error:
                why = f"could not read the task's state: {error}"
            else:
                if decision is not None:
                    return decision
                why = "it is not known whether the task was cleared"
            await asyncio.sleep(pause)
            passed += pause
            pause = min(2 * pause, _LONGEST_READ_PAUSE)
        return why

    async def _decide(self, instance: TaskInstance) -> str | None:
        """Return why the invocation is kept; empty to cancel it, None if the record doesn't decide yet."""
        states = await self._task_states(instance)
        intent = intent_of(states)
        if intent is Intent.Ended:
            return ""
        if intent is Intent.Undecided:
            return None
        if intent is Intent.Retried and "running" not in states:
            return "the task is retried"
        try:
            named = await self._xcom_id(instance)
        except Exception:
            # Airflow returns only the state of a loop's latest iteration, which may be an earlier one that
            # is being repeated, because a clear replaced this one. A trigger can read XComs only as long as
            # its own task instance is current.
            if not self.in_loop:
                raise
            await self._task_states(instance)  # an outage would look the same
            return ""
        if named == self._named or (self.in_loop and intent is Intent.Retried):
            return "the task continues with it"
        # A worker that starts a try deletes the task's XComs, and then names the invocation that it waits
        # for. A task that is deferred has named it.
        return None if named is None and intent is Intent.Retried else ""

    async def _task_states(self, instance: TaskInstance) -> set[str]:
        from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

        read = sync_to_async(recorded_states)
        return await complete(lambda: read(instance, RuntimeTaskInstance.get_task_states))

    async def _xcom_id(self, instance: TaskInstance) -> Any:
        """Return what the task's XCom `invocation_id` contains now; None if there is none."""
        from airflow.sdk.execution_time.xcom import XCom

        return await complete(lambda: awaited_invocation(instance, sync_to_async(XCom.get_one)))


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
