"""Read fields of a job whose type Ray doesn't guarantee to us."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any

Json = dict[str, Any]


def text_at(job: Mapping[str, Any], name: str) -> str | None:
    """Return a string field; None if it is anything else."""
    value = job.get(name)
    return value if isinstance(value, str) else None


def object_at(job: Mapping[str, Any], *path: str) -> Json:
    """Return the object at a path; an empty one if there is anything else."""
    found: Any = job
    for name in path:
        found = found.get(name) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else {}


def texts_at(job: Mapping[str, Any], *path: str) -> dict[str, str]:
    """Return the strings of the object at a path, by name."""
    return {name: value for name, value in object_at(job, *path).items() if isinstance(value, str)}


def time_at(job: Mapping[str, Any], name: str) -> datetime.datetime | None:
    """Return a time that is given in milliseconds since 1970; None if there is none."""
    value = job.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
        return None
    try:
        return datetime.datetime.fromtimestamp(value / 1000, datetime.UTC)
    except (ValueError, OverflowError, OSError):
        return None
