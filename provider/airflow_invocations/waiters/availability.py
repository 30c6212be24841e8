"""Whether the platform of a connection is available, and what its waits are notified of."""

from __future__ import annotations

import datetime
import time
from dataclasses import dataclass, field

from ..platforms.errors import TransientError, UnauthorizedError
from ..platforms.retry import backoff
from .rejection import Rejections, rejection_notice
from .wait_handle import Notice, Rejected, Unreachable, WaitHandle, WaitTable

#: Longest pause, in seconds, between two attempts while the platform is unavailable.
OUTAGE_PAUSE = 15.0

#: Seconds after which an outage is reported in the task logs.
QUIET_OUTAGE = 5.0


@dataclass(slots=True)
class _Outage:
    #: When it began: on the monotonic clock, and in seconds since 1970.
    began: float = field(default_factory=time.monotonic)
    since: float = field(default_factory=time.time)
    attempt: int = 0
    error: str = ""
    is_reported: bool = False

    @property
    def notice(self) -> Notice:
        since = datetime.datetime.fromtimestamp(self.since, datetime.UTC)
        return Notice(
            f"The platform has been unavailable since {since:%H:%M:%S} UTC; the invocation may still be "
            f"running. Waiting: {self.error}"
        )


class Availability:
    """Record answers, outages and rejections of a platform, and notify the waits of them."""

    def __init__(self, waits: WaitTable) -> None:
        self._waits = waits
        self._outage: _Outage | None = None
        self._rejections = Rejections()
        self._has_answered = False

    def join(self, wait: WaitHandle) -> None:
        """Notify a new wait of an outage that was reported to the others."""
        if self._outage is not None and self._outage.is_reported:
            wait.notify(self._outage.notice)

    def answered(self) -> None:
        """Record that the platform has answered."""
        self._rejections.forget()
        self._has_answered = True
        if self._outage is not None:
            if self._outage.is_reported:
                self._waits.notify_all(Notice("The platform is available again"))
            self._outage = None

    def unavailable(self, error: TransientError) -> float:
        """Record that the platform is unavailable; return the seconds until the next attempt."""
        outage = self._outage = self._outage or _Outage()
        outage.error = str(error)
        present = time.monotonic()
        remaining = []
        for wait in self._waits:
            seconds = max(outage.began, wait.joined) + wait.outage_limit - present
            if seconds <= 0:
                wait.notify(Unreachable(outage.since, outage.error))
            else:
                remaining.append(seconds)
        if not outage.is_reported and present - outage.began >= QUIET_OUTAGE:
            outage.is_reported = True
            self._waits.notify_all(outage.notice)
        pause = max(0.2 + backoff(outage.attempt, base=1.0, cap=OUTAGE_PAUSE), error.retry_after or 0.0)
        outage.attempt += 1
        # No wait may exceed its limit because of a pause.
        return min(pause, max(0.2, min(remaining, default=pause)))

    def rejected(self, error: UnauthorizedError) -> None:
        """Record that the credentials were rejected.

        Credentials that were never accepted are considered wrong when they are rejected a second time.
        """
        is_first = self._rejections.note()
        for wait in self._waits:
            accepted = wait.accepted or self._has_answered
            if accepted and is_first:
                wait.notify(Notice(rejection_notice(error)))
            if self._rejections.are_final(is_first=is_first, accepted=accepted):
                wait.notify(Rejected(str(error), accepted))
