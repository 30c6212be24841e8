"""Share one stream of events per connection and event loop between all subscriptions."""

from __future__ import annotations

import asyncio
import functools
import logging
import time
import weakref
from collections import deque
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..models import CaughtUp, EventFilter, InvocationEvent, UnreadableItem, is_time
from ..platforms.base import EventStream, Platform
from ..platforms.errors import NotFoundError, PermanentError, TransientError, UnauthorizedError
from ..platforms.retry import backoff
from .registry import RefCounted, Registry, run_until_first_ends
from .rejection import Connect

if TYPE_CHECKING:
    from ..models import InvocationRecord

#: Events queued for one subscription; further ones are requested again once it has room.
QUEUE_LIMIT = 2000

#: Seconds for which new subscriptions are collected before the stream is opened.
COLLECTING = 0.1

#: Events after which other tasks of the loop get a turn.
STRETCH = 100

#: Longest pause, in seconds, between two attempts while there is no stream.
LONGEST_PAUSE = 30.0

#: Seconds until the same outage is logged again.
REMINDER = 300.0

#: Events that are remembered where the platform may send some again.
REMEMBERED = 20_000

_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Subscription:
    """The events that one subscriber wants, its cursor, and the events queued for it.

    :param wanted: which events.
    :param cursor: where to resume; None: begin with the present.
    """

    wanted: EventFilter
    cursor: int | None
    _queue: deque[InvocationEvent] = field(default_factory=deque)
    _has_events: asyncio.Event = field(default_factory=asyncio.Event)
    _begun: asyncio.Event = field(default_factory=asyncio.Event)
    _remembered: dict[tuple[str, int, float], None] = field(default_factory=dict)
    #: Whether events were left out because the queue was full.
    is_behind: bool = False
    #: Called when there is room again.
    on_room: Callable[[], None] = lambda: None

    async def start_cursor(self) -> int:
        """Return the cursor at which it begins, once the platform has reported its present cursor."""
        if self.cursor is None:
            await self._begun.wait()
        assert self.cursor is not None  # noqa: S101 - for the type checker: it has begun
        return self.cursor

    async def wait_for_event(self) -> None:
        """Wait until an event is queued."""
        while not self._queue:
            self._has_events.clear()
            await self._has_events.wait()

    def pop(self, most: int) -> list[InvocationEvent]:
        """Remove and return up to `most` queued events, in order."""
        events = [self._queue.popleft() for _ in range(min(most, len(self._queue)))]
        if self.is_behind and not self._queue:
            self.is_behind = False
            self.on_room()
        return events

    def begin(self, cursor: int) -> None:
        """Begin at a cursor, unless it has begun already."""
        if self.cursor is None:
            self.cursor = cursor
            self._begun.set()

    def push(self, event: InvocationEvent, overlap: int) -> None:
        """Queue an event if it is wanted and new, and if there is room."""
        if self.cursor is None or self.is_behind or event.cursor <= self.cursor - overlap:
            return
        if len(self._queue) >= QUEUE_LIMIT:
            self.is_behind = True
            return
        self.cursor = max(self.cursor, event.cursor)
        if self.wanted.matches(event) and not (overlap and self._is_known(event)):
            self._queue.append(event)
            self._has_events.set()

    def _is_known(self, event: InvocationEvent) -> bool:
        key = (event.invocation_id, int(event.status), event.at.timestamp())
        if key in self._remembered:
            return True
        self._remembered[key] = None
        if len(self._remembered) > REMEMBERED:
            del self._remembered[next(iter(self._remembered))]
        return False


class SharedEventStream(RefCounted):
    """Read one stream for all subscriptions; the last to leave closes it.

    The stream begins at the oldest cursor of its subscriptions; the others skip events that they have had. It
    is reopened for a subscription with an older cursor or a wider filter, or one that has room again. Errors
    never end it: while the platform is unavailable or rejects requests, they are repeated.

    :param name: the connection, for log messages.
    :param connect: opens a client, reading the connection each time.
    """

    def __init__(self, name: str, connect: Connect) -> None:
        super().__init__()
        self._name = name
        self._connect = connect
        self._subscriptions: list[Subscription] = []
        self._changed = asyncio.Event()
        #: The filter of the open stream, and its cursor; None: there is no open stream, or it has not caught
        #: up.
        self._wanted = EventFilter()
        self._cursor: int | None = None
        self._outages = _OutageLog(name)
        #: Items that could not be read.
        self.unreadable = 0
        self._start()

    def join(self, subscription: Subscription) -> None:
        """Add a subscription."""
        subscription.on_room = self._changed.set
        self._subscriptions.append(subscription)
        if self._cursor is not None and self._wanted.covers(subscription.wanted):
            subscription.begin(self._cursor)
            if subscription.cursor is not None and subscription.cursor >= self._cursor:
                return
        self._changed.set()

    def leave(self, subscription: Subscription) -> None:
        """Remove a subscription; the last one to leave closes the stream."""
        if subscription in self._subscriptions:
            self._subscriptions.remove(subscription)
        if not self._subscriptions:
            self._unused.set()

    async def _run(self) -> None:
        while not self._unused.is_set():
            try:
                async with await self._connect() as platform:
                    while not self._unused.is_set():
                        await self._stream(platform)
            except Exception as error:
                self._cursor = None
                await self._rest(self._outages.note(error))

    async def _stream(self, platform: Platform) -> None:
        """Read one stream until it breaks, has to be reopened, or all subscriptions have left."""
        await self._rest(COLLECTING)
        ready = [subscription for subscription in self._subscriptions if not subscription.is_behind]
        if not ready:
            await run_until_first_ends(self._changed.wait(), self._unused.wait())
            self._changed.clear()
            return
        self._changed.clear()
        self._cursor = None
        self._wanted = functools.reduce(EventFilter.union, (subscription.wanted for subscription in ready))
        since = min(_cursors(ready), default=None)
        async with platform.events(self._wanted, since) as stream:
            await run_until_first_ends(self._read(stream, since), self._changed.wait(), self._unused.wait())

    async def _read(self, stream: EventStream, since: int | None) -> None:
        count = 0
        async for message in stream:
            match message:
                case CaughtUp(cursor):
                    self._caught_up(cursor, since)
                case UnreadableItem(reason):
                    self.unreadable += 1
                    _log.warning(
                        "connection %s: skipped an unreadable event (%d so far): %s",
                        *(self._name, self.unreadable, reason),
                    )
                case InvocationEvent():
                    self._publish(message, stream.overlap)
            if self._subscriptions and all(one.is_behind for one in self._subscriptions):
                return
            count += 1
            if count % STRETCH == 0:
                await asyncio.sleep(0)

    def _publish(self, event: InvocationEvent, overlap: int) -> None:
        if self._cursor is not None:
            self._cursor = max(self._cursor, event.cursor)
        for subscription in self._subscriptions:
            subscription.push(event, overlap)

    def _caught_up(self, cursor: int, since: int | None) -> None:
        self._outages.end()
        if since is not None and cursor < since:
            _log.warning(
                "connection %s: the platform's event sequence was reset; restarting from the beginning",
                self._name,
            )
            for subscription in self._subscriptions:
                subscription.cursor = 0 if subscription.cursor is not None else None
            self._changed.set()
            return
        self._cursor = max([cursor, *_cursors(self._subscriptions)])
        for subscription in self._subscriptions:
            subscription.begin(cursor)


def _cursors(subscriptions: Iterable[Subscription]) -> list[int]:
    return [each.cursor for each in subscriptions if each.cursor is not None]


class _OutageLog:
    """Log an outage once, and again every REMINDER seconds.

    :param name: the connection, for log messages.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._attempt = 0
        self._logged_at: float | None = None

    def note(self, error: Exception) -> float:
        """Log an error unless it was logged recently; return the seconds until the next attempt."""
        if self._logged_at is None or time.monotonic() - self._logged_at >= REMINDER:
            self._logged_at = time.monotonic()
            text = f"connection {self._name}: cannot read events now; none is lost: {error}"
            if isinstance(error, TransientError):
                _log.warning("%s", text)
            elif isinstance(error, PermanentError | ValueError):
                _log.error("%s", text)
            else:
                _log.error("%s", text, exc_info=error)
        retry_after = error.retry_after if isinstance(error, TransientError) else None
        seconds = max(0.2 + backoff(self._attempt, base=1.0, cap=LONGEST_PAUSE), retry_after or 0.0)
        self._attempt += 1
        return seconds

    def end(self) -> None:
        """Log the end of an outage."""
        if self._logged_at is not None:
            _log.info("connection %s: events can be read again", self._name)
        self._attempt, self._logged_at = 0, None


class StreamRegistry:
    """The shared event streams of one event loop, by connection."""

    def __init__(self) -> None:
        self._streams: Registry[tuple[str, bool], SharedEventStream] = Registry()

    @classmethod
    def current(cls) -> StreamRegistry:
        """Return the registry of the running event loop."""
        return _registries.setdefault(asyncio.get_running_loop(), cls())

    def join(self, connection: str, connect: Connect, subscription: Subscription) -> SharedEventStream:
        """Add a subscription to the stream of a connection, which is created if there is none.

        Cursors that are times and cursors that are numbers can't be compared, so they never share a stream.
        Each platform has only one kind.
        """
        kinds = (False, True) if subscription.cursor is None else (is_time(subscription.cursor),)
        found = (self._streams.find((connection, kind)) for kind in kinds)
        stream = next((one for one in found if one is not None), None)
        if stream is None:
            stream = SharedEventStream(connection, connect)
            self._streams.add((connection, kinds[0]), stream)
        stream.join(subscription)
        return stream


_registries: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, StreamRegistry] = (
    weakref.WeakKeyDictionary()
)


async def fetch_records(
    name: str, connect: Connect, invocation_ids: Collection[str]
) -> list[tuple[InvocationRecord, str] | UnreadableItem]:
    """Return the records of up to 1,000 invocations with their URLs, retrying until the platform answers.

    Each invocation that can't be read, or is not known any more, is represented by an UnreadableItem.

    :param name: the connection, for log messages.
    """
    outages = _OutageLog(name)
    while True:
        try:
            async with await connect() as platform:
                found = [
                    item if isinstance(item, UnreadableItem) else (item, platform.url(item.invocation_id))
                    for item in await _records(platform, invocation_ids)
                ]
        except Exception as error:
            await asyncio.sleep(outages.note(error))
        else:
            break
    outages.end()
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
        _log.info("Requesting each invocation separately, as the platform rejects batches: %s", error)
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
