"""Retry requests that failed for a transient reason, with growing, randomised pauses."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from ..invocation_api import backoff, retry_pause
from .errors import TransientError

#: Seconds for which the platform may be unavailable before a wait is abandoned.
OUTAGE_LIMIT = 3600.0

#: Longest pause between two attempts, in seconds.
LONGEST_PAUSE = 30.0

__all__ = ["LONGEST_PAUSE", "OUTAGE_LIMIT", "backoff", "retry_attempts", "retry_transient"]

T = TypeVar("T")

_log = logging.getLogger(__name__)


async def retry_transient(operation: Callable[[], Awaitable[T]], limit: float) -> T:
    """Return an operation's result, retrying while the platform is unavailable.

    :param operation: an idempotent request.
    :param limit: seconds to keep trying; 0 tries once.
    :raises TransientError: the platform was unavailable for `limit` seconds.
    :raises PermanentError: the platform rejected the request.
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


async def retry_attempts(operation: Callable[[], Awaitable[T]], attempts: int) -> T:
    """Return an operation's result, retrying a number of times after a TransientError.

    For a single request; `retry_transient` is for operations that may take as long as a wait.

    :param operation: an idempotent request.
    :param attempts: attempts in all; 1 tries once.
    :raises PlatformError: that of the last attempt.
    """
    for attempt in range(attempts - 1):
        try:
            return await operation()
        except TransientError as error:
            await asyncio.sleep(retry_pause(attempt, error.retry_after))
    return await operation()
