"""Decide when to check whether a queued invocation was accepted but never scheduled."""

from __future__ import annotations

import time
from collections.abc import Collection

#: Seconds in the queue before the first check, and the longest pause between checks; each pause doubles.
FIRST_LOOK = 60.0
LONGEST_PAUSE = 900.0

#: Most checks that are due at once; each costs the platform some requests.
MOST_AT_ONCE = 20

#: Most invocations to remember; those polled longest ago are dropped first.
MOST_KEPT = 20_000


class Overdue:
    """Invocations that have been queued for a while, and when to check each of them next."""

    def __init__(self) -> None:
        #: When each is due, by the monotonic clock, and the pause before that.
        self._looks: dict[str, tuple[float, float]] = {}

    def due(self, asked: Collection[str], queued: Collection[str]) -> list[str]:
        """Return the queued invocations that are due for a check now.

        :param asked: ids whose current status is known; those that aren't queued any more are dropped.
        :param queued: ids that are queued.
        """
        now = time.monotonic()
        for invocation_id in asked:
            known = self._looks.pop(invocation_id, None)
            if invocation_id in queued:
                self._looks[invocation_id] = known or (now + FIRST_LOOK, FIRST_LOOK)
        while len(self._looks) > MOST_KEPT:
            del self._looks[next(iter(self._looks))]
        overdue = [one for one in queued if one in self._looks and self._looks[one][0] <= now]
        for invocation_id in overdue[:MOST_AT_ONCE]:
            pause = min(2 * self._looks[invocation_id][1], LONGEST_PAUSE)
            self._looks[invocation_id] = (now + pause, pause)
        return overdue[:MOST_AT_ONCE]
