"""JSON of the invocation API: the base class of its objects, limits, canonical text and digests."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pydantic

#: The largest page that a platform returns.
MAX_PAGE_SIZE = 1000

#: Problems that a message lists, and characters of each.
MAX_PROBLEMS = 5
_MAX_PROBLEM = 500

#: Maximum depth of parameters and metadata; the dots of a changeset's keys count as levels.
MAX_DEPTH = 32

#: Bytes that the JSON text of one record's metadata may have.
MAX_METADATA = 1024 * 1024

#: Strings, numbers, lists and objects that one JSON text may have in all.
MAX_VALUES = 250_000


def problems_of(errors: Sequence[Mapping[str, Any]]) -> str:
    """Format the errors of a pydantic.ValidationError in one line.

    The line has the location and message of the first MAX_PROBLEMS errors, and the number of further ones.

    :param errors: the result of the exception's `errors()`.
    """
    shown = [_problem(error) for error in errors[:MAX_PROBLEMS]]
    more = len(errors) - len(shown)
    return "; ".join([*shown, *([f"and {more} more"] if more else [])])


def _problem(error: Mapping[str, Any]) -> str:
    text = f"{'.'.join(map(str, error['loc'])) or 'it'}: {error['msg']}"
    return text if len(text) <= _MAX_PROBLEM else f"{text[:_MAX_PROBLEM]}..."


class WireModel(pydantic.BaseModel):
    """A JSON object of the invocation API.

    Unknown fields are ignored, as in the published client, so that a newer platform does not break an older
    provider.
    """

    # Validators are built at first use: a DAG file imports all of them, and uses few.
    model_config = pydantic.ConfigDict(extra="ignore", populate_by_name=True, defer_build=True)

    def wire(self) -> dict[str, Any]:
        """Return the JSON object to send, without the fields that were not set."""
        return self.model_dump(mode="json", exclude_unset=True)


def require_plain_json(value: object, depth: int = MAX_DEPTH) -> None:
    """Check that a value that Python parsed as JSON is valid JSON for other parsers too, within limits.

    :param value: the parsed value, with at most MAX_VALUES values in all.
    :param depth: the allowed number of levels of lists and objects.
    :raises ValueError: the value breaks a limit, or has a number or text that JSON lacks.
    """
    remaining = [(value, 0)]
    seen = 0
    while remaining:
        part, level = remaining.pop()
        seen += 1
        if seen > MAX_VALUES:
            raise ValueError(f"it has more than {MAX_VALUES} values")
        if isinstance(part, float) and not math.isfinite(part):
            raise ValueError(f"{part} is not a number in JSON")
        if isinstance(part, str):
            part.encode()  # raises ValueError for half of a surrogate pair
        if isinstance(part, dict | list):
            if level > depth:
                raise ValueError(f"nested more than {depth} levels deep")
            remaining.extend((key, level) for key in part if isinstance(part, dict))
            remaining.extend((inner, level + 1) for inner in _values(part))


def _values(part: dict[str, Any] | list[Any]) -> list[Any]:
    return list(part.values()) if isinstance(part, dict) else part


def canonical_json(value: Any) -> str:
    """Return the JSON text of a value; equal values have the same text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def digests_of(values: Mapping[str, Any], key: str) -> dict[str, str]:
    """Return a digest of each value by name, to recognise equal values without storing them.

    :param key: part of each digest; digests with different keys can't be compared.
    """
    salt = hashlib.blake2b(key.encode()).digest()
    return {
        name: hashlib.blake2b(canonical_json(value).encode(), key=salt, digest_size=16).hexdigest()
        for name, value in values.items()
    }
