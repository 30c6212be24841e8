"""`roboto-secret://NAME[@ORG]`: how a parameter's value names a secret in place of holding it."""

from __future__ import annotations

import re
from typing import NamedTuple

_SECRET = re.compile(r"roboto-secret://([^@]+)(?:@(\w+))?")


class SecretReference(NamedTuple):
    """A secret by name; `org_id` None: the organisation's that the invocation belongs to."""

    name: str
    org_id: str | None


def is_secret_uri(value: str) -> bool:
    """Whether a value stands for a secret: anything that begins as such a URI does."""
    return _SECRET.match(value) is not None


def parse_secret_uri(uri: str) -> SecretReference:
    """The secret that a URI names.

    Raises:
        ValueError: it doesn't name one, or something follows the organisation: a misspelt organisation
            must not be read as another one.
    """
    parts = _SECRET.fullmatch(uri)
    if parts is None:
        raise ValueError(
            f"{uri!r} names no secret; expected roboto-secret://NAME or roboto-secret://NAME@ORG"
        )
    return SecretReference(*parts.groups())
