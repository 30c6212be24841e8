"""Decide from Airflow's record whether a task has ended, and cancel its invocations."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any

from ..platforms import CannotStopError, Platform, PlatformError
from ..waiters import cancel_and_confirm
from .result import INVOCATION_ID_KEY

if TYPE_CHECKING:
    from ..models import InvocationRecord

#: Seconds to cancel an invocation and to wait for the platform's confirmation. Airflow kills the process of a
#: task that was ended 5 s after SIGTERM. A platform that has accepted the request completes the cancel by
#: itself.
CANCEL_TIMEOUT = 30.0

#: States of a task instance that has ended, or has no part in its run any more.
TERMINAL_STATES = frozenset({"success", "failed", "skipped", "upstream_failed", "removed"})

#: States of a task that nothing waits in: the task has ended, or was cleared while a worker ran it
#: ("restarting"), for instance at the moment of its deferral.
_ENDED_STATES = TERMINAL_STATES | {"restarting"}

#: States of a task whose present or next try handles the invocation: it adopts it, or cancels it because the
#: task was cleared.
_RETRIED_STATES = frozenset({"running", "up_for_retry", "up_for_reschedule"})


class Intent(Enum):
    """What Airflow's record of a task means for the invocation of a process that is asked to end."""

    #: The task was ended, cleared or deleted: cancel the invocation.
    Ended = "ended"
    #: A worker runs the task, or will: it adopts the invocation or cancels it.
    Retried = "retried"
    #: The task is deferred.
    Deferred = "deferred"
    #: The task is on its way to a worker, because it resumes or was cleared. Its next state decides.
    Undecided = "undecided"


def intent_of(states: Collection[str]) -> Intent:
    """Return what Airflow's record of a task means.

    :param states: the states of the task instance; empty if Airflow has no such task instance any more.
    """
    if not states or _ENDED_STATES.intersection(states):
        return Intent.Ended
    if _RETRIED_STATES.intersection(states):
        return Intent.Retried
    return Intent.Deferred if "deferred" in states else Intent.Undecided


def recorded_states(instance: Any, read: Callable[..., Any]) -> set[str]:
    """Return the states that Airflow has recorded of a task instance; empty if it has none.

    Airflow answers this also for a task instance that was ended, cleared or deleted. Requests with the id of
    a try that was replaced get 404 or 410 instead
    (https://github.com/apache/airflow/blob/3.3.2/airflow-core/src/airflow/api_fastapi/execution_api/routes/task_instances.py).

    :param read: the method of the task SDK's `RuntimeTaskInstance` that returns states.
    """
    runs = read(
        dag_id=instance.dag_id,
        task_ids=[instance.task_id],
        run_ids=[instance.run_id],
        map_index=instance.map_index,
    )
    return {str(state) for run in runs.values() for state in run.values()}


def awaited_invocation(instance: Any, read: Callable[..., Any]) -> Any:
    """Return what a task instance's XCom `invocation_id` contains: the invocation that the task waits for.

    In a task loop Airflow refuses XComs to a task instance that a clear has replaced.

    :param read: the method of the task SDK's `XCom` that returns one XCom, or an awaitable of it.
    """
    return read(
        key=INVOCATION_ID_KEY,
        dag_id=instance.dag_id,
        task_id=instance.task_id,
        run_id=instance.run_id,
        map_index=instance.map_index,
    )


async def cancel(
    platform: Platform, invocation_id: str, log: Any, limit: float = CANCEL_TIMEOUT
) -> InvocationRecord | None:
    """Cancel an invocation and log how it ended.

    :param log: the task's logger.
    :param limit: seconds to wait for the confirmation.
    :return: its last record; None if the platform doesn't know it, or can't stop it.
    :raises TimeoutError: it hasn't ended after `limit` seconds.
    :raises PlatformError: as `cancel_and_confirm` does.
    """
    log.warning("Cancelling invocation %s", invocation_id)
    try:
        record = await cancel_and_confirm(platform, invocation_id, limit)
    except CannotStopError as error:
        log.warning("%s", error)
        return None
    log.info("Invocation %s: %s", invocation_id, record.current.status if record else "not known")
    return record


async def cancel_unless_ended(platform: Platform, invocation_id: str, log: Any) -> None:
    """Cancel an invocation as `cancel` does; log nothing about one that has ended by itself."""
    try:
        record = await platform.get(invocation_id)
    except PlatformError:
        pass  # the cancel asks again
    else:
        if record.current.status.is_terminal:
            return
    await cancel(platform, invocation_id, log)


async def cancel_active(platform: Platform, idempotency_ids: Sequence[str], log: Any) -> list[str]:
    """Cancel the active invocations with these idempotency ids; return their ids. Raises as `cancel` does."""
    active = [one.invocation_id for one in await platform.active(idempotency_ids)]
    return [one for one in active if await cancel(platform, one, log) is not None]
