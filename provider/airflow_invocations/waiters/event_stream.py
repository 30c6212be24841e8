"""One stream of events per connection and event loop, for all who want to hear what happens there."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import logging
import time
import weakref
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..models import CaughtUp, EventFilter, InvocationEvent, UnreadableItem, is_time
from ..platforms.base import EventStream, Platform
from ..platforms.errors import (
    NotFoundError,
    PermanentError,
    TransientError,
    UnauthorizedError,
)
from ..platforms.retry import backoff
from .refusal import Connect
from .watcher import OpenOnes, Shared, first_end_of

if TYPE_CHECKING:
    from ..models import InvocationRecord

#: Events that are kept for one subscription; what comes beyond that is asked for again once it has room.
KEPT = 2000

#: Seconds for which those who come at the same time are collected before the stream is opened.
COLLECTING = 0.1

#: Events after which others in the loop get a turn.
STRETCH = 100

#: Longest pause, in seconds, between two tries while there is no stream.
LONGEST_PAUSE = 30.0

#: Seconds between two words in the log about one and the same trouble.
REMINDER = 300.0

#: Events that are remembered where the platform may tell some again.
REMEMBERED = 20_000

_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Subscription:
    """What one of those who listen wants to hear, where it is, and what waits for it.

    :param wanted: which events.
    :param cursor: what happened up to there is known already; None: begin now.
    """

    wanted: EventFilter
    cursor: int | None
    _waiting: deque[InvocationEvent] = field(default_factory=deque)
    _something: asyncio.Event = field(default_factory=asyncio.Event)
    _begun: asyncio.Event = field(default_factory=asyncio.Event)
    _remembered: dict[tuple[str, int, float], None] = field(default_factory=dict)
    #: Whether something was left out as there was no room for it.
    is_behind: bool = False
    #: Told when there is room again.
    on_room: Callable[[], None] = lambda: None

    async def begins(self) -> int:
        """Where it begins; as soon as the platform has said where it is, for those that begin now."""
        if self.cursor is None:
            await self._begun.wait()
        assert self.cursor is not None  # noqa: S101 - for the type checker: it has begun
        return self.cursor

    async def something(self) -> None:
        """Wait until there is an event to take."""
        while not self._waiting:
            self._something.clear()
            await self._something.wait()

    def take(self, most: int) -> list[InvocationEvent]:
        """Up to so many events, in order; none if there are none now."""
        taken = [self._waiting.popleft() for _ in range(min(most, len(self._waiting)))]
        if self.is_behind and not self._waiting:
            self.is_behind = False
            self.on_room()
        return taken

    def begin(self, place: int) -> None:
        """Begin here, unless it has begun already."""
        if self.cursor is None:
            self.cursor = place
            self._begun.set()

    def offer(self, event: InvocationEvent, overlap: int) -> None:
        """Keep an event if it is wanted and new, and if there is room."""
        if self.cursor is None or self.is_behind or event.cursor <= self.cursor - overlap:
            return
        if len(self._waiting) >= KEPT:
            self.is_behind = True
            return
        self.cursor = max(self.cursor, event.cursor)
        if self.wanted.matches(event) and not (overlap and self._has_heard(event)):
            self._waiting.append(event)
            self._something.set()

    def _has_heard(self, event: InvocationEvent) -> bool:
        key = (event.invocation_id, int(event.status), event.at.timestamp())
        if key in self._remembered:
            return True
        self._remembered[key] = None
        if len(self._remembered) > REMEMBERED:
            del self._remembered[next(iter(self._remembered))]
        return False


class Feed(Shared):
    """Reads one stream for all subscriptions; the last to leave closes it.

    The stream begins where the subscription is that is furthest behind; the others pass over what they have
    heard. Whoever comes with an older place, or with a wider filter, or has room again, has it opened anew.
    Nothing ever ends it: while the platform is out of reach, or refuses, it is asked again.

    :param connect: opens a client, reading the connection each time.
    """

    def __init__(self, name: str, connect: Connect) -> None:
        self._name = name
        self._connect = connect
        self._subscriptions: list[Subscription] = []
        self._changed = asyncio.Event()
        self._deserted = asyncio.Event()
        #: What the open stream tells, and up to where it has told it; None: there is no open stream, or it
        #: still tells the past.
        self._wanted = EventFilter()
        self._cursor: int | None = None
        self._trouble = _Trouble()
        #: Items that could not be read.
        self.unreadable = 0
        # In a context of its own, as the task that comes first is not everybody's.
        self._task = asyncio.create_task(self._run(), context=contextvars.Context())

    def join(self, subscription: Subscription) -> None:
        """Tell a subscription from now on."""
        subscription.on_room = self._changed.set
        self._subscriptions.append(subscription)
        if self._cursor is not None and self._wanted.covers(subscription.wanted):
            subscription.begin(self._cursor)
            if subscription.cursor is not None and subscription.cursor >= self._cursor:
                return
        self._changed.set()

    def leave(self, subscription: Subscription) -> None:
        """Tell it no more; the last to leave closes the stream."""
        if subscription in self._subscriptions:
            self._subscriptions.remove(subscription)
        if not self._subscriptions:
            self._deserted.set()

    async def _run(self) -> None:
        while not self._deserted.is_set():
            try:
                async with await self._connect() as platform:
                    while not self._deserted.is_set():
                        await self._follow(platform)
            except Exception as error:
                self._cursor = None
                await self._rest(self._trouble.pause(self._name, error))

    async def _follow(self, platform: Platform) -> None:
        """Follow one stream until it breaks, or has to be opened anew, or all have left."""
        await self._rest(COLLECTING)
        listening = [one for one in self._subscriptions if not one.is_behind]
        if not listening:
            await first_end_of(self._changed.wait(), self._deserted.wait())
            self._changed.clear()
            return
        self._changed.clear()
        self._cursor = None
        self._wanted = functools.reduce(EventFilter.union, (one.wanted for one in listening))
        places = [one.cursor for one in listening if one.cursor is not None]
        since = min(places, default=None)
        async with platform.events(self._wanted, since) as stream:
            await first_end_of(self._read(stream, since), self._changed.wait(), self._deserted.wait())

    async def _read(self, stream: EventStream, since: int | None) -> None:
        count = 0
        async for told in stream:
            match told:
                case CaughtUp(place):
                    self._caught_up(place, since)
                case UnreadableItem(reason):
                    self.unreadable += 1
                    _log.warning(
                        "connection %s: an event can't be read and is passed over (%d so far): %s",
                        *(self._name, self.unreadable, reason),
                    )
                case InvocationEvent():
                    self._tell(told, stream.overlap)
            if self._subscriptions and all(one.is_behind for one in self._subscriptions):
                return
            count += 1
            if count % STRETCH == 0:
                await asyncio.sleep(0)

    def _tell(self, event: InvocationEvent, overlap: int) -> None:
        if self._cursor is not None:
            self._cursor = max(self._cursor, event.cursor)
        for subscription in self._subscriptions:
            subscription.offer(event, overlap)

    def _caught_up(self, place: int, since: int | None) -> None:
        self._trouble.is_over(self._name)
        if since is not None and place < since:
            _log.warning("connection %s: the platform counts its events anew; so do we", self._name)
            for subscription in self._subscriptions:
                subscription.cursor = 0 if subscription.cursor is not None else None
            self._changed.set()
            return
        self._cursor = max([place, *(one.cursor for one in self._subscriptions if one.cursor is not None)])
        for subscription in self._subscriptions:
            subscription.begin(place)

    async def _rest(self, seconds: float) -> None:
        """Sleep, but not once everybody has left."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._deserted.wait()


class _Trouble:
    """Why there is no stream now: said once, and again now and then."""

    def __init__(self) -> None:
        self._attempt = 0
        self._said: float | None = None

    def pause(self, name: str, error: Exception) -> float:
        """Say what is wrong; the seconds to wait before the next try."""
        if self._said is None or time.monotonic() - self._said >= REMINDER:
            self._said = time.monotonic()
            what = f"connection {name}: no events can be read now, and none is lost by that: {error}"
            if isinstance(error, TransientError):
                _log.warning("%s", what)
            elif isinstance(error, PermanentError | ValueError):
                _log.error("%s", what)
            else:
                _log.error("%s", what, exc_info=error)
        asked = error.retry_after if isinstance(error, TransientError) else None
        seconds = max(0.2 + backoff(self._attempt, base=1.0, cap=LONGEST_PAUSE), asked or 0.0)
        self._attempt += 1
        return seconds

    def is_over(self, name: str) -> None:
        """There is a stream."""
        if self._said is not None:
            _log.info("connection %s: events can be read again", name)
        self._attempt, self._said = 0, None


class Feeds:
    """The feeds of one event loop, by connection."""

    def __init__(self) -> None:
        self._feeds: OpenOnes[tuple[str, bool], Feed] = OpenOnes()

    @classmethod
    def here(cls) -> Feeds:
        """The feeds of the running event loop."""
        return _feeds.setdefault(asyncio.get_running_loop(), cls())

    def join(self, connection: str, connect: Connect, subscription: Subscription) -> Feed:
        """Have the feed of a connection tell a subscription; the feed is made if there is none.

        Places that are times and places that are numbers can't be compared, so they never share a stream;
        of one platform there is only one kind.
        """
        kinds = (False, True) if subscription.cursor is None else (is_time(subscription.cursor),)
        found = (self._feeds.find((connection, kind)) for kind in kinds)
        feed = next((one for one in found if one is not None), None)
        if feed is None:
            feed = Feed(connection, connect)
            self._feeds.add((connection, kinds[0]), feed)
        feed.join(subscription)
        return feed


_feeds: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Feeds] = weakref.WeakKeyDictionary()


async def records_of(
    name: str, connect: Connect, invocation_ids: Collection[str]
) -> list[tuple[InvocationRecord, str] | UnreadableItem]:
    """The records of up to 1,000 invocations and their addresses, however long it takes to get an answer.

    For each that can't be read, or isn't known any more, there is an UnreadableItem.
    """
    trouble = _Trouble()
    while True:
        try:
            async with await connect() as platform:
                found = [
                    item if isinstance(item, UnreadableItem) else (item, platform.url(item.invocation_id))
                    for item in await _records(platform, invocation_ids)
                ]
        except Exception as error:
            await asyncio.sleep(trouble.pause(name, error))
        else:
            break
    trouble.is_over(name)
    unknown = len(set(invocation_ids)) - len(found)
    lost = UnreadableItem("the platform doesn't know the invocation any more")
    return [*found, *[lost] * unknown]


async def _records(
    platform: Platform, invocation_ids: Collection[str]
) -> list[InvocationRecord | UnreadableItem]:
    try:
        return await platform.records(invocation_ids)
    except UnauthorizedError:
        raise
    except PermanentError as error:
        _log.info("asking for each invocation by itself, as batches are refused: %s", error)
    found: list[InvocationRecord | UnreadableItem] = []
    for invocation_id in invocation_ids:
        try:
            found.append(await platform.get(invocation_id))
        except NotFoundError:
            continue
        except UnauthorizedError:
            raise
        except PermanentError as error:
            found.append(UnreadableItem(f"{invocation_id}: {error}"))
    return found
