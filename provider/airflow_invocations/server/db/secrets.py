"""Encrypted secrets: they can't be decrypted without the data folder's key."""

from __future__ import annotations

import sqlalchemy as sa

from ..errors import NotFoundError
from ..timestamps import now
from .database import Database
from .tables import secrets


class SecretRepository:
    """Reads and writes encrypted secrets."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def put(self, name: str, org_id: str, encrypted: bytes) -> None:
        """Store a secret, or its new value."""
        with self._database.write() as connection:
            connection.execute(secrets.delete().where(_named(name, org_id)))
            row = {"org_id": org_id, "name": name, "encrypted": encrypted, "modified": now()}
            connection.execute(secrets.insert().values(row))

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

    def get(self, name: str, org_id: str) -> bytes | None:
        """Return a secret as it was stored; None: there is none."""
        selected = sa.select(secrets.c.encrypted).where(_named(name, org_id))
        with self._database.read() as connection:
            encrypted: bytes | None = connection.execute(selected).scalar()
            return encrypted


def _named(name: str, org_id: str) -> sa.ColumnElement[bool]:
    return (secrets.c.org_id == org_id) & (secrets.c.name == name)
