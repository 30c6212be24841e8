"""A watch over runs: at once while the stream speaks, soon when it doesn't, and every line before the end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from typing import Any

import pytest
from connectrpc.code import Code

from airflow_invocations.models import (
    CaughtUp,
    InvocationStatus,
    NewLines,
    StatusSnapshot,
    UnreadableLog,
    WatchMessage,
)
from airflow_invocations.platforms import TransientError, UnauthorizedError, UnsupportedError
from airflow_invocations.platforms.flyte import FlytePlatform, watch
from airflow_invocations.platforms.flyte.watch import FlyteWatch

from ...platforms.flyte_server import DOMAIN, PROJECT, FlyteServer
from ...support.waiting import until_async
from .conftest import deploy, ended, request, running, settings

pytestmark = pytest.mark.anyio
S = InvocationStatus


@pytest.fixture
def rare_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the stream can be quick."""
    monkeypatch.setattr(watch, "LIST_INTERVAL", 60.0)


@pytest.fixture
def frequent_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "LIST_INTERVAL", 0.2)


async def told_until(
    told: AsyncIterator[WatchMessage], holds: Callable[[WatchMessage], bool]
) -> list[WatchMessage]:
    """Everything that is told, up to what something holds for."""
    everything: list[WatchMessage] = []
    async with asyncio.timeout(10):
        async for one in told:
            everything.append(one)
            if holds(one):
                return everything
    raise AssertionError("a watch doesn't end just so")


def is_end(one: WatchMessage) -> bool:
    return isinstance(one, StatusSnapshot) and one.status.is_terminal


def lines_of(told: list[WatchMessage]) -> list[str]:
    """What the runs' pods have written."""
    return [line for line in all_lines_of(told) if not line.startswith("Pulling: ")]


def all_lines_of(told: list[WatchMessage]) -> list[str]:
    """The same, and what the cluster said of the pods, of which a watch that begins late tells nothing."""
    return [line.log for one in told if isinstance(one, NewLines) for line in one.page.items]


async def hanging(flyte: FlytePlatform, key: str = "once", action: str = "env.greet") -> str:
    """A run that goes on until it is aborted."""
    invoked = await flyte.invoke(action, request(key, trouble="hangs"))
    await running(flyte, invoked.invocation_id)
    return invoked.invocation_id


@pytest.mark.usefixtures("rare_looks")
class TestStream:
    async def test_the_present_comes_first_then_each_change_at_once(self, flyte: FlytePlatform) -> None:
        run = await hanging(flyte)
        async with flyte.watch([run], {}, None) as watching:
            told = aiter(watching)
            first = await told_until(told, lambda one: isinstance(one, CaughtUp))
            assert first == [StatusSnapshot(run, S.Processing), CaughtUp(0)]
            await flyte.cancel(run)
            assert await told_until(told, is_end) == [StatusSnapshot(run, S.Cancelled)]
            assert watching.cursor is None

    async def test_a_list_that_is_answered_after_the_end_does_not_undo_it(
        self, flyte: FlytePlatform, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = await hanging(flyte)
        asked, answered = asyncio.Event(), asyncio.Event()
        statuses = flyte._runs.statuses

        async def slow(invocation_ids: Collection[str]) -> list[StatusSnapshot]:
            found = await statuses(invocation_ids)
            asked.set()
            await answered.wait()
            return found

        monkeypatch.setattr(flyte._runs, "statuses", slow)
        async with flyte.watch([run], {}, None) as watching:
            told = aiter(watching)
            await asked.wait()
            await flyte.cancel(run)
            assert (await told_until(told, is_end))[-1] == StatusSnapshot(run, S.Cancelled)
            answered.set()
            assert await told_until(told, lambda one: isinstance(one, CaughtUp)) == [CaughtUp(0)]

    async def test_added_runs_are_reported_and_removed_ones_are_not(
        self, server: FlyteServer, flyte: FlytePlatform
    ) -> None:
        deploy(server, project="bags")
        one, two = await hanging(flyte, "one"), await hanging(flyte, "two", "bags/development/env.greet")
        async with flyte.watch([one], {}, None) as watching:
            told = aiter(watching)
            await told_until(told, lambda said: isinstance(said, CaughtUp))
            await watching.change([two], [one], {})
            assert await told_until(told, lambda _: True) == [StatusSnapshot(two, S.Processing)]
            await flyte.cancel(one)
            await flyte.cancel(two)
            assert await told_until(told, is_end) == [StatusSnapshot(two, S.Cancelled)]
            # Nobody is in the first project any more.
            assert [place.project for place in watching._streams] == ["bags"]
        assert {request.project_id.name for request in server.calls("WatchRuns")} == {PROJECT, "bags"}

    async def test_one_stream_is_enough_for_all_runs_of_a_project(
        self, server: FlyteServer, flyte: FlytePlatform
    ) -> None:
        runs = [await hanging(flyte, f"{number}") for number in range(20)]
        async with flyte.watch(runs, {}, None) as watching:
            told = aiter(watching)
            await told_until(told, lambda one: isinstance(one, CaughtUp))
            await asyncio.gather(*(flyte.cancel(run) for run in runs))
            ends = set()
            while len(ends) < len(runs):
                ends |= {one for one in await told_until(told, is_end) if is_end(one)}
        assert len(server.calls("WatchRuns")) == 1
        assert ends == {StatusSnapshot(run, S.Cancelled) for run in runs}

    async def test_a_stream_that_says_nothing_is_opened_anew_and_what_it_missed_is_asked_for(
        self, server: FlyteServer, flyte: FlytePlatform, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(watch, "STREAM_SILENCE", 0.3)
        run = await hanging(flyte)
        async with flyte.watch([run], {}, None) as watching:
            told = aiter(watching)
            await told_until(told, lambda one: isinstance(one, CaughtUp))
            server.backend.faults.watches_are_silent = True
            await flyte.cancel(run)
            assert await told_until(told, is_end) == [StatusSnapshot(run, S.Cancelled)]
        assert len(server.calls("WatchRuns")) > 1


async def test_a_stream_that_is_ended_at_once_is_not_opened_anew_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steps: list[str] = []
    sleep, enough = asyncio.sleep, asyncio.Event()

    async def nothing() -> AsyncIterator[dict[str, Any]]:
        return
        yield {}

    class EndsStreams:
        @asynccontextmanager
        async def stream(self, *_: Any) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
            steps.append("stream")
            if len(steps) > 5:
                enough.set()
            await sleep(0)
            yield nothing()

    async def pause(seconds: float) -> None:
        if seconds > 0:
            steps.append("pause")
        await sleep(0)

    class NoRuns:
        async def statuses(self, invocation_ids: Collection[str]) -> list[StatusSnapshot]:
            return []

    monkeypatch.setattr(watch.asyncio, "sleep", pause)
    connect: Any = EndsStreams()
    runs: Any = NoRuns()
    watching = FlyteWatch(runs, connect, None, [f"{PROJECT}/{DOMAIN}/r"], {})
    async with asyncio.timeout(10):
        await enough.wait()
    await watching.close()
    assert steps[:6] == ["stream", "pause"] * 3


@pytest.mark.usefixtures("frequent_looks")
class TestLists:
    async def test_a_stream_that_stays_open_and_silent_loses_no_end(
        self, server: FlyteServer, flyte: FlytePlatform
    ) -> None:
        server.backend.faults.watches_are_silent = True
        run = await hanging(flyte)
        async with flyte.watch([run], {}, None) as watching:
            told = aiter(watching)
            await told_until(told, lambda one: isinstance(one, CaughtUp))
            await flyte.cancel(run)
            assert await told_until(told, is_end) == [StatusSnapshot(run, S.Cancelled)]
        assert len(server.calls("WatchRuns")) == 1

    async def test_without_a_stream_lists_are_enough(
        self, server: FlyteServer, flyte: FlytePlatform, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(watch, "RUNS", "flyteidl2.workflow.NoSuchService")
        run = await hanging(flyte)
        async with flyte.watch([run], {}, None) as watching:
            told = aiter(watching)
            await told_until(told, lambda one: isinstance(one, CaughtUp))
            await flyte.cancel(run)
            assert await told_until(told, is_end) == [StatusSnapshot(run, S.Cancelled)]
        assert server.calls("WatchRuns") == []

    @pytest.mark.parametrize(
        ("code", "kind"), [(Code.UNAVAILABLE, TransientError), (Code.UNAUTHENTICATED, UnauthorizedError)]
    )
    async def test_a_platform_that_cannot_be_asked_ends_the_watch(
        self, server: FlyteServer, flyte: FlytePlatform, code: Code, kind: type[Exception]
    ) -> None:
        run = await hanging(flyte)
        async with flyte.watch([run], {}, None) as watching:
            told = aiter(watching)
            await told_until(told, lambda one: isinstance(one, CaughtUp))
            server.backend.faults.answers = code
            with pytest.raises(kind, match="so it was told"):
                await told_until(told, is_end)


class TestLogs:
    async def test_lines_come_as_they_are_written_and_the_last_ones_before_the_end(
        self, flyte: FlytePlatform
    ) -> None:
        run = (await flyte.invoke("env.greet", request(count=250))).invocation_id
        async with flyte.watch([run], {run: None}, None) as watching:
            told = await told_until(aiter(watching), is_end)
        assert lines_of(told) == [f"hello ada {number}" for number in range(250)]
        assert told[-1] == StatusSnapshot(run, S.Completed)

    async def test_lines_of_every_attempt_are_sent_once(self, flyte: FlytePlatform) -> None:
        run = (await flyte.invoke("env.greet", request(trouble="once", count=2))).invocation_id
        async with flyte.watch([run], {run: None}, None) as watching:
            told = await told_until(aiter(watching), is_end)
        assert lines_of(told) == ["the first try", "hello ada 0", "hello ada 1"]

    async def test_a_stream_that_breaks_loses_no_line_and_repeats_none(
        self, server: FlyteServer, flyte: FlytePlatform
    ) -> None:
        server.backend.faults.breaking_logs = 1
        run = (await flyte.invoke("env.greet", request(count=250))).invocation_id
        async with flyte.watch([run], {run: None}, None) as watching:
            told = await told_until(aiter(watching), is_end)
        assert lines_of(told) == [f"hello ada {number}" for number in range(250)]
        assert server.backend.faults.breaking_logs == 0

    async def test_a_log_goes_on_from_its_cursor(self, flyte: FlytePlatform) -> None:
        run = (await flyte.invoke("env.greet", request(count=3))).invocation_id
        await ended(flyte, run)
        page = await flyte.logs(run)
        # The second line is the last that somebody has taken.
        attempt, _, _ = str(page.last_read).split("|")
        second = page.items[1].timestamp.isoformat().replace("+00:00", "000")
        async with flyte.watch([run], {run: f"{attempt}|{second}|1"}, None) as watching:
            assert lines_of(await told_until(aiter(watching), is_end)) == ["hello ada 2"]

    async def test_lines_that_are_not_wanted_any_more_stop_and_come_again(self, flyte: FlytePlatform) -> None:
        run = await hanging(flyte)
        async with flyte.watch([run], {run: None}, None) as watching:
            told = aiter(watching)
            everything = await told_until(told, lambda one: isinstance(one, NewLines))
            assert lines_of(everything) == ["hanging"]
            await watching.change([run], [run], {})
            assert watching._tails == {}
            await watching.change([], [], {run: None})
            again = await told_until(told, lambda one: isinstance(one, NewLines))
            assert lines_of(again) == ["hanging"]

    async def test_a_cursor_that_is_none_is_said_and_the_status_is_told_all_the_same(
        self, flyte: FlytePlatform
    ) -> None:
        run = await hanging(flyte)
        async with flyte.watch([run], {run: "nonsense"}, None) as watching:
            told = aiter(watching)
            await told_until(told, lambda one: isinstance(one, UnreadableLog))
            await flyte.cancel(run)
            assert (await told_until(told, is_end))[-1] == StatusSnapshot(run, S.Cancelled)

    async def test_more_logs_than_connections_take_turns(
        self, server: FlyteServer, flyte: FlytePlatform, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(watch, "MAX_LOGS", 2)
        monkeypatch.setattr(watch, "TURN", 0.2)
        runs = [await hanging(flyte, f"{number}") for number in range(6)]
        heard: set[str] = set()
        async with asyncio.timeout(20), flyte.watch(runs, dict.fromkeys(runs), None) as watching:
            async for one in watching:
                heard |= {one.invocation_id} if isinstance(one, NewLines) else set()
                if heard == set(runs):
                    break


class TestLife:
    async def test_streams_are_closed(self, server: FlyteServer) -> None:
        async with FlytePlatform(settings(server)) as flyte:
            runs = [await hanging(flyte, f"{number}") for number in range(3)]
            async with flyte.watch(runs, dict.fromkeys(runs), None) as watching:
                await told_until(aiter(watching), lambda one: isinstance(one, NewLines))
                tasks = set(watching._tasks)
                assert len(tasks) >= 5
            assert all(task.done() for task in tasks)

        async def is_left_alone() -> bool:
            return server.connections == 0

        await until_async(is_left_alone)

    async def test_a_wait_that_is_cancelled_is_cancelled(self, flyte: FlytePlatform) -> None:
        run = await hanging(flyte)

        async def wait() -> None:
            async with flyte.watch([run], {run: None}, None) as watching:
                await told_until(aiter(watching), is_end)

        task = asyncio.create_task(wait())
        await asyncio.sleep(0.3)
        task.cancel()
        await asyncio.wait({task}, timeout=2)
        assert task.cancelled()

    async def test_too_many_projects_are_rejected_on_entering_and_later(self, flyte: FlytePlatform) -> None:
        many = [f"p{number}/{DOMAIN}/r" for number in range(watch.MAX_SCOPES + 1)]
        with pytest.raises(UnsupportedError, match="allowed: 50"):
            async with flyte.watch(many, {}, None):
                pass
        async with flyte.watch(many[:2], {}, None) as watching:
            assert isinstance(watching, FlyteWatch)
            with pytest.raises(UnsupportedError):
                await watching.change(many[2:], [], {})
