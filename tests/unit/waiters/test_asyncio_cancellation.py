"""A cancellation always arrives, also when the awaited event happens in the same iteration of the loop.

Before Python 3.12 `asyncio.wait_for` swallows such a cancellation
(https://github.com/python/cpython/issues/81839), and a watcher that misses it never closes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Coroutine
from typing import Any

import pytest

from airflow_invocations.models import StatusSnapshot
from airflow_invocations.platforms.flyte.ids import RunId
from airflow_invocations.platforms.flyte.watch import FlyteWatch, _Tail
from airflow_invocations.waiters.event_stream import SharedEventStream
from airflow_invocations.waiters.wait import WaitOptions, _Deadlines
from airflow_invocations.waiters.wait_handle import Notice, WaitHandle
from airflow_invocations.waiters.watcher import ConnectionWatcher

pytestmark = pytest.mark.anyio

#: What waits, and what makes it stop waiting.
Case = tuple[Coroutine[Any, Any, object], Callable[[], object]]


async def never() -> Any:
    """Open a connection, without end."""
    await asyncio.Event().wait()


def flyte_look() -> Case:
    watch = flyte_watch()
    return watch._list(), lambda: watch._list_soon([])


def flyte_tail() -> Case:
    tail = _Tail()
    return tail.pause(60), tail.ended.set


def stream_rest() -> Case:
    stream = SharedEventStream("platform", never)
    return stream._rest(60), stream._unused.set


def watcher_rest() -> Case:
    watcher = ConnectionWatcher(never)
    return watcher._rest(60), watcher._unused.set


def deadline_messages() -> Case:
    wait = WaitHandle("iv_1", poll_interval=1, outage_limit=60)
    deadlines = _Deadlines(never, WaitOptions("iv_1", poll_interval=1, deadline=time.time() + 60))
    return deadlines.messages(wait), lambda: wait.notify(Notice("something has happened"))


class NoRuns:
    """A Flyte that has no runs."""

    async def statuses(self, _: Collection[str]) -> list[StatusSnapshot]:
        return []

    async def details(self, _: RunId) -> dict[str, Any]:
        return {}

    async def enqueue_if_unscheduled(self, _: str) -> bool:
        return False


def flyte_watch() -> FlyteWatch:
    return FlyteWatch(NoRuns(), never, None, [], {})  # type: ignore[arg-type]


async def until_it_waits() -> None:
    """Let every task that can go on do so, until each waits for an event."""
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.mark.parametrize("case", [flyte_look, flyte_tail, stream_rest, watcher_rest, deadline_messages])
async def test_cancellation_arrives_in_the_iteration_in_which_the_wait_ends(case: Callable[[], Case]) -> None:
    waiting, happens = case()
    task = asyncio.ensure_future(waiting)
    await until_it_waits()
    happens()
    task.cancel()
    await asyncio.wait({task}, timeout=1)
    swallowed = not task.cancelled()
    task.cancel()
    assert not swallowed


async def test_flyte_watch_closes_in_the_iteration_in_which_a_run_is_added() -> None:
    watch = flyte_watch()
    await until_it_waits()
    await watch.change(["no-run"], [], {})
    async with asyncio.timeout(5):
        await watch.close()
    assert not watch._tasks
