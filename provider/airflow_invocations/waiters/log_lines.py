"""Convert an action's log records to lines of a task's log, and track the position."""

from __future__ import annotations

import datetime
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..models.text import counted, encodable
from .log_settings import LOG_SETTINGS, LogEnd, LogSettings

if TYPE_CHECKING:
    from ..models import LogRecord


@dataclass(frozen=True, slots=True)
class LongLine:
    """A long line of which some parts were shown.

    :param partial_id: the id that its parts share.
    :param shown: the characters in these parts.
    """

    partial_id: str
    shown: int


@dataclass(frozen=True, slots=True)
class LogPosition:
    """The position up to which a log was shown.

    :param cursor: the platform's cursor at the end of a page; None: the beginning.
    :param lines: further records that were shown after the cursor.
    :param long_line: the line that the position is in; None: it is at the end of a line.
    """

    cursor: str | None = None
    lines: int = 0
    long_line: LongLine | None = None


#: The position before the first line.
BEGINNING = LogPosition()


@dataclass(frozen=True, slots=True)
class LogLine:
    """A line of a task's log.

    :param text: None: the record is not shown, because its line was cut before.
    :param time: when the action wrote it.
    :param size: its bytes, with Airflow's overhead.
    """

    text: str | None
    time: datetime.datetime
    size: int


class LineShaper:
    """Convert records to lines: redrawn lines in their last state, long lines cut.

    :param logs_url: the URL of the whole log; empty if it has no page.
    """

    #: The long line that the last record is a part of.
    long_line: LongLine | None = None

    def __init__(self, logs_url: str = "", settings: LogSettings = LOG_SETTINGS) -> None:
        self.logs_url = logs_url
        self._settings = settings

    def shape(self, record: LogRecord) -> LogLine:
        """Return a record's line. The parts of one long line share its maximum length."""
        text = encodable(record.log.rstrip("\r").rpartition("\r")[2])
        before = self.long_line
        shown = before.shown if before is not None and before.partial_id == record.partial_id else 0
        room = self._settings.line_length - shown
        self.long_line = None if record.partial_id is None else LongLine(record.partial_id, shown + len(text))
        if room <= 0:
            return LogLine(None, record.timestamp, 0)
        if len(text) > room or (len(text) == room and record.partial_id is not None):
            text = f"{text[:room]} {self._cut_notice}"
        return LogLine(text, record.timestamp, len(text) + self._settings.overhead)

    def position_in_line(self, position: LogPosition) -> LogPosition:
        """Return the position of the last record with the long line that it is a part of."""
        return position if self.long_line is None else replace(position, long_line=self.long_line)

    def size_of(self, record: LogRecord) -> int:
        """Return the maximum size of a record's line."""
        return min(len(record.log), self._settings.line_length) + self._settings.overhead

    @property
    def _cut_notice(self) -> str:
        where = f"; the whole line: {self.logs_url}" if self.logs_url else ""
        return f"[... cut after {self._settings.line_length:,} characters{where} ]"

    def left_out_notice(self, lines: int, size: int, trouble: str) -> str:
        """Return the line that replaces lines left out of a task's log."""
        parts = [trouble] if trouble else []
        if lines:
            parts.append(
                f"Left out here of the action's log: {counted(lines, 'line')} ({size / 1e6:,.1f} MB)"
            )
        return self.with_url("; ".join(parts))

    def with_url(self, text: str) -> str:
        """Return a message with the URL of the whole log appended."""
        return f"{text}; the whole log: {self.logs_url}" if self.logs_url else text


class UnshownRecords:
    """Skip the records of consecutive pages that were shown before a position."""

    def __init__(self, position: LogPosition = BEGINNING) -> None:
        self._skip = position.lines
        self._cursor = position.cursor

    def of_page(
        self, records: Sequence[LogRecord], cursor: str | None
    ) -> Iterator[tuple[LogRecord, LogPosition]]:
        """Yield the records of the next page that were not shown, each with the position after it."""
        skip, begins_at = self._skip, self._cursor
        self._skip, self._cursor = max(0, skip - len(records)), cursor
        for number, record in enumerate(records[skip:], skip + 1):
            yield record, LogPosition(cursor) if number == len(records) else LogPosition(begins_at, number)


class FirstAndLast:
    """Keep the first lines of the rest of a log, and its last lines once all of it has been read.

    :param shaper: converts the first and last records to lines; the others are not converted.
    """

    def __init__(self, limit: LogEnd, shaper: LineShaper) -> None:
        self._shaper = shaper
        self._first_lines, self._first_size = limit.lines // 2, limit.size // 2
        self._last_lines, self._last_size = limit.lines - self._first_lines, limit.size - self._first_size
        self._last: deque[LogRecord] = deque()
        self._size_of_last = 0
        self._is_full = False
        #: Lines and characters left out between the first lines and the last.
        self.left_out = 0
        self.left_out_size = 0

    def add(self, record: LogRecord) -> LogLine | None:
        """Add the next record; return its line if it is one of the first, which are shown immediately."""
        if not self._is_full:
            size = self._shaper.size_of(record)
            if self._first_lines >= 1 and self._first_size >= size:
                self._first_lines -= 1
                self._first_size -= size
                return self._shaper.shape(record)
            self._is_full = True
        self._last.append(record)
        self._size_of_last += self._shaper.size_of(record)
        while len(self._last) > self._last_lines or self._size_of_last > self._last_size:
            self._leave_out(self._last.popleft())
        return None

    def leave_out_last(self) -> None:
        """Leave out the last lines, because the log was not read to its end."""
        while self._last:
            self._leave_out(self._last.popleft())

    def last(self) -> list[LogLine]:
        """Return the last lines, to be shown after the notice about lines left out."""
        return [self._shaper.shape(record) for record in self._last]

    def _leave_out(self, record: LogRecord) -> None:
        self._size_of_last -= self._shaper.size_of(record)
        self.left_out += 1
        self.left_out_size += len(record.log)
