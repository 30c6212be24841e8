"""Convert between datetimes and the database's timestamps: whole microseconds since 1970, UTC."""

from __future__ import annotations

import functools
import time
from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def now() -> int:
    """Return the current time in microseconds."""
    return time.time_ns() // 1000


def microseconds(time: datetime) -> int:
    """Return a datetime in microseconds; one without a time zone is UTC."""
    aware = time if time.tzinfo else time.replace(tzinfo=UTC)
    return (aware - _EPOCH) // timedelta(microseconds=1)


def to_datetime(timestamp: int) -> datetime:
    """Return microseconds as a datetime in UTC."""
    return _EPOCH + timedelta(microseconds=timestamp)


def timestamp(value: int) -> str:
    """Return microseconds as text, in pydantic's format of a datetime in UTC."""
    seconds, rest = divmod(value, 1_000_000)
    return f"{_second(seconds)}.{rest:06d}Z" if rest else f"{_second(seconds)}Z"


@functools.lru_cache(maxsize=4096)
def _second(value: int) -> str:
    # Cached because times on a page often share their second: of one invocation, or of a batch of them.
    return (_EPOCH + timedelta(seconds=value)).strftime("%Y-%m-%dT%H:%M:%S")
