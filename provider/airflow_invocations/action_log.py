"""Write an action's log lines into the task's log."""

from __future__ import annotations

import asyncio
import datetime
import fcntl
import logging
import os
import socket
import stat
import struct
import sys
import termios
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self

import structlog

from .models import NewLines
from .models.text import counted
from .tasks.xcom import TAIL_LINES, storable_tail, storable_token
from .waiters import (
    BEGINNING,
    LOG_SETTINGS,
    Behind,
    Connect,
    LineShaper,
    LogLine,
    LogPosition,
    LogRelay,
    LongLine,
    Notice,
    UnshownRecords,
    WaitOptions,
    log_pages,
    read_end,
    wait_until_terminal,
)

if TYPE_CHECKING:
    from .models import LogRecord
    from .platforms import Platform

#: The source that Airflow shows beside each line.
ACTION_LOGGER = "airflow_invocations.action"

_TICK = datetime.timedelta(microseconds=1)

#: Airflow sorts the lines of several files by milliseconds.
_HANDOVER = datetime.timedelta(milliseconds=1)

#: Logged when a trigger continues a wait that another triggerer started.
SHOWN_AGAIN = "Another triggerer started this wait. The action's log is shown from its beginning again"

#: Logged once when lines arrive faster than they are shown.
BEHIND = (
    "The action writes lines faster than they can be shown here. The missing lines are shown when the "
    "invocation has ended"
)


@dataclass(frozen=True, slots=True)
class ShownLog:
    """How much of an action's log an earlier trigger or worker has shown.

    :param position: the position after the last line that was shown.
    :param until: the time of that line; None if there was none.
    :param last: the last lines.
    """

    position: LogPosition = BEGINNING
    until: datetime.datetime | None = None
    last: Sequence[str] = ()

    def as_event(self) -> dict[str, Any]:
        """Return the fields for a trigger's event, cleaned so that Airflow can store them."""
        cursor = storable_token(self.position.cursor)
        # Without its cursor, the log is shown from the beginning.
        position = self.position if cursor == self.position.cursor else BEGINNING
        long_line = position.long_line
        if long_line is not None and storable_token(long_line.partial_id) is None:
            long_line = None
        return {
            "cursor": cursor,
            "lines_beyond": position.lines,
            "long_line": None if long_line is None else asdict(long_line),
            "shown_until": None if self.until is None else self.until.isoformat(),
            "log_tail": storable_tail(list(self.last)),
        }

    @classmethod
    def from_event(cls, event: Mapping[str, Any]) -> Self:
        """Read what `as_event` wrote. Earlier versions wrote only the cursor and the last lines."""
        until = event.get("shown_until")
        long_line = event.get("long_line")
        position = LogPosition(
            event["cursor"],
            event.get("lines_beyond", 0),
            None if long_line is None else LongLine(**long_line),
        )
        return cls(
            position,
            None if until is None else datetime.datetime.fromisoformat(until),
            event["log_tail"],
        )


NOTHING_SHOWN = ShownLog()


class ActionLog:
    """Write an action's lines into the task's log, each with the time at which the action wrote it.

    The times increase from line to line, because Airflow sorts by them and drops equal lines with the same
    time. No time is later than now, whatever the platform's clock says.

    :param logs_url: the URL of the whole log; empty if it has none.
    :param shown: how much was shown before.
    """

    def __init__(self, logs_url: str = "", shown: ShownLog = NOTHING_SHOWN) -> None:
        self._logger = structlog.get_logger(ACTION_LOGGER)
        self.shaper = LineShaper(logs_url)
        self.shaper.long_line = shown.position.long_line
        self.position = shown.position
        self._unshown = UnshownRecords(shown.position)
        self._last = deque(shown.last, maxlen=TAIL_LINES)
        self._until = None if shown.until is None else shown.until + _HANDOVER

    @property
    def last(self) -> list[str]:
        """The last lines."""
        return list(self._last)

    def shown(self, position: LogPosition) -> ShownLog:
        """Return how much has been shown, for the trigger or worker that continues from a position."""
        return ShownLog(position, self._until, self.last)

    def show(self, line: LogLine) -> None:
        """Write one line."""
        if line.text is None:
            return
        moment = min(line.time.astimezone(datetime.UTC), datetime.datetime.now(datetime.UTC))
        if self._until is not None:
            moment = max(moment, self._until + _TICK)
        self._until = moment
        timestamp = moment.isoformat().replace("+00:00", "Z")
        # Airflow 3.1 does not add the name of the logger by itself.
        self._logger.info(line.text, logger=ACTION_LOGGER, timestamp=timestamp)
        self._last.append(line.text)

    async def show_page(self, records: Sequence[LogRecord], cursor: str | None = None) -> None:
        """Write the next page of the log, and yield to the event loop every few milliseconds."""
        stretch_began = time.monotonic()
        for record, position in self._unshown.of_page(records, cursor):
            self.show(self.shaper.shape(record))
            self.position = self.shaper.position_in_line(position)
            if time.monotonic() - stretch_began > LOG_SETTINGS.stretch:
                await asyncio.sleep(0)
                stretch_began = time.monotonic()


class LiveLog:
    """Show an action's log from a trigger, without delaying the other triggers of the process.

    :param logs_url: the URL of the whole log; empty if it has none.
    :param warn: receives messages about the wait and its log.
    """

    def __init__(self, logs_url: str, warn: Callable[[str], object]) -> None:
        self._log = ActionLog(logs_url)
        self._relay = log_relay()
        self._warn = warn
        #: Receives the log lines of the wait.
        self.queue = self._relay.open(self._log.show, self._log.position, self._log.shaper)

    @property
    def last(self) -> list[str]:
        """The last lines that were shown."""
        return self._log.last

    async def follow(self, connection: str, connect: Connect, waiting: WaitOptions) -> None:
        """Log the lines and notices of `wait_until_terminal`, which also defines the errors."""
        try:
            async for step in wait_until_terminal(connection, connect, waiting):
                match step:
                    case NewLines():
                        self._relay.put(self.queue, step.records, step.cursor)
                    case Behind():
                        self._warn(self._log.shaper.with_url(BEHIND))
                    case Notice():
                        self._warn(step.text)
        except asyncio.CancelledError:
            # The task was killed, or its trigger is moved: the next trigger or worker shows the log.
            self._relay.close(self.queue)
            raise

    async def leave(self) -> ShownLog:
        """Stop showing lines; return how many have left the triggerer, so that the worker shows the rest."""
        return self._log.shown(await self._relay.settle(self.queue))

    async def show_rest(self, platform: Platform, invocation_id: str) -> None:
        """Show the remaining lines within a time limit, without delaying other tasks."""
        limit = LOG_SETTINGS.triggerer_end
        await self._relay.settle(self.queue)
        position = self.queue.written
        first: list[LogLine] = []
        end = await read_end(
            log_pages(platform, invocation_id, position.cursor),
            position,
            shaper=self._log.shaper,
            limit=limit,
            show=first.append,
        )
        too_late = await self._relay.show_last(self.queue, first, limit.seconds)
        if end.left_out:
            self._warn(end.left_out)
        too_late += await self._relay.show_last(self.queue, end.last, 0.0 if too_late else limit.seconds)
        if too_late:
            text = f"Left out {counted(too_late, 'line')} because the triggerer is busy"
            self._warn(self._log.shaper.with_url(text))


def log_relay() -> LogRelay:
    """Return the relay of the running event loop, which carries the lines of all its triggers."""
    return LogRelay.current(_log_channel)


class SocketChannel:
    """The socket to which a process writes its log lines.

    :param descriptor: its file descriptor.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        with socket.socket(fileno=os.dup(descriptor)) as duplicate:
            self.capacity = duplicate.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)

    def unread(self) -> int | None:
        """Return about how many bytes the receiver has not read yet; None if unknown.

        Linux reports the memory of a local socket's unread data
        (https://man7.org/linux/man-pages/man7/unix.7.html, SIOCOUTQ).
        """
        if sys.platform != "linux":
            return None
        answer = fcntl.ioctl(self._descriptor, termios.TIOCOUTQ, struct.pack("i", 0))
        return int(struct.unpack("i", answer)[0])


def _log_channel() -> SocketChannel | None:
    """Return the socket to which Airflow writes this process's log lines; None if there is no socket."""
    for handler in logging.getLogger().handlers:
        stream = getattr(handler, "stream", None)
        try:
            descriptor = stream.fileno()  # type: ignore[union-attr]
            if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                return SocketChannel(descriptor)
        except (AttributeError, OSError, ValueError):
            continue
    return None
