"""The secrets of the repository, sealed: what is stored can't be read without the data folder's key."""

from __future__ import annotations

import sqlalchemy as sa

from ..api.errors import NotFoundError
from ..timestamps import now
from .database import Database
from .tables import secrets


class SealedSecrets(Database):
    """Reads and writes of sealed secrets."""

    def put_secret(self, name: str, org_id: str, sealed: bytes) -> None:
        """Store a secret, or its new value."""
        named = (secrets.c.org_id == org_id) & (secrets.c.name == name)
        with self._write() as connection:
            connection.execute(secrets.delete().where(named))
            row = {"org_id": org_id, "name": name, "sealed": sealed, "modified": now()}
            connection.execute(secrets.insert().values(row))

    def remove_secret(self, name: str, org_id: str) -> None:
        """Forget a secret. Raises NotFoundError."""
        named = (secrets.c.org_id == org_id) & (secrets.c.name == name)
        with self._write() as connection:
            if connection.execute(secrets.delete().where(named)).rowcount == 0:
                raise NotFoundError(f"no secret {name!r} in {org_id}")

    def list_secrets(self, org_id: str) -> list[tuple[str, int]]:
        """Each secret's name, and when it was set (microseconds since 1970)."""
        wanted = sa.select(secrets.c.name, secrets.c.modified).where(secrets.c.org_id == org_id)
        with self._read() as connection:
            rows = connection.execute(wanted.order_by(secrets.c.name))
            return [(row.name, row.modified) for row in rows]

    def sealed_secret(self, name: str, org_id: str) -> bytes | None:
        """A secret as it was stored; None: there is none."""
        wanted = sa.select(secrets.c.sealed).where(secrets.c.org_id == org_id, secrets.c.name == name)
        with self._read() as connection:
            sealed: bytes | None = connection.execute(wanted).scalar()
            return sealed
