"""Times as the database keeps them: whole microseconds since 1970, UTC."""

from __future__ import annotations

import functools
import time
from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def now() -> int:
    """The present."""
    return time.time_ns() // 1000


def microseconds(moment: datetime) -> int:
    """A datetime (one without a zone is UTC) as microseconds."""
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return (aware - _EPOCH) // timedelta(microseconds=1)


def moment(value: int) -> datetime:
    """Microseconds as a datetime in UTC."""
    return _EPOCH + timedelta(microseconds=value)


def timestamp(value: int) -> str:
    """Microseconds as text, as pydantic writes a datetime in UTC."""
    seconds, rest = divmod(value, 1_000_000)
    return f"{_second(seconds)}.{rest:06d}Z" if rest else f"{_second(seconds)}Z"


@functools.lru_cache(maxsize=4096)
def _second(value: int) -> str:
    """Most times on a page share their second with others: of one life, or of those invoked together."""
    return (_EPOCH + timedelta(seconds=value)).strftime("%Y-%m-%dT%H:%M:%S")
