"""Append-only log files, one an invocation, and the cursors that read on where a reader stopped.

A file is a row of frames: a header, then whole lines as the action wrote them, or one part of a long line.
Lines are split when they are read, so that keeping up with an action costs a write a chunk, not one a line.
"""

from __future__ import annotations

import contextlib
import hmac
import logging
import os
import re
import secrets
import struct
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from ...models import LogPage, LogProcess, LogRecord
from ..db import INVOCATION_ID, CheckedInvocation
from .redaction import Redaction

#: Lines longer than this many bytes are kept in parts.
MAX_LINE = 64 * 1024

#: Seconds in which at most one state of a line is kept that is redrawn, as progress bars are.
REDRAW_INTERVAL = 1.0

#: A page holds at most so many lines, and about so many bytes.
PAGE_LINES = 1000
PAGE_BYTES = 1024 * 1024

#: Mark; payload length; time (microseconds); process; the long line that this is a part of (0: none).
_HEADER = struct.Struct(">HIqBQ")
_MARK = 0xA10F
_MAX_PAYLOAD = 3 * MAX_LINE
_PROCESSES = tuple(LogProcess)
#: A carriage return at the end may be half of a line's end: what follows decides.
_LINE_END = re.compile(rb"\r?\n|\r(?=[^\n])")
#: Terminal sequences that move the cursor, erase, or colour.
_CLEARS = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]")
_CURSOR = re.compile(r"([0-9]{1,18})\.([0-9]{1,9})\.([0-9a-f]{16})")

_log = logging.getLogger(__name__)


class InvalidCursorError(ValueError):
    """A cursor that this server did not hand out."""


@dataclass(frozen=True, slots=True)
class Cursor:
    """The next line to read: the offset of its frame, and its number within the frame."""

    offset: int = 0
    line: int = 0

    def __str__(self) -> str:
        return f"{self.offset}.{self.line}"


class CursorSigner:
    """Sign and verify the cursors given to readers, so that they can't be forged.

    An action decides what is in its log, so it could write there what looks like a frame of the server's
    own; a cursor that leads into the middle of a frame would read that.

    :param key: what they are signed with; cursors are good as long as it is the same.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key

    def sign(self, invocation_id: str, cursor: Cursor) -> str:
        """Write a cursor of an invocation's log."""
        said = f"{invocation_id}:{cursor}".encode()
        return f"{cursor}.{hmac.digest(self._key, said, 'sha256').hex()[:16]}"

    def read(self, invocation_id: str, text: str | None) -> Cursor:
        """Read what `sign` wrote; None is the beginning. Raises InvalidCursorError."""
        if text is None:
            return Cursor()
        match = _CURSOR.fullmatch(text)
        cursor = Cursor() if match is None else Cursor(int(match[1]), int(match[2]))
        if not hmac.compare_digest(self.sign(invocation_id, cursor).encode(), text.encode(errors="replace")):
            raise InvalidCursorError(f"not a cursor of this log: {text[:40]!r}")
        return cursor


class LogFiles:
    """The log files in one folder.

    :param folder: where they are.
    :param key: what cursors are signed with; without one they are good for this object only.
    """

    def __init__(self, folder: Path, key: bytes | None = None) -> None:
        self._folder = folder
        self.cursors = CursorSigner(key or secrets.token_bytes(32))
        self._listeners: list[Callable[[str, int], None]] = []

    def listen(self, listener: Callable[[str, int], None]) -> None:
        """Have `listener` called with an invocation's id and a number of bytes whenever its log has grown."""
        self._listeners.append(listener)

    def writer(self, invocation_id: str) -> LogWriter:
        """Open an invocation's log to append to it; what a crash left half-written is cut off first."""
        self._folder.mkdir(parents=True, exist_ok=True)

        def grew(size: int) -> None:
            for listener in self._listeners:
                listener(invocation_id, size)

        return LogWriter(self._path(invocation_id), grew)

    def read(
        self, invocation: CheckedInvocation, cursor: str | None = None, limit: int = PAGE_LINES
    ) -> LogPage:
        """The next lines from `cursor` on, at most `limit` of them.

        `has_next` tells whether more is there now, `last_read` where to read on; it is the cursor that was
        given (or None) while there is nothing.

        Raises:
            InvalidCursorError: for a cursor that isn't one of this log's.
        """
        place = self.cursors.read(invocation.invocation_id, cursor)
        try:
            file = self._path(invocation.invocation_id).open("rb")
        except FileNotFoundError:
            if place != Cursor():
                raise InvalidCursorError(f"the log has no place {place}") from None
            return LogPage(items=[], has_next=False, last_read=cursor)
        with file:
            page = _read_page(file, place, limit)
        following = (
            cursor if page.following is None else self.cursors.sign(invocation.invocation_id, page.following)
        )
        return LogPage(items=page.items, has_next=page.has_next, last_read=following)

    def _path(self, invocation_id: str) -> Path:
        if not INVOCATION_ID.fullmatch(invocation_id):
            raise ValueError(f"not the id of an invocation: {invocation_id[:40]!r}")
        return self._folder / f"{invocation_id}.log"


@dataclass(frozen=True, slots=True)
class _Page:
    items: list[LogRecord]
    has_next: bool
    #: Where to read on; None: where this page was read from.
    following: Cursor | None


def _read_page(file: BinaryIO, place: Cursor, limit: int) -> _Page:
    items: list[LogRecord] = []
    size = 0
    end = file.seek(0, os.SEEK_END)
    if place.offset > end or (place.offset == end and place.line):
        raise InvalidCursorError(f"the log has no place {place}")
    for frame in _frames(file, place.offset):
        lines = frame.lines()
        first = place.line if frame.offset == place.offset else 0
        if first >= len(lines):
            raise InvalidCursorError(f"the log has no place {place}")
        for number in range(first, len(lines)):
            if len(items) >= limit or size >= PAGE_BYTES:
                return _Page(items, has_next=True, following=Cursor(frame.offset, number))
            items.append(frame.record(lines[number]))
            size += len(lines[number])
        place = Cursor(frame.end)
    return _Page(items, has_next=False, following=place if items else None)


@dataclass(frozen=True, slots=True)
class _Frame:
    offset: int
    end: int
    microseconds: int
    process: LogProcess
    part_of: int
    payload: bytes

    def lines(self) -> list[bytes]:
        if self.part_of:
            return [self.payload]
        return [line.removesuffix(b"\r") for line in self.payload.removesuffix(b"\n").split(b"\n")]

    def record(self, line: bytes) -> LogRecord:
        return LogRecord(
            log=line.decode("utf-8", errors="replace"),
            process=self.process,
            timestamp=datetime.fromtimestamp(self.microseconds / 1e6, UTC),
            partial_id=f"{self.part_of:x}" if self.part_of else None,
        )


def _frames(file: BinaryIO, offset: int) -> Iterator[_Frame]:
    """The whole frames from `offset` on; one that is still being written is left out."""
    file.seek(offset)
    while len(header := file.read(_HEADER.size)) == _HEADER.size:
        mark, length, microseconds, process, part_of = _HEADER.unpack(header)
        if mark != _MARK or length > _MAX_PAYLOAD or process >= len(_PROCESSES):
            raise InvalidCursorError(f"the log has no place {Cursor(offset)}")
        payload = file.read(length)
        if len(payload) < length:
            return
        end = offset + _HEADER.size + length
        yield _Frame(offset, end, microseconds, _PROCESSES[process], part_of, payload)
        offset = end


class LogWriter:
    """Appends to one log file. Use `stream` once for each pipe that lines come from, then `close`.

    What the disk refuses waits in memory, in order, until `flush` finds room for it: nothing is left out, and
    the caller that feeds the streams should stop until then.
    """

    def __init__(self, path: Path, grew: Callable[[int], None] = lambda _: None) -> None:
        self._grew = grew
        self._file = path.open("ab+", buffering=0)
        #: Frames that aren't written yet, each with the size of its lines.
        self._waiting: deque[tuple[bytes, int]] = deque()
        self._refused = False
        self._end = 0
        with contextlib.suppress(InvalidCursorError):  # zeros, say, that a power cut left at the end
            for frame in _frames(self._file, 0):
                self._end = frame.end
        self._file.truncate(self._end)

    def stream(self, process: LogProcess, redaction: Redaction | None = None) -> LineStream:
        """A pipe's end: feed it what was read, in any pieces."""
        return LineStream(self, process, redaction or Redaction(()))

    def say(self, process: LogProcess, text: str) -> None:
        """Append lines of the server's own."""
        stream = self.stream(process)
        stream.feed(text.encode(errors="replace"))
        stream.finish()

    def append(self, process: LogProcess, payload: bytes, part_of: int) -> None:
        """Append one frame: whole lines, or a part of the long line that began at `part_of`."""
        now = time.time_ns() // 1000
        frame = _HEADER.pack(_MARK, len(payload), now, _PROCESSES.index(process), part_of) + payload
        self._waiting.append((frame, len(payload)))
        self.flush()

    def flush(self) -> bool:
        """Write the queued frames; return False if some remain because the disk is full."""
        try:
            self.write_waiting()
        except OSError as error:
            if not self._refused:
                _log.warning("Could not write %s, retrying until it succeeds: %s", self._file.name, error)
            self._refused = True
            return False
        self._refused = False
        return True

    def write_waiting(self) -> None:
        """Write the queued frames. Raises OSError if some remain because the disk is full."""
        while self._waiting:
            frame, size = self._waiting[0]
            self._write(frame)
            self._waiting.popleft()
            self._grew(size)

    def _write(self, frame: bytes) -> None:
        written = 0
        try:
            while written < len(frame):  # a disk that is nearly full takes less than it is given
                written += self._file.write(frame[written:])
        except OSError:
            self._file.truncate(self._end)
            raise
        self._end += len(frame)

    def number_for_long_line(self) -> int:
        """A number that no other long line of this log has: where its first part starts, plus one."""
        return self._end + sum(len(frame) for frame, _ in self._waiting) + 1

    def close(self) -> None:
        """Close the file; the streams must have been finished, and what still waits is lost."""
        self._file.close()


class LineStream:
    """Convert the data of a pipe, in pieces of any size, to frames of whole lines.

    A line ends at a line feed, with or without a carriage return before it. Any other carriage return begins
    the line again, as progress bars do: of what is overwritten one state a second is kept, and the last one
    always. Nothing else is dropped.
    """

    def __init__(self, writer: LogWriter, process: LogProcess, redaction: Redaction) -> None:
        self._writer = writer
        self._process = process
        self._redaction = redaction
        self._tail = b""
        self._part_of = 0
        #: Of a line that is redrawn; None: the current one isn't.
        self._redrawn: _RedrawnLine | None = None
        self._next_redraw = 0.0
        #: The last line that isn't blank, as far as it is known; at most MAX_LINE bytes of it.
        self.last_line = b""

    def feed(self, data: bytes) -> bool:
        """Take the next piece; False if it waits in memory, as the disk takes no more for now.

        An empty piece only tries to write what waits.
        """
        for start in range(0, len(data), MAX_LINE):
            self._take(data[start : start + MAX_LINE])
        return self._writer.flush()

    def show_redrawn(self) -> None:
        """Write the current state of a redrawn line, when no data has come for a while."""
        if self._redrawn is None:
            return
        if not self._redaction.longest:  # else it may be the first half of a secret's value
            self._redrawn.overwrite(self._tail.removesuffix(b"\r"))
        self._keep_redrawn()

    def _take(self, data: bytes) -> None:
        data = self._tail + data
        self._tail = b""
        if self._part_of and (end := _LINE_END.search(data)):
            self._append_part(data[: end.start()])
            self._part_of = 0
            self._redrawn = _RedrawnLine() if end[0] == b"\r" else None
            data = data[end.end() :]
        data = data.replace(b"\r\n", b"\n")
        lines, line_feed, self._tail = data.rpartition(b"\n")
        if line_feed:
            self._append_lines(self._final_states(lines))
        self._overwrite()
        if len(self._tail) >= MAX_LINE:
            self._redrawn = None
            self._part_of = self._part_of or self._writer.number_for_long_line()
            self._tail = self._redaction.applied_to(self._tail)
            cut = _end_of_characters(self._tail[: len(self._tail) - self._redaction.held_back(self._tail)])
            self._append_part(self._tail[:cut])
            self._tail = self._tail[cut:]

    def finish(self) -> None:
        """The pipe is closed: what it ended with is a line, with or without a line feed."""
        tail, self._tail = self._tail, b""
        if self._part_of:
            self._append_part(tail.removesuffix(b"\r"))
        elif tail or self._redrawn is not None:
            self._append_lines(self._final_states(tail.removesuffix(b"\r")))

    def _final_states(self, lines: bytes) -> bytes:
        """What whole lines look like in the end; the first of them may be one that was redrawn before."""
        if self._redrawn is None and b"\r" not in lines:
            return lines + b"\n"
        final: list[bytes] = []
        for line in lines.split(b"\n"):
            redrawn, self._redrawn = self._redrawn or _RedrawnLine(), None
            for state in line.split(b"\r"):
                redrawn.overwrite(state)
            if not redrawn.is_kept:
                final.append(redrawn.state + b"\n")
        return b"".join(final)

    def _overwrite(self) -> None:
        """Note what the line that isn't whole yet was before its last carriage return."""
        # The last byte may be half of a line's end.
        *overwritten, rest = self._tail[:-1].split(b"\r")
        if not overwritten:
            return
        self._redrawn = self._redrawn or _RedrawnLine()
        for state in overwritten:
            self._redrawn.overwrite(state)
        self._tail = rest + self._tail[-1:]
        self._keep_redrawn()

    def _keep_redrawn(self) -> None:
        redrawn, now = self._redrawn, time.monotonic()
        if redrawn is not None and redrawn.state and not redrawn.is_kept and now >= self._next_redraw:
            self._next_redraw = now + REDRAW_INTERVAL
            self._append_lines(redrawn.state + b"\n")
            redrawn.is_kept = True

    def _append_lines(self, lines: bytes) -> None:
        lines = self._redaction.applied_to(lines)
        if lines:
            self._writer.append(self._process, lines, part_of=0)
            self._remember(lines.rstrip().rpartition(b"\n")[2])

    def _append_part(self, part: bytes) -> None:
        part = self._redaction.applied_to(part)
        if part:
            self._writer.append(self._process, part, self._part_of)
            self._remember(part)

    def _remember(self, line: bytes) -> None:
        if line.strip():
            self.last_line = line[-MAX_LINE:].strip()


@dataclass(slots=True)
class _RedrawnLine:
    """A line that is written again and again."""

    #: What it was last that isn't blank.
    state: bytes = b""
    #: Whether that is in the log already.
    is_kept: bool = False

    def overwrite(self, state: bytes) -> None:
        """Take another state; one that shows nothing only clears the line."""
        if state != self.state and _CLEARS.sub(b"", state).strip():
            self.state, self.is_kept = state, False


def _end_of_characters(data: bytes) -> int:
    """Where to cut so that no UTF-8 character and no line's end is cut in two; other bytes, anywhere."""
    if data.endswith(b"\r"):
        return len(data) - 1
    for back in range(1, 4):
        byte = data[-back]
        if byte & 0b1100_0000 == 0b1000_0000:  # a continuation: the character began further left
            continue
        length = 4 if byte >= 0xF0 else 3 if byte >= 0xE0 else 2 if byte >= 0xC0 else 1
        return len(data) - back if length > back else len(data)
    return len(data)
