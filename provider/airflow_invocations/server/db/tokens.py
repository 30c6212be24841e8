"""The tokens of the repository: who may do what, each by its hash."""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass

import sqlalchemy as sa

from ..api.errors import ConflictError, InvalidRequestError, NotFoundError
from ..api.schemas import Role
from ..timestamps import now
from .database import Database
from .tables import tokens

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}")

# Looked up with every request: building the statement takes longer than running it.
_BY_HASH = sa.select(tokens).where(tokens.c.hash == sa.bindparam("hash"))


@dataclass(frozen=True, slots=True)
class TokenRecord:
    """What is known of a token: everything but itself."""

    name: str
    org_id: str
    role: Role
    #: Microseconds since 1970, UTC.
    created: int


class TokenHashes(Database):
    """Reads and writes of tokens."""

    def add_token(self, name: str, org_id: str, role: Role) -> str:
        """Create a token and return it; it can't be read again later.

        Raises:
            InvalidRequestError: the name is invalid.
            ConflictError: the name is taken.
        """
        if not _NAME.fullmatch(name):
            raise InvalidRequestError(
                f"{name[:80]!r} can't name a token; allowed: letters, digits, _ . @ -, at most 64 characters"
            )
        token = secrets.token_urlsafe(32)
        values = {"name": name, "hash": hash_of(token), "org_id": org_id, "role": role.name, "created": now()}
        with self._write() as connection:
            if connection.execute(sa.select(tokens).where(tokens.c.name == name)).first() is not None:
                raise ConflictError(
                    f"token {name!r} already exists and can't be shown again; replace it (invocations token "
                    "rotate), or choose another name"
                )
            connection.execute(tokens.insert().values(values))
        return token

    def rotate_token(self, name: str) -> str:
        """Replace a token with a new one of the same name, organisation and role. Raises NotFoundError."""
        token = secrets.token_urlsafe(32)
        changed = tokens.update().where(tokens.c.name == name).values(hash=hash_of(token), created=now())
        with self._write() as connection:
            if connection.execute(changed).rowcount == 0:
                raise NotFoundError(f"there is no token {name!r}")
        return token

    def revoke_token(self, name: str) -> None:
        """Forget a token: it is worth nothing from now on. Raises NotFoundError."""
        with self._write() as connection:
            if connection.execute(tokens.delete().where(tokens.c.name == name)).rowcount == 0:
                raise NotFoundError(f"there is no token {name!r}")

    def list_tokens(self) -> list[TokenRecord]:
        """All tokens, by name."""
        with self._read() as connection:
            return [_record(row) for row in connection.execute(sa.select(tokens).order_by(tokens.c.name))]

    def find_token(self, token: str) -> TokenRecord | None:
        """What is known of a token; None: nothing.

        It is looked up by its hash: how long that takes tells nothing about any token.
        """
        with self._read() as connection:
            row = connection.execute(_BY_HASH, {"hash": hash_of(token)}).first()
        return None if row is None else _record(row)

    def has_token(self, token_hash: str) -> bool:
        """Whether a token with this hash exists."""
        with self._read() as connection:
            return connection.execute(_BY_HASH, {"hash": token_hash}).first() is not None


def hash_of(token: str) -> str:
    """What is kept of a token; tokens are random and long, so a plain hash can't be searched for."""
    return hashlib.sha256(token.encode()).hexdigest()


def _record(row: sa.Row[tuple[object, ...]]) -> TokenRecord:
    values = row._mapping
    return TokenRecord(values["name"], values["org_id"], Role[values["role"]], values["created"])
