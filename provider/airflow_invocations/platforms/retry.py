"""Asks again while the platform is out of reach: what every request of a wait has in common."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from .base import TransientError, backoff

#: Seconds for which the platform may be out of reach before a wait is given up.
OUTAGE_LIMIT = 3600.0

#: Longest pause, in seconds, between two tries.
LONGEST_PAUSE = 30.0

T = TypeVar("T")

_log = logging.getLogger(__name__)


async def retry_transient(operation: Callable[[], Awaitable[T]], limit: float) -> T:
    """The operation's result, however often it takes to get one: it must be one that may be repeated.

    Raises:
        TransientError: the platform was out of reach for `limit` seconds.
        PermanentError: it refuses.
    """
    began = time.monotonic()
    attempt = 0
    while True:
        try:
            return await operation()
        except TransientError as error:
            remaining = began + limit - time.monotonic()
            if remaining <= 0:
                raise
            if attempt == 0:
                _log.warning("%s; trying again for %.0f s", error, remaining)
            pause = max(0.2 + backoff(attempt, base=1.0, cap=LONGEST_PAUSE), error.retry_after or 0.0)
            await asyncio.sleep(min(pause, remaining))
            attempt += 1
