"""Digests of values, to recognise equal ones without storing them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def canonical_json(value: Any) -> str:
    """Return a value as JSON that is the same text for equal values."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def digests_of(values: Mapping[str, Any], key: str) -> dict[str, str]:
    """Return a digest of each value, by name.

    :param key: with another key the same value has another digest.
    """
    salt = hashlib.blake2b(key.encode()).digest()
    return {
        name: hashlib.blake2b(canonical_json(value).encode(), key=salt, digest_size=16).hexdigest()
        for name, value in values.items()
    }
