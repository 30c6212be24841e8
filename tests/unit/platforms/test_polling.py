"""Ends that are found by asking: each once, none left out, whatever the platform's clock says."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
from collections.abc import AsyncIterator, Collection
from typing import Any

import pytest

from airflow_invocations.models import (
    CaughtUp,
    InvocationEvent,
    InvocationStatus,
    UnreadableItem,
    cursor_at,
)
from airflow_invocations.platforms import polling as polled_events
from airflow_invocations.platforms.polling import ListedInvocation, PollingEventStream

pytestmark = pytest.mark.anyio
S = InvocationStatus


class Invocations:
    """What a platform lists, whose clock a test sets."""

    def __init__(self) -> None:
        # What is asked for goes back from the present.
        self.began = self.now = datetime.datetime.now(datetime.UTC)
        self.by_id: dict[str, ListedInvocation] = {}

    def begin(self, invocation_id: str) -> None:
        self.by_id[invocation_id] = ListedInvocation(
            invocation_id, self.now, self._event(invocation_id, S.Processing)
        )

    def end(self, invocation_id: str, status: InvocationStatus = S.Completed) -> None:
        told = self._event(invocation_id, status)
        self.by_id[invocation_id] = dataclasses.replace(self.by_id[invocation_id], event=told)

    def spoil(self, invocation_id: str) -> None:
        """Have it become unreadable."""
        self.by_id[invocation_id] = ListedInvocation(invocation_id, None, UnreadableItem("it is nothing"))

    def _event(self, invocation_id: str, status: InvocationStatus) -> InvocationEvent:
        return InvocationEvent(invocation_id, status, "count", self.now, cursor_at(self.now))

    async def since(self, moment: datetime.datetime) -> AsyncIterator[ListedInvocation]:
        for one in list(self.by_id.values()):
            if one.moment is None or one.moment >= moment:
                yield one

    async def ended(self, invocation_ids: Collection[str]) -> AsyncIterator[ListedInvocation]:
        for one in list(self.by_id.values()):
            ended = isinstance(one.event, UnreadableItem) or one.event.status.is_terminal
            if ended and one.invocation_id in invocation_ids:
                yield one

    def stream(self, since: int | None) -> _Polled:
        return _Polled(PollingEventStream(self, since, self.pause))

    lookback = polled_events.LOOKBACK

    async def pause(self, _: float) -> None:
        await asyncio.sleep(0)


class _Polled:
    """A polled stream, read step by step: an item a look ends with tells that it has ended."""

    def __init__(self, events: PollingEventStream) -> None:
        self._events = aiter(events)
        self._step: asyncio.Future[Any] | None = None

    async def heard(self, looks: int = 3) -> list[Any]:
        """What is told in so many looks."""
        told = []
        for _ in range(looks * 10):
            self._step = self._step or asyncio.ensure_future(anext(self._events))
            await asyncio.sleep(0)
            if self._step.done():
                told.append(self._step.result())
                self._step = None
        return told

    async def close(self) -> None:
        if self._step is not None:
            self._step.cancel()
            await asyncio.gather(self._step, return_exceptions=True)


def names(told: list[Any]) -> list[str]:
    return [one.invocation_id for one in told if isinstance(one, InvocationEvent)]


async def test_ends_are_found_by_asking_each_once() -> None:
    invocations = Invocations()
    invocations.begin("old")
    invocations.end("old")
    invocations.begin("under way")
    events = invocations.stream(None)
    (first,) = await events.heard()
    assert first == CaughtUp(cursor_at(invocations.began))
    invocations.now += datetime.timedelta(seconds=30)
    invocations.begin("new")
    invocations.end("new", S.Failed)
    assert names(await events.heard()) == ["new"]
    invocations.now += datetime.timedelta(days=3)
    invocations.begin("other")
    invocations.end("under way")
    told = await events.heard()
    assert told == [
        InvocationEvent("under way", S.Completed, "count", invocations.now, cursor_at(invocations.now))
    ]
    invocations.end("other")
    assert names(await events.heard()) == ["other"]
    assert await events.heard() == []
    await events.close()


async def test_ends_between_two_polls_are_found_on_resume() -> None:
    invocations = Invocations()
    invocations.begin("long")
    invocations.begin("told")
    invocations.end("told")
    cursor = cursor_at(invocations.began)
    invocations.now += datetime.timedelta(hours=5)
    invocations.end("long")
    invocations.begin("short")
    invocations.end("short")
    events = invocations.stream(cursor)
    told = await events.heard()
    # What has ended within the overlap is told again.
    assert names(told) == ["told", "long", "short"]
    assert told[-1] == CaughtUp(cursor)
    await events.close()


async def test_repeated_events_are_not_older_than_the_overlap() -> None:
    invocations = Invocations()
    invocations.begin("long ago")
    invocations.end("long ago")
    invocations.now += polled_events.SLACK + datetime.timedelta(seconds=1)
    events = invocations.stream(cursor_at(invocations.now))
    assert names(await events.heard()) == []
    await events.close()


async def test_a_platform_whose_clock_is_slow_loses_nothing() -> None:
    invocations = Invocations()
    invocations.now = datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=1)
    events = invocations.stream(None)
    await events.heard()
    invocations.begin("new")
    invocations.end("new")
    told = await events.heard()
    assert names(told) == ["new"]
    await events.close()


async def test_an_item_that_cannot_be_read_is_told_as_such_and_hides_no_other() -> None:
    invocations = Invocations()
    events = invocations.stream(None)
    await events.heard()
    invocations.begin("bad")
    invocations.spoil("bad")
    invocations.begin("good")
    invocations.end("good")
    told = await events.heard()
    assert names(told) == ["good"]
    assert [isinstance(one, UnreadableItem) for one in told] == [True, False]
    await events.close()


class Changes(Invocations):
    """A platform that lists what has changed, and keeps a list of that."""

    lookback = datetime.timedelta()

    def __init__(self) -> None:
        super().__init__()
        self.history: list[ListedInvocation] = []

    def write_down(self, invocation_id: str) -> None:
        self.history.append(dataclasses.replace(self.by_id[invocation_id], moment=self.now))

    async def since(self, moment: datetime.datetime) -> AsyncIterator[ListedInvocation]:
        for one in self.history:
            if one.moment is not None and one.moment >= moment:
                yield one

    async def ended(self, invocation_ids: Collection[str]) -> AsyncIterator[ListedInvocation]:
        async for one in super().ended(invocation_ids):
            yield dataclasses.replace(one, moment=self.now)


async def test_where_changes_are_listed_an_end_is_told_however_long_ago_it_began() -> None:
    invocations = Changes()
    invocations.begin("old")
    invocations.write_down("old")
    invocations.now += datetime.timedelta(days=30)
    events = invocations.stream(cursor_at(invocations.now))
    assert names(await events.heard()) == []
    invocations.now += datetime.timedelta(seconds=1)
    invocations.begin("new")
    invocations.write_down("new")
    invocations.end("old")
    invocations.write_down("old")
    assert names(await events.heard()) == ["old"]
    invocations.end("new")
    invocations.write_down("new")
    assert names(await events.heard()) == ["new"]
    assert names(await events.heard()) == []
    await events.close()


async def test_an_end_that_the_list_of_changes_lacks_is_told_once_by_its_status() -> None:
    invocations = Changes()
    events = invocations.stream(None)
    await events.heard()
    invocations.begin("one")
    invocations.write_down("one")
    assert names(await events.heard()) == []
    invocations.now += datetime.timedelta(hours=1)
    invocations.begin("other")
    invocations.write_down("other")
    invocations.end("one")
    assert names(await events.heard()) == ["one"]
    # Somebody writes it down after all.
    invocations.write_down("one")
    assert names(await events.heard()) == []
    await events.close()


async def test_an_end_that_is_seen_late_moves_no_place_back() -> None:
    invocations = Invocations()
    invocations.begin("late")
    events = invocations.stream(None)
    await events.heard()
    invocations.begin("quick")
    began = invocations.now
    invocations.now += datetime.timedelta(hours=1)
    invocations.end("quick")
    (quick,) = await events.heard()
    invocations.now = began
    invocations.end("late")
    (late,) = await events.heard()
    assert (quick.at, late.at) == (began + datetime.timedelta(hours=1), began)
    assert late.cursor == quick.cursor
    await events.close()


async def test_a_place_of_another_platform_is_no_reason_to_tell_all_that_ever_ended() -> None:
    invocations = Invocations()
    invocations.begin("old")
    invocations.end("old")
    events = invocations.stream(17)
    (told,) = await events.heard()
    assert isinstance(told, CaughtUp)
    assert told.cursor >= cursor_at(invocations.began)
    await events.close()
