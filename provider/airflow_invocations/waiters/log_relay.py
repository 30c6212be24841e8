"""Send many logs over one channel, in bursts and fair shares, without delaying the end of an invocation."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import heapq
import itertools
import time
import weakref
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from .log_lines import BEGINNING, LineShaper, LogLine, LogPosition, UnshownRecords
from .log_settings import LOG_SETTINGS, LogSettings

if TYPE_CHECKING:
    from ..models import LogRecord


class LogChannel(Protocol):
    """The channel that carries a process's log lines to their receiver."""

    #: Bytes that may be unread before a write blocks.
    capacity: int

    def unread(self) -> int | None:
        """Return about how many bytes were written and not yet read by the receiver; None if unknown."""


class LogQueue:
    """The lines of one log that were read from the platform and wait to be written.

    :param write: shows a line; it is called in the context in which the queue was made.
    :param position: how far the log was shown before.
    :param shaper: converts records to lines.
    """

    def __init__(
        self,
        write: Callable[[LogLine], object] = lambda _: None,
        position: LogPosition = BEGINNING,
        shaper: LineShaper | None = None,
        settings: LogSettings = LOG_SETTINGS,
    ) -> None:
        self._write = write
        self._context = contextvars.copy_context()
        self._settings = settings
        self._shaper = shaper or LineShaper(settings=settings)
        self._shaper.long_line = position.long_line
        self._unshown = UnshownRecords(position)
        self._lines: deque[tuple[LogLine, LogPosition | None]] = deque()
        self._is_full = False
        #: Bytes in the queue.
        self.size = 0
        #: The position of the last line written, and of the last line known to have left the process.
        self.written = position
        self.left = position
        #: Called when a queue that was full has room again.
        self.on_room: Callable[[], object] = lambda: None
        #: Bytes written recently, the time of that count, and the relay's limit for all queues.
        self._had = 0.0
        self._had_at = 0.0
        self.is_capped: Callable[[], bool] = lambda: False

    def __len__(self) -> int:
        return len(self._lines)

    @property
    def has_room(self) -> bool:
        """Whether to read more of the log: false from when the queue is full until it is empty."""
        return not self._is_full and not self.is_capped()

    def put(self, records: Sequence[LogRecord], cursor: str | None) -> int:
        """Add the next page of the log; return its bytes."""
        before = self.size
        for record, position in self._unshown.of_page(records, cursor):
            line = self._shaper.shape(record)
            self._lines.append((line, self._shaper.position_in_line(position)))
            self.size += line.size
        if len(self._lines) >= self._settings.queue_lines or self.size >= self._settings.queue_size:
            self._is_full = True
        return self.size - before

    def put_last(self, lines: Sequence[LogLine]) -> int:
        """Add lines to show at the end of a log, from any position; return their bytes."""
        self._lines.extend((line, None) for line in lines)
        added = sum(line.size for line in lines)
        self.size += added
        return added

    @property
    def next_size(self) -> int:
        """Bytes that the next line costs."""
        return self._lines[0][0].size

    def write_next(self) -> int:
        """Write the next line; return its bytes."""
        line, position = self._lines.popleft()
        self.written = position or self.written
        self.size -= line.size
        if line.text is not None:
            self._context.run(self._write, line)
        if self._is_full and not self._lines:
            self._is_full = False
            self.on_room()
        return line.size

    def clear(self) -> int:
        """Empty the queue; return the bytes dropped."""
        dropped, self.size = self.size, 0
        self._lines.clear()
        return dropped

    def had_lately(self, present: float) -> float:
        """Return the bytes written recently; the count halves every `memory` seconds of the settings."""
        self._had *= 0.5 ** ((present - self._had_at) / self._settings.memory)
        self._had_at = present
        return self._had

    def note_had(self, size: int) -> None:
        """Note what was written since `had_lately`."""
        self._had += size


class BurstBudget:
    """The size limit of a burst in bytes: halved after a slow burst, increased a little after a quick one."""

    def __init__(self, settings: LogSettings = LOG_SETTINGS) -> None:
        self._settings = settings
        self.size = settings.first_burst

    def learn(self, *, seconds: float, was_limit: bool) -> None:
        """Record how long a burst took to be read, and whether lines were left because of the limit."""
        if seconds > self._settings.drain_target:
            self.size = max(self._settings.least_burst, self.size // 2)
        elif was_limit:
            self.size = min(self._settings.most_burst, int(self.size * self._settings.growth))


class LogRelay:
    """Write the queues of one event loop.

    The receiver of a triggerer's lines is its supervisor, which also forwards its events. Each wake-up of the
    supervisor costs as much as some thousand lines. So the lines of about a second are written together, and
    only as many as it can read in a small part of that second. The log with the fewest recent bytes comes
    first.

    :param channel: the channel that carries the lines; None: there is none, and lines leave when written.
    :param clock: seconds, monotonic.
    """

    def __init__(
        self,
        channel: LogChannel | None = None,
        settings: LogSettings = LOG_SETTINGS,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._channel = channel
        self._settings = settings
        self._clock = clock
        self._sleep = sleep
        self._budget = BurstBudget(settings)
        #: Queues with lines to write, and queues with lines that were written and not yet read.
        self._waiting: dict[LogQueue, None] = {}
        self._leaving: dict[LogQueue, None] = {}
        #: Bytes in all queues, and the queues that accept no lines until there are far fewer.
        self._size = 0
        self._capped: dict[LogQueue, None] = {}
        self._next_burst = 0.0
        self._has_left = asyncio.Event()
        self._tie = itertools.count()
        self._task: asyncio.Task[None] | None = None

    @classmethod
    def current(cls, make_channel: Callable[[], LogChannel | None]) -> LogRelay:
        """Return the relay of the running event loop; `make_channel` is called once, to create it."""
        loop = asyncio.get_running_loop()
        relay = _relays.get(loop)
        if relay is None:
            relay = _relays[loop] = cls(make_channel())
        return relay

    def open(self, write: Callable[[LogLine], object], position: LogPosition, shaper: LineShaper) -> LogQueue:
        """Return a queue for one log, whose lines are written in the context of the caller."""
        queue = LogQueue(write, position, shaper, self._settings)
        queue.is_capped = functools.partial(self._is_capped, queue)
        return queue

    def put(self, queue: LogQueue, records: Sequence[LogRecord], cursor: str | None) -> None:
        """Queue the next page of a log."""
        self._size += queue.put(records, cursor)
        self._start(queue)

    async def show_last(self, queue: LogQueue, lines: Sequence[LogLine], seconds: float) -> int:
        """Write a log's last lines within a time limit; return how many were left out."""
        self._size += queue.put_last(lines)
        self._start(queue)
        deadline = self._clock() + seconds
        while len(queue) and self._clock() < deadline:
            await self._sleep(self._settings.poll)
        too_late = len(queue)
        self._drop(queue)
        return too_late

    def _start(self, queue: LogQueue) -> None:
        if len(queue):
            self._waiting[queue] = None
            if self._task is None or self._task.done():
                self._task = asyncio.create_task(self._run(), context=contextvars.Context())

    async def settle(self, queue: LogQueue) -> LogPosition:
        """Stop writing a log; return the position up to which its lines have left the process.

        Waits at most the settings' `settle` seconds for lines that were written and not yet read. Lines still
        in the queue are left to the worker, which reads on from that position.
        """
        self._drop(queue)
        try:
            async with asyncio.timeout(self._settings.settle):
                while queue in self._leaving:
                    self._has_left.clear()
                    await self._has_left.wait()
        except TimeoutError:
            self._leaving.pop(queue, None)
        return queue.left

    def close(self, queue: LogQueue) -> None:
        """Remove a log that no task waits for any more."""
        self._drop(queue)
        self._leaving.pop(queue, None)

    async def drain(self) -> None:
        """Wait until all written lines are read, for at most the settings' `settle` seconds."""
        await self._is_read_before(self._clock() + self._settings.settle)

    def _drop(self, queue: LogQueue) -> None:
        """Drop the lines in a queue."""
        self._size -= queue.clear()
        self._waiting.pop(queue, None)
        self._capped.pop(queue, None)

    def _is_capped(self, queue: LogQueue) -> bool:
        """Return whether a queue accepts no lines because all queues together are full."""
        if self._size >= self._settings.queues_size:
            self._capped[queue] = None
        return queue in self._capped

    async def _run(self) -> None:
        while self._waiting or self._leaving:
            await self._sleep(max(self._settings.collecting, self._next_burst - self._clock()))
            began = self._clock()
            self._next_burst = began + self._settings.interval
            was_limit = await self._burst(began)
            written = self._clock()
            is_read = await self._is_read_before(self._next_burst)
            read = self._clock() if self._knows_unread else written
            self._budget.learn(seconds=read - began, was_limit=was_limit)
            if is_read or await self._is_read_before(began + self._settings.drain_limit):
                self._note_left()
            self._make_room()

    async def _burst(self, present: float) -> bool:
        """Write lines, starting with the log with the fewest recent bytes; return whether lines are left."""
        ready = [(queue.had_lately(present), next(self._tie), queue) for queue in self._waiting]
        heapq.heapify(ready)
        remaining, stretch_began = self._budget.size, present
        while ready:
            had, tie, queue = heapq.heappop(ready)
            if not len(queue):
                continue
            if queue.next_size > remaining and remaining < self._budget.size:
                return True
            size = queue.write_next()
            self._size -= size
            remaining -= size
            queue.note_had(size)
            self._leaving[queue] = None
            if len(queue):
                heapq.heappush(ready, (had + size, tie, queue))
            else:
                self._waiting.pop(queue, None)
            if self._clock() - stretch_began > self._settings.stretch:
                await self._sleep(0)
                stretch_began = self._clock()
            if not await self._write_would_not_block(present + self._settings.drain_target):
                return bool(ready)
        return False

    async def _write_would_not_block(self, deadline: float) -> bool:
        """Return whether the channel has room for a line before the deadline."""
        if self._channel is None:
            return True
        while (self._channel.unread() or 0) > self._channel.capacity // 2:
            if self._clock() >= deadline:
                return False
            await self._sleep(self._settings.poll)
        return True

    async def _is_read_before(self, deadline: float) -> bool:
        """Return whether all written lines are read before the deadline; if unknown, wait for it."""
        if self._channel is None:
            return True
        if not self._knows_unread:
            await self._sleep(max(0.0, deadline - self._clock()))
            return True
        while self._channel.unread():
            if self._clock() >= deadline:
                return False
            await self._sleep(self._settings.poll)
        return True

    @property
    def _knows_unread(self) -> bool:
        return self._channel is None or self._channel.unread() is not None

    def _note_left(self) -> None:
        for queue in self._leaving:
            queue.left = queue.written
        self._leaving.clear()
        self._has_left.set()

    def _make_room(self) -> None:
        """Resume reading of logs that were stopped because all queues together were full."""
        if self._capped and self._size < self._settings.queues_size // 2:
            capped, self._capped = self._capped, {}
            for queue in capped:
                queue.on_room()


_relays: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, LogRelay] = weakref.WeakKeyDictionary()
