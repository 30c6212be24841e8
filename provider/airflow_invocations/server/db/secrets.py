"""Encrypted secrets: they can't be decrypted without the data folder's key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from ..errors import ConflictError, NotFoundError
from ..timestamps import now
from .database import Database
from .tables import secrets


@dataclass(frozen=True, slots=True)
class SecretRow:
    """What is known of a secret, without its value. Times are microseconds since 1970."""

    name: str
    org_id: str
    created: int
    created_by: str
    modified: int
    modified_by: str


class SecretRepository:
    """Reads and writes encrypted secrets."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, name: str, org_id: str, user: str) -> SecretRow:
        """Store a secret without a value. Raises ConflictError."""
        with self._database.write() as connection:
            if connection.execute(sa.select(secrets.c.name).where(_named(name, org_id))).first() is not None:
                raise ConflictError(f"secret {name!r} already exists in {org_id}")
            _insert(connection, name, org_id, b"", user)
            return _to_row(connection.execute(sa.select(secrets).where(_named(name, org_id))).one())

    def put(self, name: str, org_id: str, encrypted: bytes, user: str) -> None:
        """Store a secret, or its new value."""
        values = {"encrypted": encrypted, "modified": now(), "modified_by": user}
        with self._database.write() as connection:
            changed = connection.execute(secrets.update().where(_named(name, org_id)).values(values))
            if changed.rowcount == 0:
                _insert(connection, name, org_id, encrypted, user)

    def remove(self, name: str, org_id: str) -> None:
        """Delete a secret. Raises NotFoundError."""
        with self._database.write() as connection:
            if connection.execute(secrets.delete().where(_named(name, org_id))).rowcount == 0:
                raise NotFoundError(f"no secret {name!r} in {org_id}")

    def list_names(self, org_id: str) -> list[tuple[str, int]]:
        """Return each secret's name, and when it was set (microseconds since 1970)."""
        selected = sa.select(secrets.c.name, secrets.c.modified).where(secrets.c.org_id == org_id)
        with self._database.read() as connection:
            rows = connection.execute(selected.order_by(secrets.c.name))
            return [(row.name, row.modified) for row in rows]

    def rows(self, org_id: str, after: str | None, limit: int) -> list[SecretRow]:
        """Return secrets by name, from after a name on."""
        selected = sa.select(secrets).where(secrets.c.org_id == org_id, secrets.c.name > (after or ""))
        with self._database.read() as connection:
            return [
                _to_row(row) for row in connection.execute(selected.order_by(secrets.c.name).limit(limit))
            ]

    def row(self, name: str, org_id: str) -> SecretRow:
        """Return a secret. Raises NotFoundError."""
        with self._database.read() as connection:
            row = connection.execute(sa.select(secrets).where(_named(name, org_id))).one_or_none()
        if row is None:
            raise NotFoundError(f"no secret {name!r} in {org_id}")
        return _to_row(row)

    def get(self, name: str, org_id: str) -> bytes | None:
        """Return a secret's value as it was stored; None: there is none."""
        selected = sa.select(secrets.c.encrypted).where(_named(name, org_id))
        with self._database.read() as connection:
            encrypted: bytes | None = connection.execute(selected).scalar()
            return encrypted or None


def _insert(connection: sa.Connection, name: str, org_id: str, encrypted: bytes, user: str) -> None:
    current = now()
    row = {
        "org_id": org_id,
        "name": name,
        "encrypted": encrypted,
        "created": current,
        "created_by": user,
        "modified": current,
        "modified_by": user,
    }
    connection.execute(secrets.insert().values(row))


def _to_row(row: sa.Row[Any]) -> SecretRow:
    # Earlier versions of the server stored neither who created a secret nor when.
    created = row.modified if row.created is None else row.created
    return SecretRow(row.name, row.org_id, created, row.created_by or "", row.modified, row.modified_by or "")


def _named(name: str, org_id: str) -> sa.ColumnElement[bool]:
    return (secrets.c.org_id == org_id) & (secrets.c.name == name)
