"""What happens to anybody's invocations, told on every platform: each end, also after a pause."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest

from airflow_invocations.assets.events import ACKNOWLEDGED_KEY
from airflow_invocations.hooks import InvocationHook
from airflow_invocations.models import (
    CaughtUp,
    EventFilter,
    InvocationEvent,
    InvocationRecord,
    InvocationStatus,
)
from airflow_invocations.platforms import EventStream, Platform
from airflow_invocations.platforms import polling as polled_events
from airflow_invocations.triggers import InvocationEventTrigger
from airflow_invocations.triggers._event_delivery import DeliverySettings
from airflow_invocations.triggers.events import ENDS
from airflow_invocations.waiters import cancel_and_confirm

from ..integration.airflow.watcher import State, Watcher
from .conftest import CONN_ID, Asking, end_of
from .deployment import PlatformUnderTest, release
from .test_platform import begun

pytestmark = pytest.mark.anyio
S = InvocationStatus
EVERY_END = EventFilter(None, frozenset(ENDS))


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polled_events, "POLL_INTERVAL", 0.05)
    monkeypatch.setattr(
        InvocationEventTrigger,
        "settings",
        DeliverySettings(linger=0.05, spacing=0.05, unacknowledged_spacing=0.05),
    )


async def begin_of(stream: EventStream) -> int:
    """Where a stream begins that is opened now."""
    async with asyncio.timeout(60):
        first = await anext(aiter(stream))
    assert isinstance(first, CaughtUp)
    return first.cursor


async def heard(platform: Platform, since: int | None, ids: Collection[str]) -> list[Any]:
    """All that is told from a cursor until each of these has been told of."""
    missing, told = set(ids), []
    async with asyncio.timeout(60), platform.events(EVERY_END, since) as stream:
        async for one in stream:
            told.append(one)
            if isinstance(one, InvocationEvent):
                missing.discard(one.invocation_id)
            if not missing:
                return told
    raise AssertionError("the stream ended just so")


def ends(told: list[Any], ids: Collection[str]) -> dict[str, InvocationEvent]:
    return {
        one.invocation_id: one
        for one in told
        if isinstance(one, InvocationEvent) and one.invocation_id in ids
    }


async def test_each_end_is_told_by_its_status(
    platform: Platform, idle_hook: InvocationHook, under_test: PlatformUnderTest, asking: Asking
) -> None:
    actions = under_test.actions
    async with platform.events(EVERY_END, None) as stream:
        cursor = await begin_of(stream)
    good = await platform.invoke(actions.completes, asking.request())
    bad = await platform.invoke(actions.fails, asking.request())
    ids = (good.invocation_id, bad.invocation_id)
    told = ends(await heard(platform, cursor, ids), ids)
    first, second = (told[one] for one in ids)
    assert (first.action, first.status) == (actions.completes, S.Completed)
    assert (second.action, second.status) == (actions.fails, S.Failed)
    for event in (first, second):
        assert event.cursor > cursor
        assert (await platform.get(event.invocation_id)).created <= event.at

    async with await idle_hook.connect() as idle:
        async with idle.events(EVERY_END, None) as stream:
            cursor = await begin_of(stream)
        unwanted = await idle.invoke(actions.completes, asking.request())
        await cancel_and_confirm(idle, unwanted.invocation_id, seconds=10.0)
        told = ends(await heard(idle, cursor, [unwanted.invocation_id]), [unwanted.invocation_id])
        assert told[unwanted.invocation_id].status is S.Cancelled


async def test_a_stream_tells_what_ends_while_it_is_open_and_goes_on_where_it_broke(
    hook: InvocationHook,
    platform: Platform,
    under_test: PlatformUnderTest,
    asking: Asking,
    tmp_path: Path,
) -> None:
    actions = under_test.actions
    before = await platform.invoke(actions.completes, asking.request())
    await end_of(hook, before.invocation_id)
    under_way = await platform.invoke(actions.waits, asking.request())
    long = await platform.invoke(actions.waits, Asking(tmp_path).request())
    await begun(asking.folder, 2)
    told: list[Any] = []
    async with asyncio.timeout(60), platform.events(EVERY_END, None) as stream:
        async for one in stream:
            told.append(one)
            if isinstance(one, CaughtUp):
                release(asking.folder)
            elif one.invocation_id == under_way.invocation_id:
                break
    # What had ended before it began is nobody's.
    assert before.invocation_id not in ends(told, [before.invocation_id])
    cursor = told[-1].cursor
    release(tmp_path)
    short = await platform.invoke(actions.fails, asking.request())
    missed = (long.invocation_id, short.invocation_id)
    for one in missed:
        await end_of(hook, one)
    again = ends(await heard(platform, cursor, missed), missed)
    assert [again[one].status for one in missed] == [S.Completed, S.Failed]


async def test_an_action_can_be_wanted_by_its_name(
    platform: Platform, under_test: PlatformUnderTest, asking: Asking
) -> None:
    wanted = EventFilter(under_test.actions.completes, frozenset(ENDS))
    async with asyncio.timeout(60), platform.events(wanted, None) as stream:
        told = aiter(stream)
        assert isinstance(await anext(told), CaughtUp)
        other = await platform.invoke(under_test.actions.fails, asking.request())
        mine = await platform.invoke(under_test.actions.completes, asking.request())
        while not wanted.matches(event := await anext(told)):
            assert event.invocation_id == other.invocation_id
    assert event.invocation_id == mine.invocation_id


async def test_records_of_many_leave_out_what_is_not_there(
    platform: Platform, under_test: PlatformUnderTest, asking: Asking
) -> None:
    invoked = [await platform.invoke(under_test.actions.completes, asking.request()) for _ in range(3)]
    ids = [one.invocation_id for one in invoked]
    found = await platform.records([*ids, under_test.unknown_id])
    assert all(isinstance(one, InvocationRecord) for one in found)
    assert {one.invocation_id for one in found if isinstance(one, InvocationRecord)} == set(ids)


async def test_the_newest_of_an_action_since_a_time(
    platform: Platform, under_test: PlatformUnderTest, asking: Asking
) -> None:
    actions = under_test.actions
    began = datetime.datetime.now(datetime.UTC)
    assert await platform.newest(actions.completes, began) is None
    _, newest, other = [
        (await platform.invoke(action, asking.request())).invocation_id
        for action in (actions.completes, actions.completes, actions.fails)
    ]
    ever = datetime.datetime.min.replace(tzinfo=datetime.UTC)
    for since in (began, ever):
        found = await platform.newest(actions.completes, since)
        assert found is not None
        assert found.invocation_id == newest
    found = await platform.newest(actions.fails, began)
    assert found is not None
    assert found.invocation_id == other
    assert await platform.newest(actions.typed, began) is None
    assert await platform.newest(actions.unknown, ever) is None
    later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=1)
    assert await platform.newest(actions.completes, later) is None


async def test_the_trigger_hands_over_what_ends_also_while_nobody_watches(
    hook: InvocationHook, platform: Platform, under_test: PlatformUnderTest, asking: Asking
) -> None:
    actions = under_test.actions
    state = State()
    watcher = Watcher(state, conn_id=CONN_ID)
    async with asyncio.timeout(60):
        await state.noted.wait()
    good = (await platform.invoke(actions.completes, asking.request())).invocation_id
    bad = (await platform.invoke(actions.fails, asking.request(message="no such bag"))).invocation_id
    told = {one["invocation_id"]: one for one in await watcher.hears(good, bad)}
    await watcher.stop()
    assert (told[good]["action"], told[good]["status"]) == (actions.completes, "Completed")
    assert (told[bad]["action"], told[bad]["status"]) == (actions.fails, "Failed")
    assert "no such bag" in told[bad]["detail"]
    assert told[good]["url"] == hook.url(good)
    assert told[good]["source_id"] == asking.provenance().source_id
    assert told[good]["created"] <= told[good]["ended"]

    missed = (await platform.invoke(actions.completes, asking.request())).invocation_id
    other = (await platform.invoke(actions.fails, asking.request())).invocation_id
    for one in (missed, other):
        await end_of(hook, one)
    again = Watcher(state, conn_id=CONN_ID, action=actions.completes)
    heard_of = {one["invocation_id"] for one in await again.hears(missed)}
    await again.stop()
    assert not heard_of & {bad, other}


async def test_a_dag_does_not_start_itself(
    hook: InvocationHook, platform: Platform, under_test: PlatformUnderTest, tmp_path: Path
) -> None:
    state = State()
    # It has taken something over before.
    state.values[ACKNOWLEDGED_KEY] = {"watching": 1}
    watcher = Watcher(state, conn_id=CONN_ID, acknowledge_timeout=1)
    async with asyncio.timeout(60):
        await state.noted.wait()
    ids = []
    for dag_id in ("watching", "another"):
        asked = Asking(tmp_path, dag_id=dag_id).request()
        ids.append((await platform.invoke(under_test.actions.completes, asked)).invocation_id)
        await end_of(hook, ids[-1])
    own, others = ids
    told = {one["invocation_id"] for one in await watcher.hears(others)}
    await watcher.stop()
    assert own not in told
