"""Poll logs of running invocations on platforms that don't push log lines."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TypeVar

from ..platforms.base import Platform
from ..platforms.errors import PermanentError, TransientError
from .log_flow import LogFlow
from .log_settings import LOG_SETTINGS, LogSettings
from .registry import run_all
from .wait_handle import WaitHandle, WaitTable

T = TypeVar("T")

_log = logging.getLogger(__name__)


class TokenBucket:
    """Limit a rate: `per_second` on average, and up to `burst` at once after a pause.

    :param clock: seconds, monotonic.
    """

    def __init__(self, per_second: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second = per_second
        self._burst = burst
        self._clock = clock
        self._tokens = burst
        self._filled_at = clock()

    def ready(self) -> bool:
        """Return whether a token is available."""
        return self.delay() == 0

    def delay(self) -> float:
        """Return the seconds until a token is available."""
        present = self._clock()
        self._tokens = min(self._burst, self._tokens + (present - self._filled_at) * self._per_second)
        self._filled_at = present
        return max(0.0, (1 - self._tokens) / self._per_second)

    def consume(self) -> None:
        """Take a token."""
        self._tokens -= 1


@dataclass(slots=True)
class _State:
    """When a log was polled last, and the pause until the next poll."""

    since: float
    pause: float
    is_new: bool = True


class LogSchedule:
    """Poll logs that had lines recently most often, and the others with growing pauses.

    If there are more logs than requests, the next one is the log that has waited longest in proportion to
    its pause.

    :param clock: seconds, monotonic.
    """

    def __init__(
        self, settings: LogSettings = LOG_SETTINGS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._bucket = TokenBucket(settings.reads, burst=settings.readers, clock=clock)
        self._states: dict[str, _State] = {}
        self._in_progress: set[str] = set()

    def take(self, logs: Mapping[str, T]) -> T | None:
        """Return the log to poll now, one of the allowed ones; None if none is due."""
        if not self._bucket.ready():
            return None
        for gone in self._states.keys() - logs.keys():
            del self._states[gone]
        present = self._clock()
        best: str | None = None
        most = 0.0
        for log in logs:
            if log in self._in_progress:
                continue
            state = self._states.setdefault(log, _State(present, self._silent_pause / 2))
            waited = (present - state.since) / state.pause
            if state.is_new:
                waited = max(1.0, waited)
            if waited >= 1.0 and waited > most:
                best, most = log, waited
        if best is None:
            return None
        self._bucket.consume()
        self._in_progress.add(best)
        return logs[best]

    def note(self, log: str, *, had_lines: bool) -> None:
        """Record that a log was polled, and whether it had new lines."""
        self._in_progress.discard(log)
        state = self._states.get(log)
        if state is None:
            return
        if had_lines:
            pause = self._settings.least_pause
        else:
            pause = min(self._settings.most_pause, max(self._silent_pause, 2 * state.pause))
        self._states[log] = _State(self._clock(), pause, is_new=False)

    @property
    def _silent_pause(self) -> float:
        return 4 * self._settings.least_pause

    def pause(self) -> float:
        """Return the seconds to wait before asking again which log is due."""
        return max(self._bucket.delay(), 1 / self._settings.reads)


async def poll_logs(platform: Platform, waits: WaitTable, flow: LogFlow, running: Collection[str]) -> None:
    """Poll the logs of running invocations, several at a time, until cancelled.

    :param running: the ids of running invocations; read again before each request.
    """
    schedule = LogSchedule(LOG_SETTINGS)

    async def read() -> None:
        while True:
            readable = (wait for wait in waits if wait.has_room and wait.invocation_id in running)
            wait = schedule.take({wait.invocation_id: wait for wait in readable})
            if wait is None:
                await asyncio.sleep(schedule.pause())
                continue
            had_lines = await _poll_log(platform, flow, wait)
            schedule.note(wait.invocation_id, had_lines=had_lines)

    await run_all(read() for _ in range(LOG_SETTINGS.readers))


async def _poll_log(platform: Platform, flow: LogFlow, wait: WaitHandle) -> bool:
    """Fetch one page of a log; return whether it had lines."""
    try:
        page = await platform.logs(wait.invocation_id, wait.cursor)
    except TransientError as error:
        _log.debug("Could not read the log of %s now: %s", wait.invocation_id, error)
        return False
    except PermanentError as error:
        # Also for rejected credentials: a log never decides anything, and the next status query reports them.
        flow.end(wait.invocation_id, str(error))
        return False
    wait.add_page(page)
    return bool(page.items)
