"""Ends of anybody's invocations on a platform that doesn't push: it is asked again and again."""

from __future__ import annotations

import asyncio
import datetime
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from ..model import MAX_PAGE_SIZE
from .base import CaughtUp, InvocationEvent, UnreadableItem

#: Seconds between two looks.
POLL_INTERVAL = 5.0

#: How far back what isn't known is looked for when a stream is opened: longer than an action may take.
LOOKBACK = datetime.timedelta(days=7)

#: How late something may be seen for the first time: clocks differ, and a page takes a while.
SLACK = datetime.timedelta(minutes=2)

_MICROSECOND = datetime.timedelta(microseconds=1)
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)

#: For what doesn't say when it was created: as late as anything that was seen.
_NEWEST = datetime.datetime.max.replace(tzinfo=datetime.UTC)


@dataclass(frozen=True, slots=True)
class Listed:
    """An invocation, as a platform lists it."""

    invocation_id: str
    #: When it was created; None: it doesn't say.
    created: datetime.datetime | None
    #: The status that it has, terminal or not, as an event; or why that can't be read.
    told: InvocationEvent | UnreadableItem


class Listing(Protocol):
    """What a platform is asked for; each answer may leave out other actions' than the wanted one's."""

    def created(self, since: datetime.datetime) -> AsyncIterator[Listed]:
        """Everything that was created at `since` or later, in any order."""

    def ended(self, invocation_ids: Collection[str]) -> AsyncIterator[Listed]:
        """Those of up to 1,000 invocations that have ended, in any order."""


class PolledEvents:
    """Ends of invocations, found by asking; places are times.

    Each look asks for what was created since the look before, and for which of those that were under way
    have ended. An invocation that is put back into the queue after its end isn't followed any further.

    :param listing: how the platform is asked.
    :param since: what ended after this was not told yet; None: begin now.
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
        self._since = since
        self._pause = pause
        #: When each invocation was created that was under way at the last look.
        self._under_way: dict[str, datetime.datetime] = {}
        #: What was seen already and may be seen again, as it was created lately.
        self._seen: dict[str, datetime.datetime] = {}
        self._newest = _EPOCH

    async def __aiter__(self) -> AsyncIterator[InvocationEvent | UnreadableItem | CaughtUp]:
        """What is told; within a look in the order in which it happened."""
        # By the platform's own clock, as soon as there is anything to read it from.
        began = _EPOCH + (self._since or time.time_ns() // 1000) * _MICROSECOND
        self._newest = began - LOOKBACK
        past = await self._look_at_new(self._newest)
        if self._since is None:
            # What has ended before now is nobody's; the rest is followed.
            ends = (told.at for told in past if isinstance(told, InvocationEvent))
            yield CaughtUp(place_of(max([self._newest, *ends])))
        else:
            for told in past:
                if isinstance(told, UnreadableItem) or told.at > began - SLACK:
                    yield told
            yield CaughtUp(self._since)
        while True:
            await self._pause(POLL_INTERVAL)
            ended = await self._look_at_old()
            for told in _in_order([*ended, *await self._look_at_new(self._newest - SLACK)]):
                yield told

    async def _look_at_new(self, since: datetime.datetime) -> Sequence[InvocationEvent | UnreadableItem]:
        """Ask for what was created since then; what has ended and wasn't seen before."""
        found: list[InvocationEvent | UnreadableItem] = []
        async for listed in self._listing.created(since):
            invocation_id, created, told = listed.invocation_id, listed.created or _NEWEST, listed.told
            if invocation_id in self._seen or invocation_id in self._under_way:
                continue
            self._seen[invocation_id] = created
            if listed.created is not None:
                self._newest = max(self._newest, listed.created)
            if isinstance(told, UnreadableItem) or told.status.is_terminal:
                found.append(told)
            else:
                self._under_way[invocation_id] = created
        oldest = self._newest - 2 * SLACK
        self._seen = {
            one: min(created, self._newest) for one, created in self._seen.items() if created >= oldest
        }
        return _in_order(found)

    async def _look_at_old(self) -> Sequence[InvocationEvent | UnreadableItem]:
        """Ask which of those that were under way have ended."""
        found: list[InvocationEvent | UnreadableItem] = []
        oldest = self._newest - LOOKBACK
        self._under_way = {one: created for one, created in self._under_way.items() if created >= oldest}
        ids = list(self._under_way)
        for start in range(0, len(ids), MAX_PAGE_SIZE):
            found += [
                listed.told
                async for listed in self._listing.ended(ids[start : start + MAX_PAGE_SIZE])
                if self._under_way.pop(listed.invocation_id, None) is not None
            ]
        return found


def place_of(moment: datetime.datetime) -> int:
    """The place of what happened then."""
    return (moment - _EPOCH) // _MICROSECOND


def _in_order(
    found: list[InvocationEvent | UnreadableItem],
) -> Sequence[InvocationEvent | UnreadableItem]:
    """What can't be read first, then by time."""
    return sorted(found, key=lambda told: told.place if isinstance(told, InvocationEvent) else 0)
