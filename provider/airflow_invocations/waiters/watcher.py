"""One watcher per connection and event loop: all waits share one stream, or one query per poll."""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
import weakref
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager

from ..models import (
    MAX_PAGE_SIZE,
    CaughtUp,
    NewLines,
    StatusSnapshot,
    UnreadableLog,
)
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
from .availability import Availability
from .log_flow import LogFlow
from .registry import RefCounted, Registry, run_all, run_until_first_ends
from .rejection import REFRESH_PAUSE, Connect, client_of
from .wait_handle import LOST_AFTER, LOST_PAUSE, Crashed, FlowState, Gone, WaitHandle, WaitTable

#: Seconds for which joins and leaves are collected before the open stream is changed by them.
COLLECTING = 0.1

#: The number of invocations checked in one batch, and the seconds between batches, besides the stream or the
#: polls: a stream may lose an event, and a deleted invocation is in no response.
AUDITED = 250
AUDIT_INTERVAL = 20.0

#: How many streams in a row may break before they have caught up, while the platform answers queries, and
#: the seconds for which the watcher polls after that.
BROKEN_STREAMS = 3
WITHOUT_STREAM = 300.0

#: Concurrent requests for single invocations, on platforms that reject batches.
SINGLES = 8

#: Invocations without waits that a stream may name before it is changed for their sake.
SPARE = 100

_log = logging.getLogger(__name__)


class ConnectionWatcher(RefCounted):
    """Watch the invocations of all waits of one connection in one event loop.

    :param connect: opens a client, reading the connection each time.
    """

    def __init__(self, connect: Connect) -> None:
        super().__init__()
        self._connect = connect
        self._waits = WaitTable()
        #: Set when the open stream may have to be changed.
        self._changed = asyncio.Event()
        self._logs = LogFlow(self._waits, self._changed.set)
        self._availability = Availability(self._waits)
        #: When to open a stream (on the monotonic clock), and whether the platform answers batches.
        self._push_from = 0.0
        self._batches = True
        self._broken_streams = 0
        #: Where to resume the stream, and the invocations whose status it has reported up to there.
        self._cursor: int | None = None
        self._reported: set[str] = set()
        #: Invocations known to be running, on platforms that are polled.
        self._running: set[str] = set()
        #: Invocations that the open stream names: those with waits, and those without.
        self._named: set[str] = set()
        self._spare: set[str] = set()
        self._start()

    def join(self, wait: WaitHandle) -> None:
        """Add a wait."""
        self._logs.prepare(wait)
        self._waits.add(wait)
        self._availability.join(wait)
        self._changed.set()

    def leave(self, wait: WaitHandle) -> None:
        """Remove a wait; the last one to leave closes the watcher."""
        if self._waits.remove(wait):
            self._forget(wait.invocation_id)

    def _forget(self, invocation_id: str) -> None:
        """Forget an invocation without waits; a later wait gets its present status again."""
        self._waits.remove_all(invocation_id)
        self._reported.discard(invocation_id)
        self._running.discard(invocation_id)
        if invocation_id in self._named:
            self._named.remove(invocation_id)
            self._spare.add(invocation_id)
        if not self._waits:
            self._unused.set()
        elif self._has_many_spare:
            self._changed.set()

    @property
    def _has_many_spare(self) -> bool:
        """Whether the stream names enough invocations without waits that it has to be changed."""
        return len(self._spare) > max(SPARE, len(self._waits))

    # -- clients ------------------------------------------------------------------------------------

    async def _run(self) -> None:
        try:
            while not self._unused.is_set():
                await self._session()
        except Exception as error:
            _log.exception(
                "The watcher of %s failed; another one takes over", counted(len(self._waits), "invocation")
            )
            self._unused.set()
            self._waits.notify_all(Crashed(error))

    async def _session(self) -> None:
        """Serve the waits over one client, until all have left or the connection has to be read again."""
        try:
            async with await self._open() as platform:
                await self._serve(platform)
        except UnauthorizedError as error:
            self._availability.rejected(error)
            await self._rest(REFRESH_PAUSE)
        except TransientError as error:
            await self._rest(self._availability.unavailable(error))

    async def _open(self) -> AbstractAsyncContextManager[Platform]:
        try:
            return await client_of(self._connect)
        except UnauthorizedError:
            raise
        except Exception as error:
            raise UnavailableError(f"the connection can't be read: {error}") from error

    async def _serve(self, platform: Platform) -> None:
        while not self._unused.is_set():
            if time.monotonic() >= self._push_from:
                await self._stream_or_query(platform)
                continue
            try:
                await self._poll(platform)
            except UnauthorizedError:
                raise
            except PermanentError as error:
                raise UnavailableError(str(error)) from error

    # -- push ----------------------------------------------------------------------------------------

    async def _stream_or_query(self, platform: Platform) -> None:
        """Read the stream; when it breaks, query once: the platform is unavailable only if that fails too."""
        try:
            await self._stream(platform)
            return
        except TransientError as error:
            # In a worker this is the task's log, in which an outage has one line: its notice.
            _log.debug("The stream of %s broke: %s", counted(len(self._waits), "invocation"), error)
        except UnauthorizedError:
            raise
        except PermanentError as error:
            _log.info("Polling for statuses, as the platform has no stream of them: %s", error)
            self._push_from = math.inf
            return
        await self._query(platform)
        self._broken_streams += 1
        if self._broken_streams > BROKEN_STREAMS:
            self._broken_streams = 0
            self._push_from = time.monotonic() + WITHOUT_STREAM
        else:
            await self._rest(0.1 + backoff(self._broken_streams, base=0.5, cap=5.0))

    async def _stream(self, platform: Platform) -> None:
        ids = self._waits.ids if self._cursor is None else self._reported
        self._named, self._spare = set(ids), set()
        self._logs.restart()
        # Invocations that are not named have to be added; the stream before may have broken before it was.
        self._changed.set()
        async with platform.watch(self._named, self._logs.cursors(self._named), self._cursor) as watch:
            await run_until_first_ends(
                self._read(watch), self._change(watch), self._audit(platform), self._unused.wait()
            )

    async def _read(self, watch: Watch) -> None:
        resumed_from = self._cursor
        async for message in watch:
            self._availability.answered()
            match message:
                case StatusSnapshot(invocation_id):
                    if invocation_id in self._waits:
                        self._reported.add(invocation_id)
                    self._accept(message)
                case NewLines():
                    self._logs.accept(message)
                case UnreadableLog(invocation_id, reason):
                    self._logs.end(invocation_id, reason)
                case CaughtUp(cursor):
                    self._broken_streams = 0
                    if resumed_from is not None and cursor < resumed_from:
                        self._cursor, self._reported = None, set()
                        raise UnavailableError("the platform's event sequence was reset")
            self._cursor = watch.cursor

    async def _change(self, watch: Watch) -> None:
        """Add and remove invocations of the open stream, and stop and resume logs."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            # Waits that join at the same time go into one request.
            await asyncio.sleep(COLLECTING)
            added = self._waits.ids - self._named
            stopping = self._logs.stopping()
            resumed = self._logs.resumable()
            # Removed ids are not urgent; they are sent with the next change.
            if not (added or stopping or resumed or self._has_many_spare):
                continue
            spare, self._spare = self._spare, set()
            self._named |= added
            for wait in resumed:
                wait.flow = FlowState.Flowing
            for wait in stopping:
                wait.flow = FlowState.Stopped
            stopped = {wait.invocation_id for wait in stopping}
            logs = self._logs.cursors([*added, *(wait.invocation_id for wait in resumed)])
            # An invocation that is in both is removed first and added again.
            await watch.change(added | stopped, spare | stopped, logs)

    # -- poll ----------------------------------------------------------------------------------------

    async def _poll(self, platform: Platform) -> None:
        from .log_polling import poll_logs  # most platforms push; DAG files import this module

        await run_until_first_ends(
            self._poll_statuses(platform),
            poll_logs(platform, self._waits, self._logs, self._running),
            self._audit(platform),
            self._rest(self._push_from - time.monotonic()),
        )

    async def _poll_statuses(self, platform: Platform) -> None:
        while True:
            began = time.monotonic()
            await self._query(platform)
            took = time.monotonic() - began
            interval = min((wait.poll_interval for wait in self._waits), default=0.0)
            # A slow platform is polled less often.
            await asyncio.sleep(max(interval * random.uniform(1.0, 1.2), took))  # noqa: S311

    async def _query(self, platform: Platform) -> None:
        """Query once which invocations have ended, and the statuses of those that may begin to log."""
        may_begin = {invocation_id for invocation_id in self._waits.ids if self._may_begin(invocation_id)}
        for ids, request in (
            (self._waits.ids - may_begin, platform.ended),
            (may_begin, platform.statuses),
        ):
            for batch in _batches_of(list(ids), MAX_PAGE_SIZE):
                found = await self._request(platform, request, batch)
                self._availability.answered()
                for snapshot in found:
                    self._accept(snapshot)

    def _may_begin(self, invocation_id: str) -> bool:
        """Return whether a wait reads the log of an invocation that isn't known to be running."""
        return invocation_id not in self._running and self._waits.reader(invocation_id) is not None

    async def _request(
        self,
        platform: Platform,
        request: Callable[[Sequence[str]], Awaitable[list[StatusSnapshot]]],
        ids: Sequence[str],
    ) -> list[StatusSnapshot]:
        if self._batches:
            try:
                return await request(ids)
            except UnauthorizedError:
                raise
            except PermanentError as error:
                _log.info("Requesting each invocation separately, as the platform rejects batches: %s", error)
                self._batches = False
        return await self._singles(platform, ids)

    async def _singles(self, platform: Platform, ids: Sequence[str]) -> list[StatusSnapshot]:
        found: list[StatusSnapshot] = []
        remaining = iter(ids)

        async def fetch() -> None:
            for invocation_id in remaining:
                try:
                    record = await platform.get(invocation_id)
                except NotFoundError:
                    await self._check_gone(platform, invocation_id)
                else:
                    found.append(StatusSnapshot(invocation_id, record.current.status))

        await run_all(fetch() for _ in range(min(SINGLES, len(ids))))
        return found

    # -- what neither a stream nor a batch reports ------------------------------------------------------

    async def _audit(self, platform: Platform) -> None:
        """Check a few invocations at a time: each has to be known, and no end may be missed."""
        remaining: list[str] = []
        while True:
            await asyncio.sleep(AUDIT_INTERVAL * random.uniform(0.9, 1.1))  # noqa: S311
            remaining = remaining or list(self._waits.ids)
            batch, remaining = remaining[:AUDITED], remaining[AUDITED:]
            try:
                known = await platform.statuses(batch)
                for snapshot in known:
                    self._accept(snapshot)
                for invocation_id in set(batch) - {snapshot.invocation_id for snapshot in known}:
                    await self._check_gone(platform, invocation_id)
            except TransientError as error:
                _log.debug("Could not check %s: %s", counted(len(batch), "invocation"), error)
            except UnauthorizedError:
                raise
            except PermanentError:
                # The platform rejects batches; requests for single invocations show which are gone.
                await asyncio.Future()

    async def _check_gone(self, platform: Platform, invocation_id: str) -> None:
        """Notify the waits if an invocation is repeatedly not found.

        Replicas of a platform may not know an invocation that was just created.
        """
        for _ in range(LOST_AFTER):
            if invocation_id not in self._waits:
                return
            try:
                await platform.get(invocation_id)
            except NotFoundError:
                await asyncio.sleep(LOST_PAUSE)
            else:
                return
        for wait in self._waits.of(invocation_id):
            wait.notify(Gone())

    def _accept(self, snapshot: StatusSnapshot) -> None:
        invocation_id = snapshot.invocation_id
        if invocation_id not in self._waits:
            return
        if snapshot.status.is_running:
            self._running.add(invocation_id)
        if snapshot.status.is_terminal:
            for wait in self._waits.of(invocation_id):
                wait.notify(snapshot)
            self._forget(invocation_id)


class WatcherRegistry:
    """The watchers of one event loop, by connection."""

    def __init__(self) -> None:
        self._watchers: Registry[str, ConnectionWatcher] = Registry()

    @classmethod
    def current(cls) -> WatcherRegistry:
        """Return the registry of the running event loop."""
        return _registries.setdefault(asyncio.get_running_loop(), cls())

    def join(self, connection: str, connect: Connect, wait: WaitHandle) -> ConnectionWatcher:
        """Add a wait to the watcher of a connection, created if there is none; return the watcher."""
        watcher = self._watchers.find(connection)
        if watcher is None:
            watcher = ConnectionWatcher(connect)
            self._watchers.add(connection, watcher)
        watcher.join(wait)
        return watcher


_registries: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, WatcherRegistry] = (
    weakref.WeakKeyDictionary()
)


def _batches_of(ids: Sequence[str], size: int) -> Iterable[Sequence[str]]:
    return (ids[start : start + size] for start in range(0, len(ids), size))
