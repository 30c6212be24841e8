"""Secrets: how parameters refer to them, and files that only their owner can read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from ..invocation_api import SECRET_PREFIX as SECRET_PREFIX

_SECRET = re.compile(rf"{SECRET_PREFIX}([^@]+)(?:@(\w+))?")


class SecretReference(NamedTuple):
    """A secret by name; `org_id` None: it belongs to the invocation's organisation."""

    name: str
    org_id: str | None


def is_secret_uri(value: str) -> bool:
    """Return whether a value refers to a secret: whether it begins as `roboto-secret://NAME[@ORG]` does."""
    return _SECRET.match(value) is not None


def parse_secret_uri(uri: str) -> SecretReference:
    """Return the secret that a URI refers to.

    Raises:
        ValueError: it has no name, or something follows the organisation, because a misspelt organisation
            must not be read as another one.
    """
    parts = _SECRET.fullmatch(uri)
    if parts is None:
        raise ValueError(
            f"{uri!r} names no secret; expected roboto-secret://NAME or roboto-secret://NAME@ORG"
        )
    return SecretReference(*parts.groups())


def write_private(path: Path, text: str) -> None:
    """Write a file of mode 0600, whole or not at all; create its folder if it doesn't exist."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.new")
    draft.unlink(missing_ok=True)
    draft.touch(mode=0o600, exist_ok=False)
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)
