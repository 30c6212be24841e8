"""Follows one invocation to its end: its log lines as they come, then its record."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

from ..model import InvocationRecord, LogRecord
from ..platform.base import InvocationPlatform, PermanentError, TransientError, backoff

#: Seconds for which the platform may be out of reach before a wait is given up.
OUTAGE_LIMIT = 3600.0

#: Longest pause, in seconds, between two tries while the platform is out of reach.
OUTAGE_PAUSE = 60.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Lines:
    """Log lines that are new, and the cursor that stands behind them."""

    records: list[LogRecord]
    cursor: str | None


@dataclass(frozen=True, slots=True)
class End:
    """The invocation has reached a terminal status; every log line that it had then came before this."""

    record: InvocationRecord


async def follow(
    platform: InvocationPlatform,
    invocation_id: str,
    *,
    poll_interval: float,
    stream_logs: bool,
    cursor: str | None = None,
    outage_limit: float = OUTAGE_LIMIT,
) -> AsyncIterator[Lines | End]:
    """Yield an invocation's new log lines from `cursor` on (if `stream_logs`), and at last its End.

    A failed poll is no verdict: while the platform is out of reach this waits, less and less often, and
    goes on where it was. Trouble with the logs alone never ends the wait.

    Raises:
        TransientError: the platform was out of reach for `outage_limit` seconds.
        PermanentError: the invocation can't be asked for (gone, or the token isn't accepted).
    """
    logs = _LogReader(platform, invocation_id, cursor) if stream_logs else None
    outage = _Outage(invocation_id, outage_limit)
    while True:
        try:
            record = await platform.get(invocation_id)
        except TransientError as error:
            await outage.wait(error)
            continue
        outage.over()
        ended = record.current.status.is_terminal
        if logs is not None:
            async for lines in logs.new():
                yield lines
        if ended:
            yield End(record)
            return
        await asyncio.sleep(poll_interval * random.uniform(0.9, 1.1))  # noqa: S311


class _LogReader:
    """Reads on in one invocation's log; gives up for good only what the platform refuses for good."""

    def __init__(self, platform: InvocationPlatform, invocation_id: str, cursor: str | None) -> None:
        self._platform = platform
        self._invocation_id = invocation_id
        self._cursor = cursor
        self._refused = False

    async def new(self) -> AsyncIterator[Lines]:
        """The lines that are there now."""
        while not self._refused:
            try:
                page = await self._platform.logs(self._invocation_id, self._cursor)
            except TransientError as error:
                _log.warning("the log of %s can't be read now: %s", self._invocation_id, error)
                return
            except PermanentError as error:
                _log.warning("the log of %s can't be read: %s", self._invocation_id, error)
                self._refused = True
                return
            self._cursor = page.last_read if page.last_read is not None else self._cursor
            if page.items:
                yield Lines(page.items, self._cursor)
            if not page.has_next:
                return


class _Outage:
    """How long the platform has been out of reach, and when to try again."""

    def __init__(self, invocation_id: str, limit: float) -> None:
        self._invocation_id = invocation_id
        self._limit = limit
        self._since: float | None = None
        self._attempt = 0

    async def wait(self, error: TransientError) -> None:
        """Wait before the next try; raises `error` once the limit is reached."""
        present = time.monotonic()
        if self._since is None:
            self._since = present
            _log.warning("can't ask for %s, it is not given up: %s", self._invocation_id, error)
        if present - self._since >= self._limit:
            raise error
        await asyncio.sleep(0.5 + backoff(self._attempt, base=1.0, cap=OUTAGE_PAUSE))
        self._attempt += 1

    def over(self) -> None:
        """The platform answers (again)."""
        if self._since is not None:
            _log.warning("%s can be asked for again", self._invocation_id)
        self._since = None
        self._attempt = 0
