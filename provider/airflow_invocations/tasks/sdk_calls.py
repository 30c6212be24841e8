"""Run calls of Airflow's task SDK to completion, even if the caller is cancelled."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

#: Calls in progress; asyncio itself keeps only weak references to tasks.
_in_progress: set[asyncio.Task[Any]] = set()


async def complete(call: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Return the result of an SDK call; a cancellation of the caller leaves the call running to its end.

    The process shares one channel with its supervisor. A call that is cancelled while it waits for the
    channel's lock, or for its answer, can leave the lock taken or the answer unread, and then every later
    call of the process hangs (`CommsDecoder.asend` in `airflow.sdk.execution_time.comms`).

    :param call: makes the coroutine of one SDK call: a connection, a variable, an XCom, a state.
    """
    task = asyncio.create_task(_with_portal(call) if _has_portal() else call())
    _in_progress.add(task)
    task.add_done_callback(_forget)
    return await asyncio.shield(task)


def _forget(task: asyncio.Task[Any]) -> None:
    _in_progress.discard(task)
    if not task.cancelled():
        task.exception()  # retrieved, even where the caller was cancelled and nothing awaits it


def _has_portal() -> bool:
    """Return whether synchronous SDK calls are possible in this task, as Airflow arranges for triggers."""
    greenback = sys.modules.get("greenback")
    return greenback is not None and bool(greenback.has_portal())


async def _with_portal(call: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Give the new task what the trigger's own task has: an XCom backend may call the SDK synchronously."""
    import greenback

    await greenback.ensure_portal()
    return await call()
