"""Validate that a value is JSON that every parser can read, within limits."""

from __future__ import annotations

import math
from typing import Any

#: How deep parameters and metadata may be nested; the dots of a changeset's keys count as levels.
MAX_DEPTH = 32

#: Characters that the JSON text of one record's metadata may have.
MAX_METADATA = 1024 * 1024


#: Texts, numbers, lists and objects that one JSON text may have in all.
MAX_VALUES = 250_000


def require_plain_json(value: object, depth: int = MAX_DEPTH) -> None:
    """Raise ValueError for a value that Python parses as JSON but that isn't valid JSON elsewhere.

    :param value: what was read: dicts with text keys, lists, texts, numbers, booleans, None. It may have
        MAX_VALUES of them in all.
    :param depth: how many levels of lists and objects there may be.
    """
    waiting = [(value, 0)]
    seen = 0
    while waiting:
        part, level = waiting.pop()
        seen += 1
        if seen > MAX_VALUES:
            raise ValueError(f"it has more than {MAX_VALUES} values")
        if isinstance(part, float) and not math.isfinite(part):
            raise ValueError(f"{part} is no number in JSON")
        if isinstance(part, str):
            part.encode()  # half of a surrogate pair: a ValueError that says so
        if isinstance(part, dict | list):
            if level > depth:
                raise ValueError(f"this is nested more than {depth} deep")
            waiting.extend((key, level) for key in part if isinstance(part, dict))
            waiting.extend((inner, level + 1) for inner in _values(part))


def _values(part: dict[str, Any] | list[Any]) -> list[Any]:
    return list(part.values()) if isinstance(part, dict) else part
