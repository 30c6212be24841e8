"""Many waits against the real server: one stream, outages and restarts survived, nothing blocked."""

from __future__ import annotations

import asyncio
import gc
import logging
import subprocess
import sys
import time
from asyncio import events
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import anyio.to_thread
import psutil
import pytest

from airflow_invocations import action_log
from airflow_invocations.hooks import RobotoHook
from airflow_invocations.models import (
    InvocationRecord,
    InvocationRequest,
    InvocationSource,
    InvocationStatus,
)
from airflow_invocations.platforms.roboto import client as roboto
from airflow_invocations.platforms.roboto.platform import RobotoPlatform
from airflow_invocations.tasks import lifecycle
from airflow_invocations.triggers import InvocationTrigger
from airflow_invocations.waiters import (
    LOG_SETTINGS,
    LogEnd,
    LogSettings,
    WaitOptions,
    log_pages,
)

from ...support.task_context import PROVENANCE
from ...support.waiting import until
from ..conftest import LocalServer
from .conftest import connect_to, script

pytestmark = pytest.mark.anyio
S = InvocationStatus
WAITS = 1000

#: The longest that one callback may hold the triggerer's event loop, in seconds.
LONGEST_CALLBACK = 0.050


@pytest.fixture
def queued(start_server: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """A server that runs nothing: what is invoked stays Queued until a test says otherwise."""
    server = start_server("--slots", "0")
    connect_to(server, monkeypatch)
    return server


def invoke(hook: RobotoHook, count: int) -> list[str]:
    action = script(hook, "true")
    request = InvocationRequest(invocation_source=InvocationSource.Manual)

    async def several(platform: RobotoPlatform) -> list[str]:
        return [(await platform.invoke(action, request)).invocation_id for _ in range(count)]

    return hook.call(several)


def cancel_all(server: Any) -> None:
    while server.request("POST", "v1/actions/invocations/cancel/all", json={}).json()["data"]["has_more"]:
        pass


def trigger(invocation_id: str, **options: Any) -> InvocationTrigger:
    arguments = {"conn_id": "roboto_default", "poll_interval": 0.2, "stream_logs": False, **options}
    return InvocationTrigger(invocation_id=invocation_id, **arguments)


async def event_of(waiting: InvocationTrigger) -> dict[str, Any]:
    steps = waiting.run()
    payload: dict[str, Any] = (await anext(steps)).payload
    await steps.aclose()  # type: ignore[attr-defined]
    return payload


async def is_waiting(server: Any, count: int) -> None:
    """Wait until so many watches are open at the server."""
    async with asyncio.timeout(20):
        while _metric(server.request("GET", "metrics").text, "open_watches") != count:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


def _metric(text: str, name: str) -> float | None:
    values = [line.rpartition(" ")[2] for line in text.splitlines() if name in line and line[0] != "#"]
    return float(values[0]) if values else None


@contextmanager
def callbacks_timed() -> Iterator[list[tuple[float, float]]]:
    """Processor and wall-clock seconds of every callback of the event loop, and of every task's step."""
    times: list[tuple[float, float]] = []
    real = events.Handle._run

    def timed(handle: events.Handle) -> None:
        processor, wall = time.thread_time(), time.perf_counter()
        real(handle)
        times.append((time.thread_time() - processor, time.perf_counter() - wall))

    # A collection that walks through all of Airflow's modules would be put down to whoever sets it off.
    gc.collect()
    gc.freeze()
    events.Handle._run = timed  # type: ignore[method-assign]
    try:
        yield times
    finally:
        events.Handle._run = real  # type: ignore[method-assign]
        gc.unfreeze()


@pytest.mark.parametrize("pushes", [True, False], ids=["push", "poll"])
async def test_a_thousand_waits_share_one_watcher_and_hold_up_nobody(
    queued: Any, pushes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not pushes:
        monkeypatch.setattr(roboto, "WATCH", "v1/actions/invocations/no-such-thing")
    hook = RobotoHook()
    ids = await anyio.to_thread.run_sync(invoke, hook, WAITS)
    await hook.connect()  # Airflow imports what it reads connections with, this once
    with callbacks_timed() as times:
        waits = [asyncio.create_task(event_of(trigger(one))) for one in ids]
        await asyncio.sleep(1.0)  # the waits are to be told of what happens, not of what has happened
        await anyio.to_thread.run_sync(cancel_all, queued)
        async with asyncio.timeout(60):
            told = await asyncio.gather(*waits)
    assert [event["invocation_id"] for event in told] == ids
    assert {event["given_up"] for event in told} == {None}
    assert max(processor for processor, _ in times) < LONGEST_CALLBACK
    # What blocks without computing shows on the clock; a busy machine may show there too, but not often.
    assert sum(wall > LONGEST_CALLBACK for _, wall in times) <= 10


async def test_a_service_that_dies_and_comes_back_has_lost_nobodys_wait(
    start_server: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start_server("--slots", "4", "--port", "0")
    connect_to(server, monkeypatch)
    hook = RobotoHook()
    (waited_for,) = await anyio.to_thread.run_sync(lambda: invoke_script(hook, "sleep 1.5; echo done", 1))
    wait = asyncio.create_task(event_of(trigger(waited_for)))
    await is_waiting(server, 1)
    port = server.endpoint.rpartition(":")[2]
    await anyio.to_thread.run_sync(server.kill)
    await asyncio.sleep(1.0)  # an outage of some length is what this is about
    server.options = ("--slots", "4", "--port", port)
    await anyio.to_thread.run_sync(server.start)
    async with asyncio.timeout(30):
        event = await wait
    assert event["given_up"] is None
    assert hook.get(waited_for).current.status is S.Completed


def invoke_script(hook: RobotoHook, command: str, count: int) -> list[str]:
    action = script(hook, command)
    request = InvocationRequest(invocation_source=InvocationSource.Manual)
    return [hook.invoke(action, request).invocation_id for _ in range(count)]


@pytest.mark.parametrize("pushes", [True, False], ids=["push", "poll"])
async def test_a_token_that_is_replaced_in_the_midst_of_a_wait_is_read_anew(
    queued: Any, pushes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not pushes:
        monkeypatch.setattr(roboto, "WATCH", "v1/actions/invocations/no-such-thing")
    hook = RobotoHook()
    (waited_for,) = await anyio.to_thread.run_sync(invoke, hook, 1)
    first = token(queued, "add", "first")
    second = token(queued, "add", "second")
    connect_to(queued, monkeypatch, first)
    wait = asyncio.create_task(event_of(trigger(waited_for)))
    await asyncio.sleep(0.5)  # polls as well as streams are under way with the first token
    connect_to(queued, monkeypatch, second)
    token(queued, "revoke", "first")
    queued.kill()
    port = queued.endpoint.rpartition(":")[2]
    queued.options = ("--slots", "0", "--port", port)
    await anyio.to_thread.run_sync(queued.start)
    await anyio.to_thread.run_sync(RobotoHook().cancel, waited_for)
    async with asyncio.timeout(30):
        assert (await wait)["given_up"] is None


def token(server: Any, *arguments: str) -> str:
    command = [sys.executable, "-m", "airflow_invocations.cli", "token"]
    command += ["--data-dir", str(server.data_dir), *arguments]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    return printed.strip().splitlines()[-1] if printed.strip() else ""


async def test_a_flood_is_shown_in_part_and_the_rest_is_left_to_the_worker(
    hook: RobotoHook, action_log: list[str]
) -> None:
    (flood,) = await anyio.to_thread.run_sync(
        lambda: invoke_script(hook, "seq 1 20000; sleep 2; seq 20001 20100", 1)
    )
    event = await event_of(trigger(flood, stream_logs=True))
    shown = len(action_log)
    assert 0 < shown < 5000
    assert action_log == [str(number) for number in range(1, shown + 1)]
    assert event["log_tail"] == action_log[-20:]

    async def the_rest() -> list[str]:
        async with await hook.connect() as platform:
            pages = [page async for page in log_pages(platform, flood, event["cursor"])]
        return [entry.log for page in pages for entry in page.items][event["lines_beyond"] :]

    assert action_log + await the_rest() == [str(number) for number in range(1, 20101)]


async def test_a_line_of_fifty_megabytes_holds_up_nobody_and_is_cut(
    hook: RobotoHook, action_log: list[str]
) -> None:
    command = "head -c 50000000 /dev/zero | tr '\\0' 'x'; echo; sleep 2; echo after"
    (long,) = await anyio.to_thread.run_sync(lambda: invoke_script(hook, command, 1))
    with callbacks_timed() as times:
        event = await event_of(trigger(long, stream_logs=True))
    assert max(processor for processor, _ in times) < LONGEST_CALLBACK
    assert len(action_log) == len(event["log_tail"]) <= 2
    assert sum(len(line) for line in action_log) < 2 * LOG_SETTINGS.line_length


class Counting:
    """A task's logger that keeps no more of the lines than their number and the last one.

    :param before_first: called before the first line is written.
    """

    def __init__(self, before_first: Callable[[], object]) -> None:
        self._before_first = before_first
        self.count = 0
        self.first = ""
        self.last = ""

    def info(self, line: str, *, logger: str, timestamp: str) -> None:
        if not self.first:
            self._before_first()
            self.first = line
        assert not self.last or int(line) > int(self.last)
        self.count += 1
        self.last = line


async def test_a_worker_keeps_no_flood_in_memory_and_ends_with_its_last_lines(
    hook: RobotoHook, server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    (flood,) = await anyio.to_thread.run_sync(lambda: invoke_script(hook, "seq 1 300000", 1))

    def has_ended() -> bool:
        answer = server.request("GET", f"v1/actions/invocations/{flood}").raise_for_status()
        return InvocationRecord.model_validate(answer.json()["data"]).current.status.is_terminal

    # The first line blocks the worker until all lines are written, so that it can't keep up on any machine.
    counting = Counting(lambda: until(has_ended, within=60))
    monkeypatch.setattr(action_log, "structlog", SimpleNamespace(get_logger=lambda _: counting))
    monkeypatch.setattr(
        lifecycle, "LOG_SETTINGS", LogSettings(worker_end=LogEnd(lines=1000, size=10**6, seconds=60))
    )
    said: list[str] = []
    log = lifecycle.WorkerLog("http://platform/log", said.append)
    waiting = WaitOptions(flood, poll_interval=1.0)
    steps = lifecycle.InvocationLifecycle(hook.conn_id, hook.connect, waiting, logging.getLogger("task"))
    process = psutil.Process()
    before = process.memory_info().rss
    result = await steps.finish(log, PROVENANCE, may_have_ended=True)
    assert result["status"] == "Completed"
    assert process.memory_info().rss - before < 100e6
    assert (counting.first, counting.last) == ("1", "300000")
    assert counting.count < 300_000
    assert "Left out here of the action's log: " in said[-1]
    assert said[-1].endswith(" MB); the whole log: http://platform/log")
