"""Ends of anybody's invocations on a platform that doesn't push: it is asked again and again."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from typing import Protocol

from ..models import MAX_PAGE_SIZE, CaughtUp, InvocationEvent, UnreadableItem, cursor_at, is_time

#: Seconds between two looks.
POLL_INTERVAL = 5.0

#: How long what is under way is asked for: longer than an action may take.
LOOKBACK = datetime.timedelta(days=7)

#: How late something may be seen for the first time: clocks differ, and a page takes a while.
SLACK = datetime.timedelta(minutes=2)

_MICROSECOND = datetime.timedelta(microseconds=1)
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)

#: For what doesn't say when: as late as anything that was seen.
_NEWEST = datetime.datetime.max.replace(tzinfo=datetime.UTC)


@dataclasses.dataclass(frozen=True, slots=True)
class Listed:
    """An invocation, as a platform lists it."""

    invocation_id: str
    #: When it was created, or has changed last: whichever its platform lists by. None: it doesn't say.
    moment: datetime.datetime | None
    #: The status that it has, terminal or not, as an event; or why that can't be read.
    told: InvocationEvent | UnreadableItem


class Listing(Protocol):
    """What a platform is asked for; each answer may leave out other actions' than the wanted one's."""

    #: How far back it is asked when a stream is opened, for what is under way: where it lists what was
    #: created, LOOKBACK; where it lists what has changed, only what such a list may leave out counts.
    lookback: datetime.timedelta

    def since(self, moment: datetime.datetime) -> AsyncIterator[Listed]:
        """Everything that was created then or later, or everything that has changed since, in any order."""

    def ended(self, invocation_ids: Collection[str]) -> AsyncIterator[Listed]:
        """Those of up to 1,000 invocations that have ended, in any order."""


class PolledEvents:
    """Ends of invocations, found by polling; cursors are times.

    Each look asks for what is new since the look before, and for which of those that were under way have
    ended. An invocation that is put back into the queue after its end isn't followed any further. The cursor
    of an end that is seen late, as clocks and reports go, is that of the one before it.

    :param listing: how the platform is asked.
    :param since: the cursor to resume from; None, or a cursor that is not a time and so another platform's:
        begin now.
    :param pause: sleeps for so many seconds.
    """

    overlap = SLACK // _MICROSECOND

    def __init__(
        self,
        listing: Listing,
        since: int | None,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._listing = listing
        self._since = since if since is not None and is_time(since) else None
        self._pause = pause
        #: The moment of each invocation that was under way at the last look.
        self._under_way: dict[str, datetime.datetime] = {}
        #: What was seen already and may be seen again, as it is new.
        self._seen: dict[str, datetime.datetime] = {}
        self._newest = _EPOCH
        self._cursor = 0

    async def __aiter__(self) -> AsyncIterator[InvocationEvent | UnreadableItem | CaughtUp]:
        """What is told; within a look in the order in which it happened."""
        # By the platform's own clock, as soon as there is anything to read it from.
        began = _EPOCH + (self._since or time.time_ns() // 1000) * _MICROSECOND
        self._newest = began - self._listing.lookback
        past = await self._look_at_new(self._newest)
        if self._since is None:
            # What has ended before now is nobody's; the rest is followed.
            ends = (told.at for told in past if isinstance(told, InvocationEvent))
            self._cursor = cursor_at(max([self._newest, *ends]))
        else:
            for told in past:
                if isinstance(told, UnreadableItem) or told.at > began - SLACK:
                    yield told
            self._cursor = self._since
        yield CaughtUp(self._cursor)
        while True:
            await self._pause(POLL_INTERVAL)
            ended = await self._look_at_old()
            for told in _in_order([*ended, *await self._look_at_new(self._newest - SLACK)]):
                yield self._with_cursor(told)

    async def _look_at_new(self, moment: datetime.datetime) -> Sequence[InvocationEvent | UnreadableItem]:
        """Ask for what is new since then; what has ended and wasn't told before."""
        found: list[InvocationEvent | UnreadableItem] = []
        async for listed in self._listing.since(moment):
            invocation_id, told = listed.invocation_id, listed.told
            if listed.moment is not None:
                self._newest = max(self._newest, listed.moment)
            has_ended = isinstance(told, InvocationEvent) and told.status.is_terminal
            if invocation_id in self._under_way:
                if not has_ended:
                    continue
                del self._under_way[invocation_id]
            elif invocation_id in self._seen:
                continue
            self._seen[invocation_id] = listed.moment or _NEWEST
            if has_ended or isinstance(told, UnreadableItem):
                found.append(told)
            else:
                self._under_way[invocation_id] = self._seen[invocation_id]
        oldest = self._newest - 2 * SLACK
        self._seen = {one: min(seen, self._newest) for one, seen in self._seen.items() if seen >= oldest}
        return _in_order(found)

    async def _look_at_old(self) -> Sequence[InvocationEvent | UnreadableItem]:
        """Ask which of those that were under way have ended."""
        found: list[InvocationEvent | UnreadableItem] = []
        oldest = self._newest - LOOKBACK
        self._under_way = {one: moment for one, moment in self._under_way.items() if moment >= oldest}
        ids = list(self._under_way)
        for start in range(0, len(ids), MAX_PAGE_SIZE):
            async for listed in self._listing.ended(ids[start : start + MAX_PAGE_SIZE]):
                if self._under_way.pop(listed.invocation_id, None) is not None:
                    self._seen[listed.invocation_id] = listed.moment or _NEWEST
                    found.append(listed.told)
        return found

    def _with_cursor(self, told: InvocationEvent | UnreadableItem) -> InvocationEvent | UnreadableItem:
        """Return the event with the stream's cursor after it, which never decreases."""
        if isinstance(told, UnreadableItem):
            return told
        self._cursor = max(self._cursor, told.cursor)
        return dataclasses.replace(told, cursor=self._cursor)


def _in_order(
    found: list[InvocationEvent | UnreadableItem],
) -> Sequence[InvocationEvent | UnreadableItem]:
    """What can't be read first, then by time."""
    return sorted(found, key=lambda told: told.cursor if isinstance(told, InvocationEvent) else 0)
