"""WatchHub without a network: bounded when nobody reads, told when they lost their place, and forgotten."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from airflow_invocations.models import (
    CaughtUp,
    CursorLost,
    InvocationEvent,
    InvocationStatus,
    LogProcess,
    NewLines,
    StateChanged,
    StreamOpened,
    UnreadableLog,
)
from airflow_invocations.server import watch as watch_module
from airflow_invocations.server import watch_hub as watching
from airflow_invocations.server.db import Store
from airflow_invocations.server.errors import InvalidRequestError, UnavailableError
from airflow_invocations.server.execution.logs import LogFiles
from airflow_invocations.server.watch import Watch
from airflow_invocations.server.watch_hub import WatchHub

from .conftest import ORG, RUNNER, create, invoke

pytestmark = pytest.mark.anyio


@pytest.fixture
def logs(tmp_path: Path) -> LogFiles:
    return LogFiles(tmp_path / "logs")


@pytest.fixture
def watches(store: Store, logs: LogFiles) -> WatchHub:
    create(store)
    watches = WatchHub(store, logs, lambda _: True)
    store.database.listen_to_events(watches.committed)
    store.states.listen(watches.state_updated)
    logs.listen(watches.log_grew)
    return watches


async def opened(watches: WatchHub, watch: Watch, since: int | None = None) -> AsyncIterator[Any]:
    """A stream that is live: what comes before has been read."""
    stream = watches.stream(watch, since)
    assert isinstance(await anext(stream), StreamOpened)
    while not isinstance(await anext(stream), CaughtUp):
        pass
    return stream


async def test_one_tree_or_the_roots_alone(store: Store, watches: WatchHub) -> None:
    root = invoke(store).invocation_id
    tree = await opened(watches, Watch(ORG, root=root))
    roots = await opened(watches, Watch(ORG, roots_only=True))
    child = invoke(store, invocation_source_id=root).invocation_id
    other = invoke(store).invocation_id
    grandchild = invoke(store, invocation_source_id=child).invocation_id
    assert [(await anext(tree)).invocation_id for _ in range(2)] == [child, grandchild]
    assert (await anext(roots)).invocation_id == other


async def test_updates_of_custom_state(store: Store, watches: WatchHub) -> None:
    invocation_id = invoke(store).invocation_id
    stream = await opened(watches, Watch(ORG, ids={invocation_id}, states=True))
    store.states.set(invocation_id, "half way", ORG)
    assert await anext(stream) == StateChanged(invocation_id, "half way")


async def test_another_organisation_hears_nothing(store: Store, watches: WatchHub) -> None:
    mine, theirs = Watch(ORG), Watch("og_other")
    stream = await opened(watches, mine)
    await opened(watches, theirs)
    invoke(store)
    assert isinstance(await anext(stream), InvocationEvent)
    assert not theirs.waiting


async def test_a_slow_reader_costs_bounded_memory_and_is_told_that_it_lost_its_place(
    store: Store, watches: WatchHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "MAX_WAITING", 10)
    watch = Watch(ORG)
    stream = await opened(watches, watch)
    invoke(store)
    read = await anext(stream)
    for _ in range(30):
        invoke(store)
        assert len(watch.waiting) <= 10
    rest = [told async for told in stream]
    assert rest == [CursorLost(read.cursor)]
    assert len(watches) == 0
    again = watches.stream(Watch(ORG), since=read.cursor)
    missed = [told async for told in _until_caught(again)]
    assert len([told for told in missed if isinstance(told, InvocationEvent)]) == 30


async def _until_caught(stream: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for told in stream:
        yield told
        if isinstance(told, CaughtUp):
            return


async def test_events_during_the_replay_are_sent_once(store: Store, watches: WatchHub) -> None:
    before = [invoke(store).invocation_id for _ in range(5)]
    stream = watches.stream(Watch(ORG), since=0)
    seen: list[InvocationEvent] = []
    meanwhile: list[str] = []
    async for told in stream:
        if isinstance(told, InvocationEvent):
            seen.append(told)
        if isinstance(told, StreamOpened | InvocationEvent) and len(meanwhile) < 6:
            meanwhile.append(invoke(store).invocation_id)
        if len(seen) == 11:
            break
    assert [event.invocation_id for event in seen] == [*before, *meanwhile]


async def test_lines_come_before_the_end(store: Store, logs: LogFiles, watches: WatchHub) -> None:
    invocation_id = invoke(store).invocation_id
    store.claims.claim(RUNNER)
    stream = await opened(watches, Watch(ORG, ids={invocation_id}, cursors={invocation_id: None}))
    writer = logs.writer(invocation_id)
    writer.say(LogProcess.Action, "the last words")
    writer.close()
    store.aborts.request(invocation_id, "enough", ORG)
    store.claims.transition_owned(invocation_id, InvocationStatus.Cancelled, None, RUNNER)
    first, second = await anext(stream), await anext(stream)
    assert isinstance(first, NewLines)
    assert [record.log for record in first.page.items] == ["the last words"]
    assert isinstance(second, InvocationEvent)


async def test_a_log_without_end_holds_up_nobody_else(
    store: Store, logs: LogFiles, watches: WatchHub
) -> None:
    flooding = invoke(store).invocation_id
    stream = await opened(watches, Watch(ORG, cursors={flooding: None}))
    writer = logs.writer(flooding)
    told: list[Any] = []
    other = invoke(store).invocation_id
    for _ in range(20):
        writer.append(LogProcess.Action, b"again\n" * 1000, part_of=0)  # faster than it can be told
        told.append(await anext(stream))
        if isinstance(told[-1], InvocationEvent):
            break
    writer.close()
    assert isinstance(told[-1], InvocationEvent)
    assert told[-1].invocation_id == other


async def test_a_cursor_that_is_none_ends_its_log_and_nothing_else(
    store: Store, logs: LogFiles, watches: WatchHub
) -> None:
    invocation_id = invoke(store).invocation_id
    stream = await opened(watches, Watch(ORG, cursors={invocation_id: "77.7"}))
    assert isinstance(await anext(stream), UnreadableLog)
    invoke(store)
    assert isinstance(await anext(stream), InvocationEvent)


async def test_a_closed_stream_leaves_nothing_behind(store: Store, watches: WatchHub) -> None:
    invocation_id = invoke(store).invocation_id
    watch = Watch(ORG, ids={invocation_id, "iv_2"}, cursors={invocation_id: None})
    stream = await opened(watches, watch)
    assert len(watches) == 1
    await stream.aclose()  # type: ignore[attr-defined]
    assert len(watches) == 0
    assert not watches._by_invocation
    assert not watches._by_log


async def test_logs_of_another_organisation_and_of_nothing_are_unreadable(
    store: Store, logs: LogFiles, watches: WatchHub
) -> None:
    theirs = invoke(store).invocation_id
    writer = logs.writer(theirs)
    writer.say(LogProcess.Action, "a word of theirs")
    writer.close()
    (logs._folder.parent / "outside.log").write_bytes(b"not a log")
    asked = [theirs, "../outside", "/etc/passwd", "iv_\0", "iv_" + "0" * 300, "", "\ud800", "iv_" + "0" * 16]
    opening = await opened(watches, Watch("og_other", cursors=dict.fromkeys(asked)))
    told = [await anext(opening) for _ in asked]
    assert [each.invocation_id for each in told if isinstance(each, UnreadableLog)] == asked
    assert {each.reason.partition(" '")[0] for each in told} == {"there is no invocation"}
    extended = Watch("og_other", ids=set())
    stream = await opened(watches, extended)
    await watches.extend(extended.watch_id, "og_other", [theirs], {theirs: None})
    assert isinstance(await anext(stream), UnreadableLog)
    log = logs.writer(theirs)
    log.say(LogProcess.Action, "another word of theirs")
    log.close()
    assert not extended.unread
    assert not watches._by_log


async def test_a_stream_that_is_closed_while_its_logs_are_looked_up_leaves_nothing_behind(
    store: Store, watches: WatchHub
) -> None:
    invocation_id = invoke(store).invocation_id
    watch = Watch(ORG, ids=set())
    stream = await opened(watches, watch)
    changing = asyncio.ensure_future(watches.extend(watch.watch_id, ORG, [], {invocation_id: None}))
    await asyncio.sleep(0)  # the look-up has begun, in a thread
    await stream.aclose()  # type: ignore[attr-defined]
    await changing
    assert not watches._by_log


class TestTokens:
    """A stream ends with the token that opened it."""

    @pytest.fixture
    def good(self) -> set[str]:
        return {"one", "two"}

    @pytest.fixture
    def watches(
        self, store: Store, logs: LogFiles, good: set[str], monkeypatch: pytest.MonkeyPatch
    ) -> WatchHub:
        create(store)
        monkeypatch.setattr(watching, "RECHECK", 0.0)
        watches = WatchHub(store, logs, good.__contains__)
        store.database.listen_to_events(watches.committed)
        return watches

    async def test_revoked_token_receives_nothing_more(
        self, store: Store, watches: WatchHub, good: set[str]
    ) -> None:
        one = await opened(watches, Watch(ORG, token_id="one"))
        two = await opened(watches, Watch(ORG, token_id="two"))
        good.remove("one")
        invoke(store)
        assert [told async for told in one] == []
        assert isinstance(await anext(two), InvocationEvent)
        assert len(watches) == 1

    async def test_revoked_token_ends_an_idle_stream(
        self, watches: WatchHub, good: set[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(watch_module, "IDLE", 0.01)
        stream = await opened(watches, Watch(ORG, token_id="one"))
        good.remove("one")
        async with asyncio.timeout(20):
            assert [told async for told in stream] == []

    async def test_revocation_ends_a_stream_immediately(self, watches: WatchHub) -> None:
        stream = await opened(watches, Watch(ORG, token_id="one"))
        watches.token_ended("one")
        async with asyncio.timeout(20):
            assert [told async for told in stream] == []

    async def test_a_token_that_cannot_be_looked_up_for_now_counts_as_good(
        self, store: Store, logs: LogFiles
    ) -> None:
        def fails(_: str) -> bool:
            raise OperationalError("SELECT", {}, Exception("database is locked"))

        watches = WatchHub(store, logs, fails)
        create(store, "other")
        store.database.listen_to_events(watches.committed)
        stream = await opened(watches, Watch(ORG, token_id="one"))
        invoke(store, "other")
        assert isinstance(await anext(stream), InvocationEvent)

    async def test_without_a_token_nothing_is_told(self, watches: WatchHub) -> None:
        assert [told async for told in watches.stream(Watch(ORG), since=None)] == []


class TestLimits:
    async def test_watches_of_a_token_and_of_all(
        self, store: Store, watches: WatchHub, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(watching, "MAX_WATCHES_OF_TOKEN", 2)
        monkeypatch.setattr(watching, "MAX_WATCHES", 3)
        first = await opened(watches, Watch(ORG, token_id="one"))
        second = await opened(watches, Watch(ORG, token_id="one"))
        with pytest.raises(UnavailableError, match="a token has at most 2"):
            watches.check_room(Watch(ORG, token_id="one"))
        third = await opened(watches, Watch(ORG, token_id="two"))
        with pytest.raises(UnavailableError, match="this server has at most 3"):
            watches.check_room(Watch(ORG, token_id="three"))
        assert [told async for told in watches.stream(Watch(ORG, token_id="three"), None)] == []
        await first.aclose()  # type: ignore[attr-defined]
        watches.check_room(Watch(ORG, token_id="three"))
        for stream in (second, third):
            await stream.aclose()  # type: ignore[attr-defined]

    async def test_ids_of_a_token_and_of_all(
        self, watches: WatchHub, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(watching, "MAX_IDS_OF_TOKEN", 3)
        monkeypatch.setattr(watching, "MAX_IDS_OF_ALL", 4)
        watch = Watch(ORG, token_id="one", ids={"a", "b"})
        stream = await opened(watches, watch)
        with pytest.raises(InvalidRequestError, match="a token name at most 3"):
            await watches.extend(watch.watch_id, ORG, ["c", "d"], {})
        assert await watches.extend(watch.watch_id, ORG, ["b", "c"], {}) == 3
        assert watches.shrink(watch.watch_id, ORG, ["c", "unknown"]) == 2
        with pytest.raises(InvalidRequestError, match="all watches together name at most 4"):
            watches.check_room(Watch(ORG, token_id="two", ids={"1", "2", "3"}))
        await stream.aclose()  # type: ignore[attr-defined]
        assert not watches._holders
        assert not watches._by_invocation

    async def test_many_slow_readers_share_what_may_wait(
        self, store: Store, watches: WatchHub, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(watching, "MAX_WAITING_OF_ALL", 30)
        monkeypatch.setattr(watching, "MIN_WAITING", 5)
        slow = [Watch(ORG, states=True) for _ in range(10)]
        streams = [await opened(watches, watch) for watch in slow]
        for number in range(8):
            watches.state_updated(f"iv_{number}")
        assert all(watch.lost and not watch.restated for watch in slow)
        assert [[type(told) async for told in stream] for stream in streams] == [[CursorLost]] * 10
