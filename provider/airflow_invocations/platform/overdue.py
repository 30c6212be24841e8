"""Decide when to look whether an invocation that stays queued was accepted and never scheduled."""

from __future__ import annotations

import time
from collections.abc import Collection

#: Seconds in the queue before the first look, and at most between two looks, as each pause doubles.
FIRST_LOOK = 60.0
LONGEST_PAUSE = 900.0

#: Looks that are due at once at most; each costs a platform some requests.
MOST_AT_ONCE = 20

#: Invocations that are remembered; those that were asked about longest ago go first.
MOST_KEPT = 20_000


class Overdue:
    """The invocations that have stayed queued for long, each due for a look now and then."""

    def __init__(self) -> None:
        #: When each is due, by the monotonic clock, and the pause before that.
        self._looks: dict[str, tuple[float, float]] = {}

    def due(self, asked: Collection[str], queued: Collection[str]) -> list[str]:
        """Return which of the queued invocations are due for a look now.

        :param asked: those whose status is known now; the ones that aren't queued any more are forgotten.
        :param queued: the ids of those that are queued.
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
