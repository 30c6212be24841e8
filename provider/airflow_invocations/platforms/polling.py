"""An event stream for platforms that don't push: it polls them for invocations that ended."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from typing import Protocol

from ..models import MAX_PAGE_SIZE, CaughtUp, InvocationEvent, UnreadableItem, cursor_at, is_time

#: Seconds between two polls.
POLL_INTERVAL = 5.0

#: How far back active invocations are listed when a stream is opened: longer than an action may take.
LOOKBACK = datetime.timedelta(days=7)

#: How late an invocation may appear in a list: clocks differ, and a page takes a while.
SLACK = datetime.timedelta(minutes=2)

_MICROSECOND = datetime.timedelta(microseconds=1)
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)

#: The moment of an invocation without one: as late as any other.
_NEWEST = datetime.datetime.max.replace(tzinfo=datetime.UTC)


@dataclasses.dataclass(frozen=True, slots=True)
class ListedInvocation:
    """An invocation in a platform's list."""

    invocation_id: str
    #: When it was created or last changed, whichever the platform lists by; None: it doesn't say.
    moment: datetime.datetime | None
    #: Its present status, terminal or not, as an event; or why that is unreadable.
    event: InvocationEvent | UnreadableItem


class InvocationLister(Protocol):
    """How a platform is polled. It may list the invocations of the wanted action only."""

    #: How far back the first list goes, to find active invocations. LOOKBACK if the platform lists by
    #: creation; less if it lists by change.
    lookback: datetime.timedelta

    def since(self, moment: datetime.datetime) -> AsyncIterator[ListedInvocation]:
        """Yield the invocations that were created, or have changed, at a moment or later, in any order."""

    def ended(self, invocation_ids: Collection[str]) -> AsyncIterator[ListedInvocation]:
        """Yield those of up to 1,000 invocations that are terminal, in any order."""


class PollingEventStream:
    """The terminal statuses of invocations, found by polling; cursors are times.

    Each poll lists what is new since the one before, and which active invocations have ended. An invocation
    that returns to the queue after its end isn't followed further. An end that is listed late gets the cursor
    of the event before it.

    :param lister: lists a platform's invocations.
    :param since: the cursor to resume from. None, or a cursor that isn't a time and belongs to another
        platform, begins now.
    :param pause: sleeps for a number of seconds.
    """

    overlap = SLACK // _MICROSECOND

    def __init__(
        self,
        lister: InvocationLister,
        since: int | None,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._lister = lister
        self._since = since if since is not None and is_time(since) else None
        self._pause = pause
        #: The moment of each invocation that was active at the last poll.
        self._active: dict[str, datetime.datetime] = {}
        #: The moments of invocations that the next poll lists again.
        self._seen: dict[str, datetime.datetime] = {}
        self._newest = _EPOCH
        self._cursor = 0

    async def __aiter__(self) -> AsyncIterator[InvocationEvent | UnreadableItem | CaughtUp]:
        """Yield events; those of one poll in the order of their times."""
        # From the first response on, the platform's own clock counts.
        began = _EPOCH + (self._since or time.time_ns() // 1000) * _MICROSECOND
        self._newest = began - self._lister.lookback
        past = await self._poll_new(self._newest)
        if self._since is None:
            # Invocations that ended before the stream was opened are not reported.
            ends = (event.at for event in past if isinstance(event, InvocationEvent))
            self._cursor = cursor_at(max([self._newest, *ends]))
        else:
            for event in past:
                if isinstance(event, UnreadableItem) or event.at > began - SLACK:
                    yield event
            self._cursor = self._since
        yield CaughtUp(self._cursor)
        while True:
            await self._pause(POLL_INTERVAL)
            ended = await self._poll_active()
            for event in _in_order([*ended, *await self._poll_new(self._newest - SLACK)]):
                yield self._with_cursor(event)

    async def _poll_new(self, moment: datetime.datetime) -> Sequence[InvocationEvent | UnreadableItem]:
        """List what is new since a moment; return the terminal ones that were not reported before."""
        found: list[InvocationEvent | UnreadableItem] = []
        async for listed in self._lister.since(moment):
            invocation_id, event = listed.invocation_id, listed.event
            if listed.moment is not None:
                self._newest = max(self._newest, listed.moment)
            has_ended = isinstance(event, InvocationEvent) and event.status.is_terminal
            if invocation_id in self._active:
                if not has_ended:
                    continue
                del self._active[invocation_id]
            elif invocation_id in self._seen:
                continue
            self._seen[invocation_id] = listed.moment or _NEWEST
            if has_ended or isinstance(event, UnreadableItem):
                found.append(event)
            else:
                self._active[invocation_id] = self._seen[invocation_id]
        oldest = self._newest - 2 * SLACK
        self._seen = {one: min(seen, self._newest) for one, seen in self._seen.items() if seen >= oldest}
        return _in_order(found)

    async def _poll_active(self) -> Sequence[InvocationEvent | UnreadableItem]:
        """Return the events of active invocations that have ended."""
        found: list[InvocationEvent | UnreadableItem] = []
        oldest = self._newest - LOOKBACK
        self._active = {one: moment for one, moment in self._active.items() if moment >= oldest}
        ids = list(self._active)
        for start in range(0, len(ids), MAX_PAGE_SIZE):
            async for listed in self._lister.ended(ids[start : start + MAX_PAGE_SIZE]):
                if self._active.pop(listed.invocation_id, None) is not None:
                    self._seen[listed.invocation_id] = listed.moment or _NEWEST
                    found.append(listed.event)
        return found

    def _with_cursor(self, event: InvocationEvent | UnreadableItem) -> InvocationEvent | UnreadableItem:
        """Return an event with the stream's cursor after it, which never decreases."""
        if isinstance(event, UnreadableItem):
            return event
        self._cursor = max(self._cursor, event.cursor)
        return dataclasses.replace(event, cursor=self._cursor)


def _in_order(
    found: list[InvocationEvent | UnreadableItem],
) -> Sequence[InvocationEvent | UnreadableItem]:
    """Sort by time; unreadable items come first."""
    return sorted(found, key=lambda event: event.cursor if isinstance(event, InvocationEvent) else 0)
