"""One watcher per connection and event loop: whatever the number of waits, one stream or one query a tick."""

from __future__ import annotations

import asyncio
import contextvars
import datetime
import functools
import logging
import math
import random
import time
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, TypeVar

from ..models import MAX_PAGE_SIZE, CaughtUp, InvocationStatus, NewLines, StatusSnapshot, UnreadableLog
from ..models.text import counted
from ..platforms.base import Platform, Watch
from ..platforms.errors import (
    NotFoundError,
    PermanentError,
    TransientError,
    UnauthorizedError,
    UnavailableError,
)
from ..platforms.retry import backoff
from .log_relay import LogQueue
from .log_settings import LOG_SETTINGS
from .refusal import REFRESH_PAUSE, Connect, Refusals, client_of, refusal_notice

if TYPE_CHECKING:
    from ..models import LogPage, LogRecord

#: Longest pause, in seconds, between two tries while the platform is out of reach.
OUTAGE_PAUSE = 15.0

#: Seconds for which joins and leaves are collected before the open stream is changed by them.
COLLECTING = 0.1

#: How many waits are looked at, one batch each so many seconds, whatever the stream or the ticks say: a
#: stream is a hint, and an invocation that is gone is in no answer.
AUDITED = 250
AUDIT_INTERVAL = 20.0

#: How often an invocation has to be not found, and with which pause, until it counts as lost.
LOST_AFTER = 3
LOST_PAUSE = 1.0

#: How many streams in a row may break before they have told the present state, while the platform answers
#: queries; then those take the stream's place for so many seconds.
BROKEN_STREAMS = 3
WITHOUT_STREAM = 300.0

#: Single requests at a time, for platforms that refuse batches.
SINGLES = 8

#: Seconds after which an outage is worth a word in every wait's log.
QUIET_OUTAGE = 5.0

#: Invocations that a stream may name though nobody waits for them any more.
SPARE = 100

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Lines:
    """Log lines that are new, and the cursor that stands behind them."""

    records: Sequence[LogRecord]
    cursor: str | None


@dataclass(frozen=True, slots=True)
class Notice:
    """Something that whoever looks at the wait should know."""

    text: str


@dataclass(frozen=True, slots=True)
class Behind:
    """Lines have been arriving faster than they are shown for some time."""


@dataclass(frozen=True, slots=True)
class Ended:
    """The invocation has reached a terminal status, by what the platform told last."""

    status: InvocationStatus


@dataclass(frozen=True, slots=True)
class Unreachable:
    """The platform has been out of reach since then (seconds since 1970): too long for this wait."""

    since: float
    error: str


@dataclass(frozen=True, slots=True)
class Refused:
    """The platform doesn't accept the connection's credentials, read again after each refusal."""

    error: str
    #: Whether the platform had accepted them before.
    were_accepted: bool = False


@dataclass(frozen=True, slots=True)
class Gone:
    """The platform doesn't know the invocation (any more), and was asked more than once."""


@dataclass(frozen=True, slots=True)
class Crashed:
    """The watcher itself broke; a fresh one may be joined."""

    error: Exception


Step = Lines | Notice | Behind | Ended | Unreachable | Refused | Gone | Crashed


class Flow(Enum):
    """What becomes of an invocation's lines."""

    Flowing = auto()
    #: The queue is full, and the stream has to be stopped.
    Stopping = auto()
    #: Lines are not read until there is room.
    Stopped = auto()


@dataclass(slots=True, eq=False)
class Wait:
    """One wait for one invocation, and what has happened that it hasn't taken yet."""

    invocation_id: str
    #: Seconds between two looks, where the platform has to be asked.
    poll_interval: float
    #: Seconds for which the platform may be out of reach.
    outage_limit: float
    #: Where to read on in the log.
    cursor: str | None = None
    #: Whether the platform is known to have accepted the credentials.
    accepted: bool = False
    #: The queue for log lines; None: don't read the log.
    lines: LogQueue | None = None
    flow: Flow = Flow.Flowing
    #: When the wait began, on the monotonic clock.
    joined: float = field(default_factory=time.monotonic)
    #: Called when there is room for lines again.
    on_room: Callable[[], object] = lambda: None
    _steps: list[Step] = field(default_factory=list)
    _something: asyncio.Event = field(default_factory=asyncio.Event)
    #: Lines that were delivered and not yet consumed, and their characters.
    _untaken: int = 0
    _untaken_size: int = 0
    #: When lines began to arrive faster than they were consumed, on the monotonic clock; None: they don't.
    _behind_since: float | None = None
    _said_behind: bool = False

    def tell(self, step: Step) -> None:
        """Have the wait take a step."""
        self._steps.append(step)
        self._something.set()

    async def steps(self) -> list[Step]:
        """What has happened since the last call, once something has."""
        await self._something.wait()
        self._something.clear()
        steps, self._steps = self._steps, []
        self._untaken = self._untaken_size = 0
        if self.flow is not Flow.Flowing:
            self.on_room()
        return steps

    @property
    def has_room(self) -> bool:
        """Whether there is room for lines now."""
        return (
            self.lines is not None
            and self.lines.has_room
            and self._untaken < LOG_SETTINGS.queue_lines
            and self._untaken_size < LOG_SETTINGS.queue_size
        )

    def take_page(self, page: LogPage) -> None:
        """Deliver the next page of the log."""
        self.cursor = page.last_read if page.last_read is not None else self.cursor
        if not page.has_next:
            self._behind_since = None
        elif self._behind_since is not None:
            self._say_behind(self._behind_since)
        if page.items:
            self._untaken += len(page.items)
            self._untaken_size += sum(len(record.log) for record in page.items)
            self.tell(Lines(page.items, self.cursor))

    def stop(self) -> None:
        """Stop reading lines until there is room."""
        self.flow = Flow.Stopping
        self._behind_since = self._behind_since or time.monotonic()

    def _say_behind(self, since: float) -> None:
        if not self._said_behind and time.monotonic() - since >= LOG_SETTINGS.behind:
            self._said_behind = True
            self.tell(Behind())


class Shared:
    """What all who want it share, done by a task that ends once the last of them has left."""

    _deserted: asyncio.Event
    _task: asyncio.Task[None]

    @property
    def is_open(self) -> bool:
        """Whether it can be joined."""
        return not self._deserted.is_set()

    def when_closed(self, callback: Callable[[], None]) -> None:
        """Call this once it has closed."""
        self._task.add_done_callback(lambda _: callback())


SharedT = TypeVar("SharedT", bound=Shared)
KeyT = TypeVar("KeyT")


class OpenOnes(dict[KeyT, SharedT]):
    """Those that haven't closed, by what they are known as."""

    def find(self, key: KeyT) -> SharedT | None:
        """The one that can be joined; None: there is none."""
        one = self.get(key)
        return one if one is not None and one.is_open else None

    def add(self, key: KeyT, one: SharedT) -> None:
        """Keep it until it has closed."""
        self[key] = one
        one.when_closed(functools.partial(self._forget, key, one))

    def _forget(self, key: KeyT, one: SharedT) -> None:
        if self.get(key) is one:
            del self[key]


class Watcher(Shared):
    """Looks after all waits of one connection in one event loop; the last to leave closes it.

    :param connect: opens a client, reading the connection each time.
    """

    def __init__(self, connect: Connect) -> None:
        self._connect = connect
        self._waits: dict[str, list[Wait]] = {}
        #: Set when there may be something to tell the open stream.
        self._changed = asyncio.Event()
        self._deserted = asyncio.Event()
        #: From when on the platform pushes (on the monotonic clock), and whether it answers batches: until it
        #: says that it doesn't.
        self._pushes_from = 0.0
        self._batches = True
        self._broken_streams = 0
        #: Where to resume the stream, and whose status it has told up to there.
        self._cursor: int | None = None
        self._told: set[str] = set()
        #: Invocations known to be running, on platforms that have to be polled.
        self._running: set[str] = set()
        #: What the open stream names, and what it names though nobody waits for it any more.
        self._named: set[str] = set()
        self._spare: set[str] = set()
        self._outage: _Outage | None = None
        self._refusals = Refusals()
        self._has_answered = False
        # In a context of its own: the first wait's, with its task's log, is not everybody's.
        self._task = asyncio.create_task(self._run(), context=contextvars.Context())

    def join(self, wait: Wait) -> None:
        """Look after a wait from now on."""
        waits = self._waits.setdefault(wait.invocation_id, [])
        if any(other.lines is not None for other in waits):
            # One reader a log: this wait's log is read when it ends, by whoever goes on from its cursor.
            wait.lines = None
        if wait.lines is not None:
            wait.on_room = wait.lines.on_room = self._changed.set
        waits.append(wait)
        if self._outage is not None and self._outage.was_told:
            wait.tell(self._outage.notice)
        self._changed.set()

    def leave(self, wait: Wait) -> None:
        """Look after it no more; the last to leave closes the watcher."""
        waits = self._waits.get(wait.invocation_id, [])
        if wait in waits:
            waits.remove(wait)
        if not waits:
            self._forget(wait.invocation_id)

    def _forget(self, invocation_id: str) -> None:
        """Nobody waits for an invocation any more; whoever comes for it then is told anew what it is."""
        self._waits.pop(invocation_id, None)
        self._told.discard(invocation_id)
        self._running.discard(invocation_id)
        if invocation_id in self._named:
            self._named.remove(invocation_id)
            self._spare.add(invocation_id)
        if not self._waits:
            self._deserted.set()
        elif self._has_much_to_spare:
            self._changed.set()

    @property
    def _has_much_to_spare(self) -> bool:
        """Whether the stream names so many in vain that it is to be told, though nobody has come."""
        return len(self._spare) > max(SPARE, len(self._waits))

    # -- one client after another --------------------------------------------------------------------

    async def _run(self) -> None:
        try:
            while not self._deserted.is_set():
                await self._session()
        except Exception as error:
            _log.exception(
                "The watcher of %s broke; a new one takes over", counted(len(self._waits), "invocation")
            )
            self._deserted.set()
            self._tell_all(Crashed(error))

    async def _session(self) -> None:
        """Serve the waits over one client, until all have left or it has to be opened anew."""
        try:
            async with await self._open() as platform:
                await self._serve(platform)
        except UnauthorizedError as error:
            await self._outlast_refusal(error)
        except TransientError as error:
            await self._outlast(error)

    async def _open(self) -> AbstractAsyncContextManager[Platform]:
        try:
            return await client_of(self._connect)
        except UnauthorizedError:
            raise
        except Exception as error:
            raise UnavailableError(f"the connection can't be read: {error}") from error

    async def _serve(self, platform: Platform) -> None:
        while not self._deserted.is_set():
            if time.monotonic() >= self._pushes_from:
                await self._stream_or_look(platform)
                continue
            try:
                await self._poll(platform)
            except UnauthorizedError:
                raise
            except PermanentError as error:
                raise UnavailableError(str(error)) from error

    # -- push ----------------------------------------------------------------------------------------

    async def _stream_or_look(self, platform: Platform) -> None:
        """Follow the stream; when it breaks, ask once: only if that fails too, the platform is away."""
        try:
            await self._stream(platform)
            return
        except TransientError as error:
            # In a worker this is the task's log, in which an outage has one line: its notice.
            _log.debug("The stream of %s broke: %s", counted(len(self._waits), "invocation"), error)
        except UnauthorizedError:
            raise
        except PermanentError as error:
            _log.info("asking for statuses every few seconds, as there is no stream of them: %s", error)
            self._pushes_from = math.inf
            return
        await self._look(platform)
        self._broken_streams += 1
        if self._broken_streams > BROKEN_STREAMS:
            self._broken_streams = 0
            self._pushes_from = time.monotonic() + WITHOUT_STREAM
        else:
            await self._rest(0.1 + backoff(self._broken_streams, base=0.5, cap=5.0))

    async def _stream(self, platform: Platform) -> None:
        ids = self._waits.keys() if self._cursor is None else self._told
        self._named, self._spare = set(ids), set()
        for wait in self._everybody():
            wait.flow = Flow.Flowing if wait.has_room else Flow.Stopped
        # Whoever isn't named is to be added; the stream before this one may have been told of them in vain.
        self._changed.set()
        async with platform.watch(self._named, self._cursors(self._named), self._cursor) as watch:
            await first_end_of(
                self._read(watch), self._change(watch), self._audit(platform), self._deserted.wait()
            )

    async def _read(self, watch: Watch) -> None:
        resumed_from = self._cursor
        async for told in watch:
            self._answered()
            match told:
                case StatusSnapshot(invocation_id):
                    if invocation_id in self._waits:
                        self._told.add(invocation_id)
                    self._take(told)
                case NewLines(invocation_id, page, begins_at):
                    self._take_lines(invocation_id, page, begins_at)
                case UnreadableLog(invocation_id, reason):
                    self._stop_lines(invocation_id, reason)
                case CaughtUp(cursor):
                    self._broken_streams = 0
                    if resumed_from is not None and cursor < resumed_from:
                        self._cursor, self._told = None, set()
                        raise UnavailableError("the platform's event sequence was reset")
            self._cursor = watch.cursor

    async def _change(self, watch: Watch) -> None:
        """Tell the stream who has come and gone, and whose lines are wanted now."""
        while True:
            await self._wake(None)
            # Those who come at the same time go into one request.
            await asyncio.sleep(COLLECTING)
            added = self._waits.keys() - self._named
            stopping = self._readers(Flow.Stopping)
            resumed = [wait for wait in self._readers(Flow.Stopped) if wait.has_room]
            # Who has gone costs nothing but room: that can wait until there is something else to say.
            if not (added or stopping or resumed or self._has_much_to_spare):
                continue
            spare, self._spare = self._spare, set()
            self._named |= added
            for wait in resumed:
                wait.flow = Flow.Flowing
            for wait in stopping:
                wait.flow = Flow.Stopped
            stopped = {wait.invocation_id for wait in stopping}
            logs = self._cursors([*added, *(wait.invocation_id for wait in resumed)])
            # An invocation that is in both is forgotten first and told anew.
            await watch.change(added | stopped, spare | stopped, logs)

    def _cursors(self, ids: Iterable[str]) -> dict[str, str | None]:
        """Where to read on in the logs that are wanted now."""
        wanted = (self._reader(invocation_id) for invocation_id in ids)
        return {wait.invocation_id: wait.cursor for wait in wanted if wait and wait.flow is Flow.Flowing}

    # -- poll ----------------------------------------------------------------------------------------

    async def _poll(self, platform: Platform) -> None:
        await first_end_of(
            self._tick(platform),
            self._poll_logs(platform),
            self._audit(platform),
            self._rest(self._pushes_from - time.monotonic()),
        )

    async def _tick(self, platform: Platform) -> None:
        while True:
            began = time.monotonic()
            await self._look(platform)
            took = time.monotonic() - began
            wanted = min((wait.poll_interval for wait in self._everybody()), default=0.0)
            # A platform that takes its time is asked less often.
            await asyncio.sleep(max(wanted * random.uniform(1.0, 1.2), took))  # noqa: S311

    async def _look(self, platform: Platform) -> None:
        """Ask once for whatever has ended."""
        may_begin = {invocation_id for invocation_id in self._waits if self._may_have_lines(invocation_id)}
        for ids, ask in (
            (self._waits.keys() - may_begin, platform.ended),
            (may_begin, platform.statuses),
        ):
            for batch in _batches_of(list(ids), MAX_PAGE_SIZE):
                found = await self._ask(platform, ask, batch)
                self._answered()
                for snapshot in found:
                    self._take(snapshot)

    def _may_have_lines(self, invocation_id: str) -> bool:
        """Whether a wait wants lines of an invocation that isn't known to be running."""
        return invocation_id not in self._running and self._reader(invocation_id) is not None

    async def _ask(
        self,
        platform: Platform,
        ask: Callable[[Sequence[str]], Awaitable[list[StatusSnapshot]]],
        ids: Sequence[str],
    ) -> list[StatusSnapshot]:
        if self._batches:
            try:
                return await ask(ids)
            except UnauthorizedError:
                raise
            except PermanentError as error:
                _log.info("asking for each invocation by itself, as batches are refused: %s", error)
                self._batches = False
        return await self._singles(platform, ids)

    async def _singles(self, platform: Platform, ids: Sequence[str]) -> list[StatusSnapshot]:
        found: list[StatusSnapshot] = []
        remaining = iter(ids)

        async def ask() -> None:
            for invocation_id in remaining:
                try:
                    record = await platform.get(invocation_id)
                except NotFoundError:
                    await self._tell_if_gone(platform, invocation_id)
                else:
                    found.append(StatusSnapshot(invocation_id, record.current.status))

        await _all_of(ask() for _ in range(min(SINGLES, len(ids))))
        return found

    async def _poll_logs(self, platform: Platform) -> None:
        """Poll the logs of running invocations, several at a time."""
        from .log_polling import LogSchedule  # most platforms push; DAG files import this module

        schedule = LogSchedule(LOG_SETTINGS)

        async def read() -> None:
            while True:
                readable = (wait for wait in self._everybody() if self._is_readable(wait))
                wait = schedule.take({wait.invocation_id: wait for wait in readable})
                if wait is None:
                    await asyncio.sleep(schedule.pause())
                    continue
                had_lines = await self._poll_log(platform, wait)
                schedule.note(wait.invocation_id, had_lines=had_lines)

        await _all_of(read() for _ in range(LOG_SETTINGS.readers))

    def _is_readable(self, wait: Wait) -> bool:
        return wait.has_room and wait.invocation_id in self._running

    async def _poll_log(self, platform: Platform, wait: Wait) -> bool:
        """Fetch one page of a log; return whether it had lines."""
        try:
            page = await platform.logs(wait.invocation_id, wait.cursor)
        except TransientError as error:
            _log.debug("Could not read the log of %s now: %s", wait.invocation_id, error)
            return False
        except PermanentError as error:
            # A refused token too: that of a wait shows in its statuses, and a log never decides anything.
            self._stop_lines(wait.invocation_id, str(error))
            return False
        wait.take_page(page)
        return bool(page.items)

    # -- what a stream, or a batch, doesn't tell -----------------------------------------------------

    async def _audit(self, platform: Platform) -> None:
        """Ask for some waits' invocations after others: all are to be known, and no end is to be missed."""
        remaining: list[str] = []
        while True:
            await asyncio.sleep(AUDIT_INTERVAL * random.uniform(0.9, 1.1))  # noqa: S311
            remaining = remaining or list(self._waits)
            batch, remaining = remaining[:AUDITED], remaining[AUDITED:]
            try:
                known = await platform.statuses(batch)
                for snapshot in known:
                    self._take(snapshot)
                for invocation_id in set(batch) - {snapshot.invocation_id for snapshot in known}:
                    await self._tell_if_gone(platform, invocation_id)
            except TransientError as error:
                _log.debug("Could not ask for %s: %s", counted(len(batch), "invocation"), error)
            except UnauthorizedError:
                raise
            except PermanentError:
                # Batches are refused; who is asked for singly is told of what is gone at once.
                await asyncio.Future()

    async def _tell_if_gone(self, platform: Platform, invocation_id: str) -> None:
        """Ask more than once: what was made a moment ago may not be known everywhere."""
        for _ in range(LOST_AFTER):
            if invocation_id not in self._waits:
                return
            try:
                await platform.get(invocation_id)
            except NotFoundError:
                await asyncio.sleep(LOST_PAUSE)
            else:
                return
        for wait in self._waits.get(invocation_id, ()):
            wait.tell(Gone())

    # -- what was told -------------------------------------------------------------------------------

    def _take(self, snapshot: StatusSnapshot) -> None:
        if snapshot.status.is_running and snapshot.invocation_id in self._waits:
            self._running.add(snapshot.invocation_id)
        if snapshot.status.is_terminal and snapshot.invocation_id in self._waits:
            for wait in self._waits[snapshot.invocation_id]:
                wait.tell(Ended(snapshot.status))
            self._forget(snapshot.invocation_id)

    def _take_lines(self, invocation_id: str, page: LogPage, begins_at: str | None) -> None:
        """Accept a page from the stream; it may have been sent before its log was stopped or resumed."""
        wait = self._reader(invocation_id)
        if wait is None or wait.flow is not Flow.Flowing or begins_at not in (None, wait.cursor):
            return
        if wait.has_room:
            wait.take_page(page)
        else:
            wait.stop()
            self._changed.set()

    def _stop_lines(self, invocation_id: str, reason: str) -> None:
        wait = self._reader(invocation_id)
        if wait is not None:
            wait.lines = None
            wait.tell(Notice(f"the log of {invocation_id} can't be read: {reason}"))

    def _reader(self, invocation_id: str) -> Wait | None:
        """The wait that an invocation's lines are for."""
        waits = self._waits.get(invocation_id, ())
        return next((wait for wait in waits if wait.lines is not None), None)

    def _readers(self, flow: Flow) -> list[Wait]:
        """Return the waits whose lines are in this state."""
        return [wait for wait in self._everybody() if wait.lines is not None and wait.flow is flow]

    def _everybody(self) -> list[Wait]:
        return [wait for waits in self._waits.values() for wait in waits]

    def _tell_all(self, step: Step) -> None:
        for wait in self._everybody():
            wait.tell(step)

    # -- outages -------------------------------------------------------------------------------------

    async def _outlast(self, error: TransientError) -> None:
        """Take note that the platform doesn't answer, and wait before the next try."""
        outage = self._outage = self._outage or _Outage()
        outage.error = str(error)
        present = time.monotonic()
        waits = self._everybody()
        for wait in waits:
            if present - max(outage.began, wait.joined) >= wait.outage_limit:
                wait.tell(Unreachable(outage.since, outage.error))
        if not outage.was_told and present - outage.began >= QUIET_OUTAGE:
            outage.was_told = True
            self._tell_all(outage.notice)
        pause = max(0.2 + backoff(outage.attempt, base=1.0, cap=OUTAGE_PAUSE), error.retry_after or 0.0)
        outage.attempt += 1
        limits = (max(outage.began, wait.joined) + wait.outage_limit - present for wait in waits)
        # Nobody is left waiting beyond their limit.
        await self._rest(min(pause, max(0.2, min((limit for limit in limits if limit > 0), default=pause))))

    async def _outlast_refusal(self, error: UnauthorizedError) -> None:
        """Handle rejected credentials, and wait before the connection is read again.

        Credentials that were never accepted are considered wrong when they are rejected a second time.
        """
        is_first = self._refusals.note()
        for wait in self._everybody():
            accepted = wait.accepted or self._has_answered
            if accepted and is_first:
                wait.tell(Notice(refusal_notice(error)))
            if self._refusals.are_final(is_first=is_first, accepted=accepted):
                wait.tell(Refused(str(error), accepted))
        await self._rest(REFRESH_PAUSE)

    def _answered(self) -> None:
        """The platform answers (again)."""
        self._refusals.forget()
        self._has_answered = True
        if self._outage is not None:
            if self._outage.was_told:
                self._tell_all(Notice("the platform answers again"))
            self._outage = None

    async def _rest(self, seconds: float) -> None:
        """Sleep, but not once everybody has left."""
        wake = asyncio.ensure_future(self._deserted.wait())
        try:
            await asyncio.wait({wake}, timeout=None if seconds == math.inf else seconds)
        finally:
            wake.cancel()

    async def _wake(self, seconds: float | None) -> None:
        """Sleep until something has changed, or so long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._changed.wait()
            self._changed.clear()


@dataclass(slots=True)
class _Outage:
    """How long the platform has been out of reach, and what it said last."""

    #: On the monotonic clock, and in seconds since 1970.
    began: float = field(default_factory=time.monotonic)
    since: float = field(default_factory=time.time)
    attempt: int = 0
    error: str = ""
    was_told: bool = False

    @property
    def notice(self) -> Notice:
        since = datetime.datetime.fromtimestamp(self.since, datetime.UTC)
        return Notice(
            f"the platform has been out of reach since {since:%H:%M:%S} UTC, which says nothing about the "
            f"invocation; the wait goes on: {self.error}"
        )


class Hub:
    """The watchers of one event loop, by connection."""

    def __init__(self) -> None:
        self._watchers: OpenOnes[str, Watcher] = OpenOnes()

    @classmethod
    def here(cls) -> Hub:
        """The hub of the running event loop."""
        loop = asyncio.get_running_loop()
        return _hubs.setdefault(loop, cls())

    def join(self, connection: str, connect: Connect, wait: Wait) -> Watcher:
        """Have the watcher of a connection look after a wait; the watcher is made if there is none."""
        watcher = self._watchers.find(connection)
        if watcher is None:
            watcher = Watcher(connect)
            self._watchers.add(connection, watcher)
        watcher.join(wait)
        return watcher


_hubs: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Hub] = weakref.WeakKeyDictionary()


async def first_end_of(*operations: Coroutine[Any, Any, object]) -> None:
    """Run them all until one ends, or fails, and end the others."""
    tasks = [asyncio.ensure_future(operation) for operation in operations]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()


async def _all_of(operations: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Run them all to their ends; the first failure ends them all."""
    tasks = [asyncio.ensure_future(operation) for operation in operations]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def _batches_of(ids: Sequence[str], size: int) -> Iterable[Sequence[str]]:
    return (ids[start : start + size] for start in range(0, len(ids), size))
