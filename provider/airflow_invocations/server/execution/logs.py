"""Append-only log files, one per invocation, and the cursors with which a reader continues.

A file is a sequence of frames: a header, then whole lines as the action wrote them, or one part of a long
line. Lines are split when they are read, so writing costs one write per chunk and not one per line.
"""

from __future__ import annotations

import contextlib
import hashlib
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

from itsdangerous import BadSignature, Signer

from ...models import LogPage, LogProcess, LogRecord
from ..db import INVOCATION_ID, CheckedInvocation
from .redaction import Redaction

#: Lines longer than this many bytes are stored in parts.
MAX_LINE = 64 * 1024

#: Seconds between two stored states of a line that is redrawn, such as a progress bar.
REDRAW_INTERVAL = 1.0

#: Lines in a page, at most, and bytes, approximately.
PAGE_LINES = 1000
PAGE_BYTES = 1024 * 1024

#: Mark; payload length; time (microseconds); process; number of the long line that has this part (0: none).
_HEADER = struct.Struct(">HIqBQ")
_MARK = 0xA10F
_MAX_PAYLOAD = 3 * MAX_LINE
_PROCESSES = tuple(LogProcess)
#: A carriage return at the end may be the first half of a line's end; the next byte decides.
_LINE_END = re.compile(rb"\r?\n|\r(?=[^\n])")
#: Terminal sequences that move the cursor, erase, or colour.
_CLEARS = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]")

_log = logging.getLogger(__name__)


class InvalidCursorError(ValueError):
    """A cursor that isn't one of the log's."""


@dataclass(frozen=True, slots=True)
class Cursor:
    """The next line to read: the offset of its frame, and its number within the frame."""

    offset: int = 0
    line: int = 0

    def __str__(self) -> str:
        return f"{self.offset}.{self.line}"


class CursorSigner:
    """Signs and verifies the cursors given to readers, so that they can't be forged.

    An action decides the content of its log, so it could write data that looks like a frame of the server;
    a forged cursor into the middle of a frame would read that data.

    :param secret: the secret of the signatures; cursors are valid as long as it stays the same.
    """

    def __init__(self, secret: str) -> None:
        self._secret = secret

    def sign(self, invocation_id: str, cursor: Cursor) -> str:
        """Return a cursor of an invocation's log as text."""
        return self._signer(invocation_id).sign(str(cursor)).decode()

    def read(self, invocation_id: str, text: str | None) -> Cursor:
        """Read the text of a cursor; None is the beginning. Raises InvalidCursorError."""
        if text is None:
            return Cursor()
        try:
            offset, line = self._signer(invocation_id).unsign(text.encode(errors="replace")).split(b".")
        except BadSignature:
            raise InvalidCursorError(f"not a cursor of this log: {text[:40]!r}") from None
        return Cursor(int(offset), int(line))

    def _signer(self, invocation_id: str) -> Signer:
        salt = f"airflow-invocations log cursor {invocation_id}"
        return Signer(self._secret, salt, key_derivation="hmac", digest_method=hashlib.sha256)


class LogFiles:
    """The log files in one folder.

    :param folder: the folder.
    :param secret: the secret of the cursors; None: cursors are valid for this object only.
    """

    def __init__(self, folder: Path, secret: str | None = None) -> None:
        self._folder = folder
        self.cursors = CursorSigner(secret or secrets.token_urlsafe())
        self._listeners: list[Callable[[str, int], None]] = []

    def listen(self, listener: Callable[[str, int], None]) -> None:
        """Call `listener` whenever a log has grown, with the invocation's id and the number of bytes."""
        self._listeners.append(listener)

    def writer(self, invocation_id: str) -> LogWriter:
        """Open an invocation's log to append to it; an incomplete frame of a crashed server is removed."""
        self._folder.mkdir(parents=True, exist_ok=True)

        def grew(size: int) -> None:
            for listener in self._listeners:
                listener(invocation_id, size)

        return LogWriter(self._path(invocation_id), grew)

    def read(
        self, invocation: CheckedInvocation, cursor: str | None = None, limit: int = PAGE_LINES
    ) -> LogPage:
        """Return the next lines.

        :param cursor: where to continue; None: at the beginning.
        :param limit: lines at most.
        :return: a page whose `has_next` says whether more lines exist now, and whose `last_read` is the next
            cursor. That is `cursor` itself if there are no more lines.
        :raises InvalidCursorError: the cursor isn't one of this log's.
        """
        position = self.cursors.read(invocation.invocation_id, cursor)
        try:
            file = self._path(invocation.invocation_id).open("rb")
        except FileNotFoundError:
            if position != Cursor():
                raise InvalidCursorError(f"the log has no position {position}") from None
            return LogPage(items=[], has_next=False, last_read=cursor)
        with file:
            page = _read_page(file, position, limit)
        last_read = cursor if page.next is None else self.cursors.sign(invocation.invocation_id, page.next)
        return LogPage(items=page.items, has_next=page.has_next, last_read=last_read)

    def _path(self, invocation_id: str) -> Path:
        if not INVOCATION_ID.fullmatch(invocation_id):
            raise ValueError(f"not the id of an invocation: {invocation_id[:40]!r}")
        return self._folder / f"{invocation_id}.log"


@dataclass(frozen=True, slots=True)
class _Page:
    items: list[LogRecord]
    has_next: bool
    #: Where to continue; None: the page has no lines.
    next: Cursor | None


def _read_page(file: BinaryIO, position: Cursor, limit: int) -> _Page:
    items: list[LogRecord] = []
    size = 0
    end = file.seek(0, os.SEEK_END)
    if position.offset > end or (position.offset == end and position.line):
        raise InvalidCursorError(f"the log has no position {position}")
    for frame in _frames(file, position.offset):
        lines = frame.lines()
        first = position.line if frame.offset == position.offset else 0
        if first >= len(lines):
            raise InvalidCursorError(f"the log has no position {position}")
        for number in range(first, len(lines)):
            if len(items) >= limit or size >= PAGE_BYTES:
                return _Page(items, has_next=True, next=Cursor(frame.offset, number))
            items.append(frame.record(lines[number]))
            size += len(lines[number])
        position = Cursor(frame.end)
    return _Page(items, has_next=False, next=position if items else None)


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
    """Yield the complete frames from `offset` on."""
    file.seek(offset)
    while len(header := file.read(_HEADER.size)) == _HEADER.size:
        mark, length, microseconds, process, part_of = _HEADER.unpack(header)
        if mark != _MARK or length > _MAX_PAYLOAD or process >= len(_PROCESSES):
            raise InvalidCursorError(f"the log has no position {Cursor(offset)}")
        payload = file.read(length)
        if len(payload) < length:
            return
        end = offset + _HEADER.size + length
        yield _Frame(offset, end, microseconds, _PROCESSES[process], part_of, payload)
        offset = end


class LogWriter:
    """Appends to one log file. Use `stream` once for each pipe, then `close`.

    Frames that can't be written, because the disk is full, wait in memory in order until `flush` can write
    them. No line is lost; the caller should stop feeding the streams until then.

    :param grew: called with the number of bytes after each write.
    """

    def __init__(self, path: Path, grew: Callable[[int], None] = lambda _: None) -> None:
        self._grew = grew
        self._file = path.open("ab+", buffering=0)
        #: Frames that aren't written yet, each with the size of its lines.
        self._waiting: deque[tuple[bytes, int]] = deque()
        self._write_failed = False
        self._end = 0
        with contextlib.suppress(InvalidCursorError):  # a power cut may leave zeros at the end
            for frame in _frames(self._file, 0):
                self._end = frame.end
        self._file.truncate(self._end)

    def stream(self, process: LogProcess, redaction: Redaction | None = None) -> LineStream:
        """Return a stream to feed with the output of one pipe, in pieces of any size."""
        return LineStream(self, process, redaction or Redaction(()))

    def say(self, process: LogProcess, text: str) -> None:
        """Append lines of the server itself."""
        stream = self.stream(process)
        stream.feed(text.encode(errors="replace"))
        stream.finish()

    def append(self, process: LogProcess, payload: bytes, part_of: int) -> None:
        """Append one frame: whole lines, or a part of the long line with the number `part_of`."""
        now = time.time_ns() // 1000
        frame = _HEADER.pack(_MARK, len(payload), now, _PROCESSES.index(process), part_of) + payload
        self._waiting.append((frame, len(payload)))
        self.flush()

    def flush(self) -> bool:
        """Write the queued frames; return False if some remain because the disk is full."""
        try:
            self.write_waiting()
        except OSError as error:
            if not self._write_failed:
                _log.warning("Could not write %s, retrying until it succeeds: %s", self._file.name, error)
            self._write_failed = True
            return False
        self._write_failed = False
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
            while written < len(frame):  # a nearly full disk takes only a part
                written += self._file.write(frame[written:])
        except OSError:
            self._file.truncate(self._end)
            raise
        self._end += len(frame)

    def number_for_long_line(self) -> int:
        """Return a number for a long line, unique in this log: the offset of its first part, plus one."""
        return self._end + sum(len(frame) for frame, _ in self._waiting) + 1

    def close(self) -> None:
        """Close the file, after the streams were finished; frames that still wait are lost."""
        self._file.close()


class LineStream:
    """Convert the data of a pipe, in pieces of any size, to frames of whole lines.

    A line ends at a line feed, with or without a carriage return before it. Any other carriage return starts
    the line again, as progress bars do. Of the states of such a line, one per second and the last one are
    stored. Nothing else is dropped.
    """

    def __init__(self, writer: LogWriter, process: LogProcess, redaction: Redaction) -> None:
        self._writer = writer
        self._process = process
        self._redaction = redaction
        self._tail = b""
        self._part_of = 0
        #: The current line if it is redrawn.
        self._redrawn: _RedrawnLine | None = None
        self._next_redraw = 0.0
        #: The last line that isn't blank, at most MAX_LINE bytes of it.
        self.last_line = b""

    def feed(self, data: bytes) -> bool:
        """Take the next piece; return False if it waits in memory because the disk is full.

        An empty piece only retries to write the waiting frames.
        """
        for start in range(0, len(data), MAX_LINE):
            self._take(data[start : start + MAX_LINE])
        return self._writer.flush()

    def show_redrawn(self) -> None:
        """Write the current state of a redrawn line, after a while without data."""
        if self._redrawn is None:
            return
        if not self._redaction.longest:  # otherwise it may be the first half of a secret's value
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
        """Write the last line, which may lack a line feed, because the pipe is closed."""
        tail, self._tail = self._tail, b""
        if self._part_of:
            self._append_part(tail.removesuffix(b"\r"))
        elif tail or self._redrawn is not None:
            self._append_lines(self._final_states(tail.removesuffix(b"\r")))

    def _final_states(self, lines: bytes) -> bytes:
        """Return whole lines in their final states; the first one may have been redrawn before."""
        if self._redrawn is None and b"\r" not in lines:
            return lines + b"\n"
        final: list[bytes] = []
        for line in lines.split(b"\n"):
            redrawn, self._redrawn = self._redrawn or _RedrawnLine(), None
            for state in line.split(b"\r"):
                redrawn.overwrite(state)
            if not redrawn.is_stored:
                final.append(redrawn.state + b"\n")
        return b"".join(final)

    def _overwrite(self) -> None:
        """Record the states of the incomplete line before its last carriage return."""
        # The last byte may be the first half of a line's end.
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
        if redrawn is not None and redrawn.state and not redrawn.is_stored and now >= self._next_redraw:
            self._next_redraw = now + REDRAW_INTERVAL
            self._append_lines(redrawn.state + b"\n")
            redrawn.is_stored = True

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
    """A line that is overwritten repeatedly."""

    #: The last state that isn't blank.
    state: bytes = b""
    #: Whether that state is in the log already.
    is_stored: bool = False

    def overwrite(self, state: bytes) -> None:
        """Take another state; a blank one only clears the line."""
        if state != self.state and _CLEARS.sub(b"", state).strip():
            self.state, self.is_stored = state, False


def _end_of_characters(data: bytes) -> int:
    """Return where to cut so that no UTF-8 character and no line's end is split."""
    if data.endswith(b"\r"):
        return len(data) - 1
    for back in range(1, 4):
        byte = data[-back]
        if byte & 0b1100_0000 == 0b1000_0000:  # a continuation byte
            continue
        length = 4 if byte >= 0xF0 else 3 if byte >= 0xE0 else 2 if byte >= 0xC0 else 1
        return len(data) - back if length > back else len(data)
    return len(data)
