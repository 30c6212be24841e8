"""Read a run's log. Flyte streams the lines of its pod, each time from the beginning."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from ...models import LogPage, LogProcess, LogRecord
from ..errors import InvalidRequestError, NotFoundError
from .client import DATA, ConnectClient
from .ids import RunId
from .records import attempts_of, cluster_events_of, ended_at, log_links_of, time_of
from .shapes import objects_at, reads, text_at

#: Minimum lines of a page that isn't the last: for each page the server begins again.
PAGE_LINES = 10_000

#: Seconds without a line after which a page ends: before the first line, and after it.
FIRST_SILENCE = 5.0
SILENCE = 0.5

_PROCESSES = {"SYSTEM": LogProcess.Monitor}


@dataclass(frozen=True, slots=True)
class Cursor:
    """A position in an attempt's log: after a number of lines of one time.

    Flyte has no offsets; the lines of an attempt come in the same order each time. The cluster's events about
    the attempt's pod come before its lines and are counted separately.
    """

    attempt: int = 1
    #: To the nanosecond, so that texts are in the order of times; empty: the beginning.
    time: str = ""
    lines: int = 0
    events: int = 0

    @classmethod
    def of(cls, text: str | None) -> Cursor:
        """Parse a cursor's text; None is the beginning. Raises InvalidRequestError."""
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
    """New lines, maybe none, and the cursor after them."""

    records: list[LogRecord]
    cursor: Cursor


async def follow(
    connect: ConnectClient, run: RunId, org: str | None, cursor: Cursor, silence: float
) -> AsyncGenerator[Batch, None]:
    """Yield the lines of an attempt from a cursor on, as they come, until its container has ended.

    :param silence: seconds without a line after which the stream counts as lost.
    :raises NotFoundError: there is no log: the attempt hasn't started, or its pod is gone.
    :raises UnavailableError: the stream was lost.
    """
    message = {"actionId": run.action(org), "attempt": cursor.attempt}
    time, seen, is_new = "", 0, False
    async with connect.stream(f"{DATA}/TailLogs", message, silence) as answers:
        async for answer in answers:
            records = []
            for line in (line for part in objects_at(answer, "logs") for line in objects_at(part, "lines")):
                # A line without a time, or out of order, has the time of the one before it.
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
    connect: ConnectClient,
    run: RunId,
    org: str | None,
    cursor: Cursor,
    details: Callable[[], Awaitable[Mapping[str, Any]]],
) -> LogPage:
    """Return a page of a run's log.

    :param details: returns the run's RunDetails.
    """
    records: list[LogRecord] = []
    silence, has_next = FIRST_SILENCE, False
    try:
        async with aclosing(follow(connect, run, org, cursor, silence=2 * FIRST_SILENCE)) as batches:
            while len(records) < PAGE_LINES:
                async with asyncio.timeout(silence):
                    batch = await anext(batches)
                records += batch.records
                cursor, silence = batch.cursor, SILENCE
            has_next = True
    except TimeoutError:
        pass
    except (StopAsyncIteration, NotFoundError):
        # The attempt's log ended, or there is none.
        present = await details()
        batch = behind_the_log(present, cursor)
        records += batch.records
        has_next, cursor = batch.cursor.attempt > cursor.attempt, batch.cursor
    return LogPage(items=records, has_next=has_next, last_read=str(cursor))


def pod_events(details: Mapping[str, Any], cursor: Cursor) -> Batch:
    """Return the cluster's events about the attempt's pod after the cursor."""
    events = cluster_events_of(details, cursor.attempt)
    return Batch(events[cursor.events :], replace(cursor, events=max(cursor.events, len(events))))


def behind_the_log(details: Mapping[str, Any], cursor: Cursor) -> Batch:
    """Return what follows the last line of an attempt's log: the next attempt, or links to stored logs."""
    if attempts_of(details) > cursor.attempt:
        return Batch([], Cursor(cursor.attempt + 1))
    ended = ended_at(details)
    if cursor.time or ended is None:
        return Batch([], cursor)
    # No line of this log was read. The run's end as the cursor's time says that the links were given.
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
    """Return a Timestamp with nine digits after the point."""
    if not timestamp:
        return ""
    seconds, _, fraction = timestamp.removesuffix("Z").removesuffix("+00:00").partition(".")
    return f"{seconds}.{fraction:0<9}"
