"""Opens a data folder's repository, or says why that can't be done."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy.exc

from .db import Store


class StartError(Exception):
    """The server, or what works beside it, can't start; the message says why and what to do."""


def open_store(database: Path) -> Store:
    """The repository in a database. Raises StartError."""
    try:
        return Store(database)
    except sqlalchemy.exc.DBAPIError as error:
        raise StartError(f"can't use the database {database}: {error.orig}") from None
