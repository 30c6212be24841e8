"""How fast something may come: a bucket that fills with time."""

from __future__ import annotations

import time
from collections.abc import Callable


class Rate:
    """So many a second on average, and so many at once after a rest.

    :param per_second: how fast the bucket fills.
    :param burst: how much it holds.
    """

    def __init__(self, per_second: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second = per_second
        self._burst = burst
        self._clock = clock
        self._left = burst
        self._filled = clock()

    def allows(self) -> bool:
        """Whether something may come now."""
        return self.pause() == 0

    def pause(self) -> float:
        """Seconds until something may come."""
        present = self._clock()
        self._left = min(self._burst, self._left + (present - self._filled) * self._per_second)
        self._filled = present
        return max(0.0, (1 - self._left) / self._per_second)

    def take(self, count: int) -> None:
        """Note that so many have come. What came in one piece may be more than was left."""
        self._left -= count
