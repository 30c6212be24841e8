"""Decide which log to poll next, on platforms that don't push log lines."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from .log_settings import LOG_SETTINGS, LogSettings
from .token_bucket import Rate

T = TypeVar("T")


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
        self._rate = Rate(settings.reads, burst=settings.readers, clock=clock)
        self._states: dict[str, _State] = {}
        self._under_way: set[str] = set()

    def take(self, logs: Mapping[str, T]) -> T | None:
        """Return the log to poll now, one of the allowed ones; None if none is due."""
        if not self._rate.allows():
            return None
        for gone in self._states.keys() - logs.keys():
            del self._states[gone]
        present = self._clock()
        best: str | None = None
        most = 0.0
        for log in logs:
            if log in self._under_way:
                continue
            state = self._states.setdefault(log, _State(present, self._silent_pause / 2))
            waited = (present - state.since) / state.pause
            if state.is_new:
                waited = max(1.0, waited)
            if waited >= 1.0 and waited > most:
                best, most = log, waited
        if best is None:
            return None
        self._rate.take(1)
        self._under_way.add(best)
        return logs[best]

    def note(self, log: str, *, had_lines: bool) -> None:
        """Record that a log was polled, and whether it had new lines."""
        self._under_way.discard(log)
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
        """Seconds to wait before asking again which log is due."""
        return max(self._rate.pause(), 1 / self._settings.reads)
