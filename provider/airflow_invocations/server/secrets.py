"""Secret values: encrypted in the database, or from the server's environment."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path

from cryptography.fernet import Fernet, InvalidToken

from ..runtime.exceptions import SecretNotSetError
from ..runtime.secrets import write_private
from .db import LOCAL_ORG, LOCAL_USER, Store
from .db.secrets import SecretRow
from .errors import InvalidRequestError

#: Prefix of the environment variables with secret values; the secret's name follows in upper case.
ENVIRONMENT_PREFIX = "INVOCATIONS_SECRET_"

#: Characters that a secret's value may have.
MAX_VALUE = 8 * 1024

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")


class Secrets:
    """Encrypts and decrypts secrets.

    A variable INVOCATIONS_SECRET_NAME of the server's environment takes precedence over the stored value for
    the organisation LOCAL_ORG. No other organisation gets it, as a variable can't name its organisation.

    :param store: has the encrypted values.
    :param key_file: the key, of mode 0600; it is created with the first secret.
    :param environment: the server's environment variables.
    """

    def __init__(self, store: Store, key_file: Path, environment: Mapping[str, str] = os.environ) -> None:
        self._store = store
        self._key_file = key_file
        self._environment = environment

    def set(self, name: str, org_id: str, value: str, user: str = LOCAL_USER) -> None:
        """Store a secret, or its new value. Raises InvalidRequestError if name or value is invalid."""
        _require_name(name)
        if not 0 < len(value) <= MAX_VALUE:
            raise InvalidRequestError(f"a secret's value has 1 to {MAX_VALUE} characters, not {len(value)}")
        encrypted = self._cipher(create=True).encrypt(value.encode())
        self._store.secrets.put(name, org_id, encrypted, user)

    def create(self, name: str, org_id: str, user: str) -> SecretRow:
        """Store a secret without a value. Raises InvalidRequestError, ConflictError."""
        _require_name(name)
        return self._store.secrets.create(name, org_id, user)

    def rows(self, org_id: str, after: str | None, limit: int) -> list[SecretRow]:
        """Return secrets without their values, by name, from after a name on."""
        return self._store.secrets.rows(org_id, after, limit)

    def row(self, name: str, org_id: str) -> SecretRow:
        """Return a secret without its value. Raises NotFoundError."""
        return self._store.secrets.row(name, org_id)

    def remove(self, name: str, org_id: str) -> None:
        """Delete a secret. Raises NotFoundError."""
        self._store.secrets.remove(name, org_id)

    def reader(self, org_id: str) -> Callable[[str, str], str]:
        """Return a function that reads one organisation's secrets, by name and organisation.

        The function raises SecretNotSetError where there is no secret of that name, and PermissionError where
        another organisation is named or the key isn't the one that encrypted the value.
        """

        def read(name: str, named_org_id: str) -> str:
            if named_org_id != org_id:
                raise PermissionError(name)
            return self._read(name, org_id)

        return read

    def _read(self, name: str, org_id: str) -> str:
        if org_id == LOCAL_ORG and (value := self._from_environment(name)):
            return value
        encrypted = self._store.secrets.get(name, org_id)
        if encrypted is None:
            of_org = "" if org_id == LOCAL_ORG else f" --org {org_id}"
            raise SecretNotSetError(
                f"secret {name!r} isn't set (set it with: invocations secret set {shlex.quote(name)}{of_org})"
            )
        try:
            return self._cipher(create=False).decrypt(encrypted).decode()
        except (InvalidToken, FileNotFoundError):
            raise PermissionError(name) from None

    def _from_environment(self, name: str) -> str | None:
        return self._environment.get(ENVIRONMENT_PREFIX + re.sub(r"[^A-Z0-9]", "_", name.upper()))

    def _cipher(self, *, create: bool) -> Fernet:
        if create and not self._key_file.exists():
            write_private(self._key_file, Fernet.generate_key().decode())
        return Fernet(self._key_file.read_text(encoding="ascii").strip())


def _require_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise InvalidRequestError(
            f"{name!r} is not a valid secret name; allowed: letters, digits, _ . -, at most 128 characters"
        )
