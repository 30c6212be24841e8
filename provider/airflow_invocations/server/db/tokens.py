"""API tokens, stored as hashes."""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass

import sqlalchemy as sa

from ..callers import Role
from ..errors import ConflictError, InvalidRequestError, NotFoundError
from ..timestamps import now
from .database import Database
from .tables import tokens

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}")

# Looked up with every request: building the statement takes longer than running it.
_BY_HASH = sa.select(tokens).where(tokens.c.hash == sa.bindparam("hash"))


@dataclass(frozen=True, slots=True)
class TokenRecord:
    """Token metadata; the token itself is not stored."""

    name: str
    org_id: str
    role: Role
    #: Microseconds since 1970, UTC.
    created: int


class TokenRepository:
    """Reads and writes tokens."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, name: str, org_id: str, role: Role) -> str:
        """Create a token and return it; it can't be read again later.

        :raises InvalidRequestError: the name is invalid.
        :raises ConflictError: the name is taken.
        """
        if not _NAME.fullmatch(name):
            raise InvalidRequestError(
                f"{name[:80]!r} is not a valid token name; allowed: letters, digits, _ . @ -, "
                "at most 64 characters"
            )
        token = secrets.token_urlsafe(32)
        values = {"name": name, "hash": hash_of(token), "org_id": org_id, "role": role.name, "created": now()}
        with self._database.write() as connection:
            if connection.execute(sa.select(tokens).where(tokens.c.name == name)).first() is not None:
                raise ConflictError(
                    f"token {name!r} already exists and can't be shown again; replace it (invocations token "
                    "rotate), or choose another name"
                )
            connection.execute(tokens.insert().values(values))
        return token

    def rotate(self, name: str) -> str:
        """Replace a token with a new one of the same name, organisation and role. Raises NotFoundError."""
        token = secrets.token_urlsafe(32)
        changed = tokens.update().where(tokens.c.name == name).values(hash=hash_of(token), created=now())
        with self._database.write() as connection:
            if connection.execute(changed).rowcount == 0:
                raise NotFoundError(f"there is no token {name!r}")
        return token

    def revoke(self, name: str) -> None:
        """Delete a token; it is rejected from now on. Raises NotFoundError."""
        with self._database.write() as connection:
            if connection.execute(tokens.delete().where(tokens.c.name == name)).rowcount == 0:
                raise NotFoundError(f"there is no token {name!r}")

    def list_all(self) -> list[TokenRecord]:
        """Return all tokens, by name."""
        with self._database.read() as connection:
            return [_to_record(row) for row in connection.execute(sa.select(tokens).order_by(tokens.c.name))]

    def find(self, token: str) -> TokenRecord | None:
        """Return a token's metadata; None: it is unknown.

        The lookup is by hash, so its duration reveals nothing about any token.
        """
        with self._database.read() as connection:
            row = connection.execute(_BY_HASH, {"hash": hash_of(token)}).first()
        return None if row is None else _to_record(row)

    def has_hash(self, token_hash: str) -> bool:
        """Return whether a token with this hash exists."""
        with self._database.read() as connection:
            return connection.execute(_BY_HASH, {"hash": token_hash}).first() is not None


def hash_of(token: str) -> str:
    """Return what is stored of a token; tokens are random and long, so a plain hash can't be reversed."""
    return hashlib.sha256(token.encode()).hexdigest()


def _to_record(row: sa.Row[tuple[object, ...]]) -> TokenRecord:
    values = row._mapping
    return TokenRecord(values["name"], values["org_id"], Role[values["role"]], values["created"])
