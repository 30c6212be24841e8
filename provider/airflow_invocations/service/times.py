"""Times as the database keeps them: whole microseconds since 1970, UTC."""

from __future__ import annotations

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
