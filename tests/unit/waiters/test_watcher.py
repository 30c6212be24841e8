"""Waits on one watcher share a stream or a query, and each gets its end once."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest

from airflow_invocations.exceptions import PlatformUnavailableError, task_error
from airflow_invocations.models import CaughtUp, InvocationStatus, NewLines, StatusSnapshot, UnreadableLog
from airflow_invocations.platforms import NotFoundError, RateLimitedError, UnauthorizedError, UnavailableError
from airflow_invocations.waiters import (
    AbandonReason,
    Behind,
    LogQueue,
    LogSettings,
    Notice,
    WaitAbandoned,
    WaitOptions,
    availability,
    fetch_record,
    log_polling,
    rejection,
    wait,
    wait_handle,
    wait_until_terminal,
    watcher,
)
from airflow_invocations.waiters.watcher import WatcherRegistry

from ...support.waiting import until_async
from .conftest import Platform, Stream, broken, lines_of, page

pytestmark = pytest.mark.anyio
S = InvocationStatus


class One:
    """One wait in a task, with its messages and its end."""

    def __init__(self, platform: Platform, invocation_id: str = "iv_1", **options: Any) -> None:
        self.lines: list[str] = []
        self.notices: list[str] = []
        self.cursor: str | None = None
        self.waiting = WaitOptions(invocation_id, **{"poll_interval": 0.01, **options})
        self.task = asyncio.create_task(self._follow(platform))

    async def _follow(self, platform: Platform) -> None:
        async for step in wait_until_terminal("c", platform.connect, self.waiting):
            match step:
                case NewLines():
                    self.lines += [entry.log for entry in step.records]
                    self.cursor = step.cursor
                case Notice(text):
                    self.notices.append(text)
                case Behind():
                    self.notices.append("behind")

    async def end(self) -> None:
        async with asyncio.timeout(5):
            await self.task

    async def reason(self) -> AbandonReason:
        with pytest.raises(WaitAbandoned) as abandoned:
            await self.end()
        return abandoned.value.reason


async def opened(platform: Platform, count: int = 1) -> Any:
    """Return the stream that was opened last, once `count` were opened."""
    await until_async(lambda: len(platform.streams) >= count)
    return platform.streams[-1]


@asynccontextmanager
async def waits(platform: Platform, *ids: str, **options: Any) -> AsyncIterator[list[One]]:
    ones = [One(platform, invocation_id, **options) for invocation_id in ids]
    try:
        yield ones
    finally:
        for one in ones:
            one.task.cancel()
        await asyncio.gather(*(one.task for one in ones), return_exceptions=True)


# -- push --------------------------------------------------------------------------------------------


async def test_thousand_waits_share_one_stream_without_requests() -> None:
    ids = [f"iv_{number}" for number in range(1000)]
    platform = Platform(**dict.fromkeys(ids, S.Processing))
    async with waits(platform, *ids) as ones:
        stream = await opened(platform)
        await until_async(lambda: stream.ids == set(ids))
        for invocation_id in ids:
            platform.set(invocation_id, S.Completed)
        await asyncio.gather(*(one.end() for one in ones))
    await until_async(lambda: platform.closed)
    assert len(platform.streams) == platform.connects == platform.closed == 1
    assert platform.asked == []
    assert len(platform.changes) <= 1


@pytest.mark.parametrize("status", [S.Completed, S.Cancelled, S.Failed, S.Deadly])
async def test_wait_ends_at_every_terminal_status_and_at_no_other(status: InvocationStatus) -> None:
    platform = Platform(iv_1=S.Queued)
    async with waits(platform, "iv_1") as (one,):
        stream = await opened(platform)
        for before in (S.Scheduled, S.Downloading, S.Processing, S.Uploading):
            platform.set("iv_1", before)
        await until_async(stream.queue.empty)
        assert not one.task.done()
        platform.set("iv_1", status)
        await one.end()


async def test_later_wait_joins_the_open_stream() -> None:
    platform = Platform(iv_1=S.Processing, iv_2=S.Processing, iv_3=S.Completed)
    async with waits(platform, "iv_1"):
        await opened(platform)
        async with waits(platform, "iv_2", "iv_3") as (second, third):
            await third.end()
            assert platform.changes == [({"iv_2", "iv_3"}, set(), {})]
            platform.set("iv_2", S.Failed)
            await second.end()
    assert len(platform.streams) == 1


async def test_second_wait_gets_an_end_that_happened_before_it_joined() -> None:
    platform = Platform(iv_1=S.Processing, iv_2=S.Processing)
    async with waits(platform, "iv_1"):
        async with waits(platform, "iv_2"):
            stream = await opened(platform)
            await until_async(lambda: "iv_2" in stream.ids)
        platform.set("iv_2", S.Completed)
        await until_async(stream.queue.empty)
        async with waits(platform, "iv_2") as (again,):
            await again.end()
    assert platform.changes[-1] == ({"iv_2"}, {"iv_2"}, {})


async def test_outage_has_one_line_in_a_task_log_and_its_end_another(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    platform = Platform(iv_1=S.Processing)
    async with waits(platform, "iv_1") as (one,):
        for count in (1, 2, 3):
            (await opened(platform, count)).send(broken())
        stream = await opened(platform, 4)
        platform.down = broken()
        stream.send(broken())
        connects = platform.connects
        await until_async(lambda: platform.connects > connects + 3)
        platform.by_id["iv_1"] = S.Completed
        platform.down = None
        await one.end()
    # In a worker all that this package logs goes to the task's log.
    assert [one.getMessage() for one in caplog.records if one.name.startswith("airflow_invocations")] == []
    assert len(one.notices) == 2


async def test_broken_stream_is_resumed_from_its_cursor_without_loss(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(availability, "QUIET_OUTAGE", 5.0)
    platform = Platform(iv_1=S.Queued, iv_2=S.Processing)
    async with waits(platform, "iv_1") as (first,):
        stream = await opened(platform)
        stream.send(CaughtUp(7), 7)
        platform.set("iv_1", S.Processing, 8)
        await until_async(stream.queue.empty)
        stream.send(broken())
        async with waits(platform, "iv_2") as (second,):
            again = await opened(platform, 2)
            assert (again.opened_at, again.ids) == (8, {"iv_1"})
            # The second wait is added to it, and so gets its present status.
            platform.by_id["iv_2"] = S.Completed
            await second.end()
        platform.set("iv_1", S.Completed, 9)
        await first.end()
    assert first.notices == []


async def test_wait_that_joined_while_the_stream_broke_is_in_the_next_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    platform = Platform(iv_1=S.Processing, iv_2=S.Processing)
    change = Stream.change
    changes = 0

    async def lost(self: Stream, *arguments: Any) -> None:
        nonlocal changes
        changes += 1
        if changes == 1:
            raise broken()
        await change(self, *arguments)

    monkeypatch.setattr(Stream, "change", lost)
    async with waits(platform, "iv_1"):
        stream = await opened(platform)
        stream.send(CaughtUp(7), 7)
        await until_async(stream.queue.empty)
        await asyncio.sleep(0.05)  # the watcher has checked for new waits, and found none
        async with waits(platform, "iv_2") as (second,):
            again = await opened(platform, 2)
            await until_async(lambda: "iv_2" in again.ids)
            platform.set("iv_2", S.Completed, 8)
            await second.end()


async def test_wait_that_joins_at_the_moment_of_the_end_gets_it() -> None:
    platform = Platform(iv_1=S.Processing, iv_2=S.Processing)
    async with waits(platform, "iv_1", "iv_2") as (first, _):
        stream = await opened(platform)
        await until_async(stream.queue.empty)
        platform.set("iv_1", S.Completed)
        await until_async(stream.queue.empty)
        async with waits(platform, "iv_1") as (second,):
            await first.end()
            await second.end()


async def test_stream_restarts_if_the_event_sequence_was_reset() -> None:
    platform = Platform(iv_1=S.Processing)
    async with waits(platform, "iv_1") as (one,):
        stream = await opened(platform)
        stream.send(CaughtUp(100), 100)
        await until_async(stream.queue.empty)
        stream.send(broken())
        again = await opened(platform, 2)
        assert again.opened_at == 100
        again.send(CaughtUp(3), 3)
        assert (await opened(platform, 3)).opened_at is None
        platform.set("iv_1", S.Completed)
        await one.end()


async def test_last_wait_to_leave_closes_the_watcher_and_the_next_gets_another() -> None:
    platform = Platform(iv_1=S.Processing)
    async with waits(platform, "iv_1"):
        await opened(platform)
    await until_async(lambda: platform.closed == 1)
    assert WatcherRegistry.current()._watchers == {}
    async with waits(platform, "iv_1") as (one,):
        await opened(platform, 2)
        platform.set("iv_1", S.Completed)
        await one.end()


async def test_streams_that_break_before_they_catch_up_are_replaced_by_polling() -> None:
    platform = Platform()
    async with waits(platform, "iv_1") as (one,):
        for count in range(1, watcher.BROKEN_STREAMS + 2):
            (await opened(platform, count)).send(broken())
        await until_async(lambda: platform.asked_for("ended") > watcher.BROKEN_STREAMS + 1)
        platform.by_id["iv_1"] = S.Completed
        await one.end()


async def test_stream_that_never_opens_does_not_hide_the_result_of_a_query() -> None:
    class Silent(Platform):
        @asynccontextmanager
        async def watch(
            self, ids: Collection[str], logs: Mapping[str, str | None], cursor: int | None
        ) -> AsyncIterator[Stream]:
            raise UnavailableError("nothing came in time")
            yield

    platform = Silent(iv_1=S.Processing)
    async with waits(platform, "iv_1") as (one,):
        await until_async(lambda: platform.asked_for("ended"))
        platform.by_id["iv_1"] = S.Completed
        await one.end()
    assert one.notices == []


async def test_stream_is_reopened_after_a_time_of_polling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watcher, "WITHOUT_STREAM", 0.1)
    platform = Platform(iv_1=S.Processing)
    async with waits(platform, "iv_1") as (one,):
        for count in range(1, watcher.BROKEN_STREAMS + 2):
            (await opened(platform, count)).send(broken())
        await opened(platform, watcher.BROKEN_STREAMS + 2)
        platform.set("iv_1", S.Completed)
        await one.end()


# -- poll --------------------------------------------------------------------------------------------


def polled(**statuses: InvocationStatus) -> Platform:
    platform = Platform(**statuses)
    platform.pushes = False
    return platform


async def test_polling_uses_one_query_for_all_waits() -> None:
    ids = [f"iv_{number}" for number in range(2500)]
    platform = polled(**dict.fromkeys(ids, S.Processing))
    async with waits(platform, *ids, poll_interval=0.2) as ones:
        await until_async(lambda: platform.asked_for("ended") >= 3)
        assert [len(batch) for _, batch in platform.asked[:3]] == [1000, 1000, 500]
        platform.by_id = dict.fromkeys(ids, S.Completed)
        await asyncio.gather(*(one.end() for one in ones))
    assert {kind for kind, _ in platform.asked} == {"ended"}


async def test_rejected_batches_become_a_few_concurrent_single_requests() -> None:
    ids = [f"iv_{number}" for number in range(50)]
    platform = polled(**dict.fromkeys(ids, S.Processing))
    platform.batches = False
    async with waits(platform, *ids) as ones:
        await until_async(lambda: platform.asked_for("get") > 100)
        platform.by_id = dict.fromkeys(ids, S.Completed)
        await asyncio.gather(*(one.end() for one in ones))
    assert platform.asked_for("ended") == 1
    assert 1 < platform.most_singles <= watcher.SINGLES


async def test_shortest_poll_interval_applies_to_all_waits() -> None:
    platform = polled(iv_1=S.Processing, iv_2=S.Processing)
    async with waits(platform, "iv_1", poll_interval=3600):
        await until_async(lambda: platform.asked_for("ended") == 1)
        async with waits(platform, "iv_2", poll_interval=0.01):
            await asyncio.sleep(0.05)
    # The tick that began with the patient wait alone goes on; the next one is quick. A wait that comes looks
    # at its invocation itself before.
    assert platform.asked_for("ended") == 1


# -- failed polls ------------------------------------------------------------------------------------


@pytest.mark.parametrize("pushes", [True, False], ids=["push", "poll"])
@pytest.mark.parametrize("error", [UnavailableError("gone"), RateLimitedError("slow down")])
async def test_failed_poll_is_no_verdict(pushes: bool, error: Exception) -> None:
    platform = Platform(iv_1=S.Processing)
    platform.pushes = pushes
    platform.down = error
    async with waits(platform, "iv_1") as (one,):
        await until_async(lambda: one.notices)
        assert "the invocation may still be running" in one.notices[0]
        platform.down = None
        platform.by_id["iv_1"] = S.Completed
        await one.end()
    if not pushes:
        assert one.notices[-1] == "The platform is available again"


async def test_outage_ends_a_wait_after_its_own_limit_with_the_time_it_began() -> None:
    platform = Platform(iv_1=S.Processing, iv_2=S.Processing)
    platform.down = UnavailableError("gone for good")
    began = time.time()
    async with waits(platform, "iv_2", outage_limit=3600.0) as (patient,):
        async with waits(platform, "iv_1", outage_limit=0.3) as (one,):
            with pytest.raises(WaitAbandoned, match="gone for good") as abandoned:
                await one.end()
        assert abandoned.value.reason is AbandonReason.Unreachable
        assert 0.25 < time.time() - began < 3
        assert not patient.task.done()


async def test_unreadable_connection_is_an_outage_and_a_misconfigured_one_is_not() -> None:
    platform = Platform(iv_1=S.Completed)
    failures: list[Exception] = [RuntimeError("the metadata database is away")] * 2

    async def connect() -> Any:
        if failures:
            raise failures.pop()
        return await platform.connect()

    async for _ in wait_until_terminal("c", connect, WaitOptions("iv_1", poll_interval=0.01)):
        pass
    failures += [ValueError("host is empty")] * 2
    with pytest.raises(WaitAbandoned, match="host is empty") as abandoned:
        async for _ in wait_until_terminal("c", connect, WaitOptions("iv_1", poll_interval=0.01)):
            pass
    assert abandoned.value.reason is AbandonReason.Rejected


@pytest.mark.parametrize("pushes", [True, False], ids=["push", "poll"])
async def test_rejected_token_is_read_again_once(pushes: bool) -> None:
    platform = Platform(iv_1=S.Processing)
    platform.pushes = pushes
    async with waits(platform, "iv_1") as (one,):
        await until_async(lambda: platform.streams or platform.asked)
        platform.next_token_works = True
        platform.by_id["iv_1"] = S.Completed
        platform.down = UnauthorizedError("the token isn't known")
        for stream in platform.streams:
            stream.send(platform.down)
        await one.end()
    assert platform.connects == 2

    platform.next_token_works = False
    platform.down = UnauthorizedError("the token isn't known")
    async with waits(platform, "iv_1") as (one,):
        assert await one.reason() is AbandonReason.Rejected


@pytest.mark.parametrize("pushes", [True, False], ids=["push", "poll"])
async def test_rejection_of_a_token_that_worked_is_an_outage_for_a_while(
    pushes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    platform = Platform(iv_1=S.Processing)
    platform.pushes = pushes
    platform.next_token_works = False
    platform.down = UnauthorizedError("the token isn't known here")

    async def let_in_again() -> None:
        await until_async(lambda: platform.connects > 3)
        platform.by_id["iv_1"] = S.Completed
        platform.down = None

    # The task has invoked with it, so that it had worked, though this watcher has never had an answer.
    waiting = WaitOptions("iv_1", poll_interval=0.01, accepted=True)
    helper = asyncio.create_task(let_in_again())
    (notice,) = [step async for step in wait_until_terminal("c", platform.connect, waiting)]
    await helper
    assert notice == Notice(
        "The platform rejects the connection's credentials, which it accepted before; trying again for 60 s: "
        "the token isn't known here"
    )

    monkeypatch.setattr(rejection, "REJECTION_LIMIT", 0.05)
    platform.by_id["iv_1"] = S.Processing
    platform.down = UnauthorizedError("the token isn't known here")
    with pytest.raises(WaitAbandoned, match="isn't known here") as abandoned:
        async for _ in wait_until_terminal("c", platform.connect, waiting):
            pass
    assert abandoned.value.reason is AbandonReason.AccessLost
    with pytest.raises(WaitAbandoned) as abandoned:
        await fetch_record(platform.connect, waiting)
    assert abandoned.value.reason is AbandonReason.AccessLost
    # A retry may find that it works again.
    assert type(task_error(abandoned.value, "a", "iv_1", "")) is PlatformUnavailableError


async def test_failed_watcher_is_replaced_without_loss(
    caplog: pytest.LogCaptureFixture,
) -> None:
    platform = Platform(iv_1=S.Processing, iv_2=S.Processing)
    async with waits(platform, "iv_1", "iv_2", lines=LogQueue()) as ones:
        stream = await opened(platform)
        stream.send(lines_of("iv_1", ["a"], "1"))
        await until_async(lambda: ones[0].lines)
        stream.send(KeyError("a bug"))
        again = await opened(platform, 2)
        await until_async(lambda: again.ids == {"iv_1", "iv_2"})
        assert again.logs["iv_1"] == "1"
        for invocation_id in ("iv_1", "iv_2"):
            platform.set(invocation_id, S.Completed)
        await asyncio.gather(*(one.end() for one in ones))
    assert "another one takes over" in caplog.text


async def test_watcher_that_always_fails_is_replaced_a_limited_number_of_times() -> None:
    platform = Platform(iv_1=S.Processing)
    platform.down = KeyError("a bug")
    async with waits(platform, "iv_1") as (one,):
        with pytest.raises(KeyError):
            await one.end()


# -- what neither a stream nor a batch reports --------------------------------------------------------


@pytest.mark.parametrize("pushes", [True, False], ids=["push", "poll"])
async def test_invocation_is_lost_after_repeated_lookups_fail(
    pushes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watcher, "AUDIT_INTERVAL", 0.02)
    platform = Platform(iv_1=S.Processing, iv_2=S.Processing)
    platform.pushes = pushes
    async with waits(platform, "iv_1", "iv_2") as (one, other):
        await until_async(lambda: platform.asked_for("statuses"))
        del platform.by_id["iv_1"]
        assert await one.reason() is AbandonReason.Lost
        assert platform.asked_for("get") >= watcher.LOST_AFTER
        assert not other.task.done()


async def test_audit_finds_an_end_that_the_stream_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watcher, "AUDIT_INTERVAL", 0.02)
    platform = Platform(iv_1=S.Processing)
    async with waits(platform, "iv_1") as (one,):
        await opened(platform)
        platform.by_id["iv_1"] = S.Completed
        await one.end()


async def test_polling_reads_logs_of_running_invocations_only() -> None:
    platform = polled(iv_1=S.Queued, iv_2=S.Processing, iv_3=S.Processing)
    wanted = waits(platform, "iv_1", "iv_2", lines=LogQueue())
    async with wanted as (queued, running), waits(platform, "iv_3"):
        platform.log_pages = [page(["a"], "1")]
        await until_async(lambda: running.lines == ["a"])
        assert platform.asked_for("logs") == 1
        asked = platform.asked_for("statuses")
        await until_async(lambda: platform.asked_for("statuses") > asked + 2)
        # Running invocations, and those without a log reader, are in the query for ended ones.
        assert all("iv_1" in ids for kind, ids in platform.asked[-6:] if kind == "statuses")
        assert all("iv_1" not in ids for kind, ids in platform.asked[-6:] if kind == "ended")
        assert queued.lines == []
        platform.log_pages = [page(["b"], "1")] * 2
        platform.by_id["iv_1"] = S.Processing
        await until_async(lambda: queued.lines == ["b"])


async def test_single_requests_find_lost_invocations() -> None:
    platform = polled(iv_1=S.Processing)
    platform.batches = False
    async with waits(platform, "iv_1", "iv_gone") as (_, gone):
        assert await gone.reason() is AbandonReason.Lost


# -- logs --------------------------------------------------------------------------------------------


async def test_lines_come_in_order_with_their_cursors() -> None:
    platform = Platform(iv_1=S.Processing, iv_2=S.Processing)
    async with waits(platform, "iv_1", lines=LogQueue(), cursor="5") as (one,):
        stream = await opened(platform)
        assert stream.logs == {"iv_1": "5"}
        async with waits(platform, "iv_2") as (other,):
            stream.send(lines_of("iv_1", ["a", "b"], "7"))
            stream.send(lines_of("iv_2", ["not wanted"], "1"))
            stream.send(lines_of("iv_1", ["c"], "8"))
            platform.set("iv_1", S.Completed)
            await one.end()
            assert other.lines == []
    assert (one.lines, one.cursor) == (["a", "b", "c"], "8")


async def test_log_without_room_is_stopped_and_resumed_from_its_cursor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(wait_handle, "LOG_SETTINGS", LogSettings(behind=0.0))
    platform = Platform(iv_1=S.Processing)
    queue = LogQueue(settings=LogSettings(queue_lines=3))
    async with waits(platform, "iv_1", lines=queue) as (one,):
        stream = await opened(platform)
        stream.send(lines_of("iv_1", ["a", "b", "c"], "3"))
        await until_async(lambda: one.cursor == "3")
        queue.put(page(["a", "b", "c"], "3").items, "3")
        stream.send(lines_of("iv_1", ["no", "room"], "5", begins_at="3"))
        await until_async(lambda: platform.changes)
        assert platform.changes == [({"iv_1"}, {"iv_1"}, {})]
        # What was on its way is passed over.
        stream.send(lines_of("iv_1", ["on its way"], "6", begins_at="5"))
        await until_async(stream.queue.empty)
        while len(queue):
            queue.write_next()
        await until_async(lambda: len(platform.changes) == 2)
        assert platform.changes[1] == (set(), set(), {"iv_1": "3"})
        stream.send(lines_of("iv_1", ["late on its way"], "6", begins_at="5"))
        stream.send(NewLines("iv_1", page(["no", "room"], "5", has_next=True), "3"))
        await until_async(lambda: one.cursor == "5")
        assert one.lines == ["a", "b", "c", "no", "room"]
        assert one.notices == ["behind"]
        # An end doesn't wait for lines; the reader resumes from the cursor.
        queue.put(page(["no", "room", "d"], "9").items, "9")
        stream.send(lines_of("iv_1", ["x"] * 100, "105", begins_at="5"))
        platform.set("iv_1", S.Completed)
        await one.end()


async def test_unconsumed_lines_are_bounded() -> None:
    platform = Platform(iv_1=S.Processing)
    is_free = asyncio.Event()
    taken: list[str] = []

    async def take() -> None:
        async for step in wait_until_terminal(
            "c", platform.connect, WaitOptions("iv_1", poll_interval=0.01, lines=LogQueue())
        ):
            if isinstance(step, NewLines):
                taken.extend(entry.log for entry in step.records)
                await is_free.wait()

    task = asyncio.create_task(take())
    stream = await opened(platform)
    for number in range(20):
        begins_at = None if number == 0 else str(number)
        stream.send(lines_of("iv_1", [f"{number}"] * 100, str(number + 1), begins_at=begins_at))
        await until_async(stream.queue.empty)
        await asyncio.sleep(0)
    await until_async(lambda: platform.changes)
    is_free.set()
    await until_async(lambda: len(platform.changes) == 2)
    (cursor,) = platform.changes[1][2].values()
    assert len(taken) == 100 * int(cursor or 0) <= 100 + wait_handle.LOG_SETTINGS.queue_lines
    platform.set("iv_1", S.Completed)
    async with asyncio.timeout(5):
        await task


async def test_log_has_one_reader_at_a_time() -> None:
    platform = Platform(iv_1=S.Processing)
    async with waits(platform, "iv_1", lines=LogQueue()) as (first,):
        stream = await opened(platform)
        async with waits(platform, "iv_1", lines=LogQueue()) as (second,):
            stream.send(lines_of("iv_1", ["a"], "1"))
            platform.set("iv_1", S.Completed)
            await first.end()
            await second.end()
    assert (first.lines, second.lines, second.cursor) == (["a"], [], None)


async def test_unreadable_log_is_reported_and_ends_no_wait() -> None:
    platform = Platform(iv_1=S.Processing)
    async with waits(platform, "iv_1", lines=LogQueue()) as (one,):
        stream = await opened(platform)
        stream.send(UnreadableLog("iv_1", "the cursor is none of ours"))
        await until_async(lambda: one.notices)
        assert not one.task.done()
        platform.set("iv_1", S.Completed)
        await one.end()


async def test_polling_reads_logs_from_their_cursor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        log_polling, "LOG_SETTINGS", LogSettings(least_pause=0.005, most_pause=0.02, reads=1000.0)
    )
    platform = polled(iv_1=S.Processing)
    platform.log_pages = [page(["a"], "1", has_next=True), UnavailableError("later"), page(["b"], "2")]
    async with waits(platform, "iv_1", lines=LogQueue()) as (one,):
        await until_async(lambda: one.cursor == "2")
        platform.log_pages = [NotFoundError("no log is kept")]
        await until_async(lambda: one.notices)
        asked = platform.asked_for("logs")
        await asyncio.sleep(0.05)
        assert platform.asked_for("logs") == asked
        platform.by_id["iv_1"] = S.Completed
        await one.end()
    assert one.lines == ["a", "b"]


# -- time --------------------------------------------------------------------------------------------


async def test_invocation_is_cancelled_at_the_deadline() -> None:
    platform = Platform(iv_1=S.Processing)
    async with waits(platform, "iv_1", deadline=time.time() + 0.1) as (one,):
        assert await one.reason() is AbandonReason.TimedOut
    assert platform.cancelled == ["iv_1"]


async def test_wait_without_cancels_leaves_the_invocation_active_at_its_deadline() -> None:
    platform = Platform(iv_1=S.Processing)
    async with waits(platform, "iv_1", deadline=time.time() + 0.1, cancels=False) as (one,):
        assert await one.reason() is AbandonReason.TimedOut
    assert platform.cancelled == []


async def test_invocation_that_ended_in_time_is_not_timed_out() -> None:
    platform = Platform(iv_1=S.Processing)
    async with waits(platform, "iv_1", deadline=time.time() + 0.1) as (one,):
        await opened(platform)
        platform.by_id["iv_1"] = S.Completed  # without a message on the stream
        await one.end()
    assert platform.cancelled == []


async def test_invocation_that_completes_during_its_cancel_is_completed() -> None:
    class Stubborn(Platform):
        async def cancel(self, invocation_id: str) -> None:
            await super().cancel(invocation_id)
            self.by_id[invocation_id] = S.Completed

    platform = Stubborn(iv_1=S.Processing)
    async with waits(platform, "iv_1", deadline=time.time() + 0.1) as (one,):
        await one.end()
    assert platform.cancelled == ["iv_1"]


async def test_invocation_is_cancelled_at_the_queue_deadline_only_while_queued() -> None:
    platform = Platform(iv_1=S.Queued, iv_2=S.Scheduled)
    async with waits(platform, "iv_1", "iv_2", queue_deadline=time.time() + 0.1) as (queued, scheduled):
        assert await queued.reason() is AbandonReason.QueuedTooLong
        await asyncio.sleep(0.05)
        assert not scheduled.task.done()
    assert platform.cancelled == ["iv_1"]


# -- anything at any time ----------------------------------------------------------------------------


class Recording(Platform):
    """A platform that keeps its events, as a real one does, and replays what a stream missed."""

    def __init__(self, chance: random.Random, **statuses: InvocationStatus) -> None:
        super().__init__(**statuses)
        self.chance = chance
        self.events: list[tuple[str, InvocationStatus]] = []

    def happen(self, invocation_id: str, status: InvocationStatus) -> None:
        """Change a status; streams send it if they name the invocation then."""
        self.by_id[invocation_id] = status
        self.events.append((invocation_id, status))
        for stream in self.streams:
            if invocation_id in stream.ids:
                stream.send(StatusSnapshot(invocation_id, status), len(self.events))

    @asynccontextmanager
    async def watch(
        self, ids: Collection[str], logs: Mapping[str, str | None], cursor: int | None
    ) -> AsyncIterator[Stream]:
        async with super().watch(ids, logs, cursor) as stream:
            for number, (invocation_id, status) in enumerate(self.events, 1):
                if cursor is not None and number > cursor and invocation_id in stream.ids:
                    stream.send(StatusSnapshot(invocation_id, status), number)
            stream.send(CaughtUp(len(self.events)), len(self.events))
            yield stream

    def disturb(self) -> None:
        """Something goes wrong, or right again."""
        match self.chance.randrange(6):
            case 0 | 1:
                for stream in self.streams[-1:]:
                    stream.send(broken())
            case 2:
                self.down = UnavailableError("away")
            case 3:
                for stream in self.streams[-1:]:
                    stream.send(KeyError("a bug"))
            case _:
                self.down = None


@pytest.mark.parametrize("seed", range(60))
async def test_every_wait_ends_once_and_with_its_invocation_whatever_happens(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watcher, "BROKEN_STREAMS", 10**6)
    monkeypatch.setattr(wait, "CRASHES", 10**6)
    monkeypatch.setattr(wait, "CRASH_PAUSE", 0.0)
    chance = random.Random(seed)
    # Few waits: of many, one that leaves wakes the watcher for the others, too.
    ids = [f"iv_{number}" for number in range(1 + seed % 4)]
    platform = Recording(chance, **dict.fromkeys(ids, S.Queued))
    remaining = ids.copy()
    ones: list[One] = []
    left: list[One] = []
    try:
        for _ in range(40):
            match chance.randrange(5):
                case 0:
                    ones.append(One(platform, chance.choice(ids)))
                case 1 if ones:
                    left.append(ones.pop(chance.randrange(len(ones))))
                    left[-1].task.cancel()
                case 2 if remaining:
                    invocation_id = chance.choice(remaining)
                    ended = chance.random() < 0.5
                    platform.happen(invocation_id, S.Completed if ended else S.Processing)
                    if ended:
                        remaining.remove(invocation_id)
                case 3:
                    platform.disturb()
                case _:
                    await asyncio.sleep(chance.choice([0, 0, 0.001, 0.01]))
            for one in ones:
                assert not (one.task.done() and one.waiting.invocation_id in remaining)
        platform.down = None
        for invocation_id in remaining:
            platform.happen(invocation_id, S.Completed)
        await asyncio.gather(*(one.end() for one in ones))
    finally:
        for one in (*ones, *left):
            one.task.cancel()
        await asyncio.gather(*(one.task for one in (*ones, *left)), return_exceptions=True)
    await until_async(lambda: not WatcherRegistry.current()._watchers)
