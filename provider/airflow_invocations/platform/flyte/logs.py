"""Reads a run's log: Flyte streams what its pod has written, each time from the beginning."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from ...model import LogPage, LogProcess, LogRecord
from ..base import InvalidRequestError, NotFoundError
from .connect import DATA, Connect
from .names import RunId
from .records import time_of

#: Lines of a page at least before it is handed over: each page makes the server begin anew.
PAGE_LINES = 10_000

#: Seconds for which a log may say nothing until the page counts as its present end: at first, and later.
FIRST_PATIENCE = 5.0
PATIENCE = 0.5

_PROCESSES = {"SYSTEM": LogProcess.Monitor}


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where to read on: behind so many lines of one time, in an attempt's log.

    Flyte has no offsets; lines of an attempt come in the same order each time.
    """

    attempt: int = 1
    #: To the nanosecond, so that texts are in the order of times; empty: the beginning.
    time: str = ""
    lines: int = 0

    @classmethod
    def of(cls, text: str | None) -> Cursor:
        """Read what `str` wrote; None: the beginning. Raises InvalidRequestError."""
        if text is None:
            return cls()
        match text.split("|"):
            case [attempt, time, lines] if attempt.isdecimal() and lines.isdecimal():
                return cls(int(attempt), time, int(lines))
        raise InvalidRequestError(f"{text!r} is no place in a log of Flyte")

    def __str__(self) -> str:
        return f"{self.attempt}|{self.time}|{self.lines}"


@dataclass(frozen=True, slots=True)
class Batch:
    """New lines, maybe none, and the place behind them."""

    records: list[LogRecord]
    cursor: Cursor


async def follow(
    connect: Connect, run: RunId, org: str | None, cursor: Cursor, silence: float
) -> AsyncGenerator[Batch, None]:
    """Yield the lines of an attempt from `cursor` on, as they come, until its container has ended.

    Raises:
        NotFoundError: there is no log (any more): the attempt hasn't begun, or its pod is gone.
        UnavailableError: also after so many seconds of silence, as nothing tells that from a lost stream.
    """
    message = {"actionId": run.action(org), "attempt": cursor.attempt}
    time, seen, is_new = "", 0, False
    async with connect.stream(f"{DATA}/TailLogs", message, silence) as answers:
        async for answer in answers:
            records = []
            for line in (line for part in answer.get("logs", []) for line in part.get("lines", [])):
                # A line without a time is of the time of the one before, and so is one out of order.
                written = _nanoseconds(line.get("timestamp"))
                if written > time:
                    time, seen = written, 0
                seen += written in ("", time)
                is_new = is_new or (time, seen) > (cursor.time, cursor.lines)
                if is_new:
                    cursor = replace(cursor, time=time, lines=seen)
                    records.append(_record(line))
            yield Batch(records, cursor)


async def page_of(
    connect: Connect,
    run: RunId,
    org: str | None,
    cursor: Cursor,
    attempts: Callable[[], Awaitable[int]],
) -> LogPage:
    """A page of a run's log. `attempts`: how often the run has been begun by now."""
    records: list[LogRecord] = []
    patience, has_next = FIRST_PATIENCE, False
    try:
        async with aclosing(follow(connect, run, org, cursor, silence=2 * FIRST_PATIENCE)) as batches:
            while len(records) < PAGE_LINES:
                async with asyncio.timeout(patience):
                    batch = await anext(batches)
                records += batch.records
                cursor, patience = batch.cursor, PATIENCE
            has_next = True
    except TimeoutError:
        pass
    except (StopAsyncIteration, NotFoundError):
        # This attempt's log has come to its end, or there is none.
        if await attempts() > cursor.attempt:
            cursor, has_next = Cursor(cursor.attempt + 1), True
    return LogPage(items=records, has_next=has_next, last_read=str(cursor))


def _record(line: Mapping[str, Any]) -> LogRecord:
    return LogRecord(
        log=str(line.get("message", "")).rstrip("\r\n"),
        process=_PROCESSES.get(line.get("originator", ""), LogProcess.Action),
        timestamp=time_of(line.get("timestamp")) or datetime.datetime.now(datetime.UTC),
    )


def _nanoseconds(timestamp: str | None) -> str:
    """A Timestamp with nine digits after the point, whatever the number it came with."""
    if not timestamp:
        return ""
    seconds, _, fraction = timestamp.removesuffix("Z").partition(".")
    return f"{seconds}.{fraction:0<9}"
