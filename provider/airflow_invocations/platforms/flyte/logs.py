"""Reads a run's log: Flyte streams what its pod has written, each time from the beginning."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from ...models import LogPage, LogProcess, LogRecord
from ..errors import InvalidRequestError, NotFoundError
from .client import DATA, Connect
from .ids import RunId
from .records import attempts_of, cluster_events_of, ended_at, log_links_of, time_of
from .shapes import objects_at, reads, text_at

#: Lines of a page at least before it is handed over: each page makes the server begin anew.
PAGE_LINES = 10_000

#: Seconds for which a log may say nothing until the page counts as its present end: at first, and later.
FIRST_PATIENCE = 5.0
PATIENCE = 0.5

_PROCESSES = {"SYSTEM": LogProcess.Monitor}


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where to read on: behind a number of lines of one time, in an attempt's log.

    Flyte has no offsets; lines of an attempt come in the same order each time. What the cluster reports of
    the attempt's pod comes before its lines, and is counted beside them.
    """

    attempt: int = 1
    #: To the nanosecond, so that texts are in the order of times; empty: the beginning.
    time: str = ""
    lines: int = 0
    events: int = 0

    @classmethod
    def of(cls, text: str | None) -> Cursor:
        """Read what `str` wrote; None: the beginning. Raises InvalidRequestError."""
        if text is None:
            return cls()
        attempt, _, rest = text.partition("|")
        time, *numbers = rest.split("|")
        if attempt.isdecimal() and len(numbers) in (1, 2) and all(number.isdecimal() for number in numbers):
            return cls(int(attempt), time, *map(int, numbers))
        raise InvalidRequestError(f"{text!r} is not a cursor of Flyte's logs")

    def __str__(self) -> str:
        lines = f"{self.attempt}|{self.time}|{self.lines}"
        return f"{lines}|{self.events}" if self.events else lines


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
            for line in (line for part in objects_at(answer, "logs") for line in objects_at(part, "lines")):
                # A line without a time is of the time of the one before, and so is one out of order.
                written = _nanoseconds(text_at(line, "timestamp"))
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
    details: Callable[[], Awaitable[Mapping[str, Any]]],
) -> LogPage:
    """Return a page of a run's log. `details`: asks for the run's RunDetails."""
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
        present = await details()
        batch = behind_the_log(present, cursor)
        records += batch.records
        has_next, cursor = batch.cursor.attempt > cursor.attempt, batch.cursor
    return LogPage(items=records, has_next=has_next, last_read=str(cursor))


def pod_events(details: Mapping[str, Any], cursor: Cursor) -> Batch:
    """Return what the cluster has reported of the pod of the cursor's attempt since then."""
    events = cluster_events_of(details, cursor.attempt)
    return Batch(events[cursor.events :], replace(cursor, events=max(cursor.events, len(events))))


def behind_the_log(details: Mapping[str, Any], cursor: Cursor) -> Batch:
    """Return what follows an attempt's log that has no more lines: the next attempt, or where it is kept."""
    if attempts_of(details) > cursor.attempt:
        return Batch([], Cursor(cursor.attempt + 1))
    ended = ended_at(details)
    if cursor.time or ended is None:
        return Batch([], cursor)
    # Nothing of this log was read. The run's end, as the cursor's time, says that the links were given.
    links = log_links_of(details, cursor.attempt)
    return Batch(links, replace(cursor, time=_nanoseconds(ended.isoformat())) if links else cursor)


@reads
def _record(line: Mapping[str, Any]) -> LogRecord:
    return LogRecord(
        log=text_at(line, "message").rstrip("\r\n"),
        process=_PROCESSES.get(str(line.get("originator")), LogProcess.Action),
        timestamp=time_of(line.get("timestamp")) or datetime.datetime.now(datetime.UTC),
    )


def _nanoseconds(timestamp: str) -> str:
    """A Timestamp with nine digits after the point, whatever the number it came with."""
    if not timestamp:
        return ""
    seconds, _, fraction = timestamp.removesuffix("Z").removesuffix("+00:00").partition(".")
    return f"{seconds}.{fraction:0<9}"
