"""The server's storage in SQLite: one database, and a repository for each kind of record.

Each method is one transaction: all or nothing, and on the disk (fsync) when it returns. Methods are
synchronous and may be called from any thread. Writers take turns, and writers that wait share a commit
(`group_commit`).
"""

from pathlib import Path

from sqlalchemy.exc import DBAPIError

from ..settings import StartError
from .aborts import AbortRepository, PendingAbort
from .actions import ActionRepository
from .claims import RUNNER_PREFIX, ClaimRepository, OrphanedInvocation
from .database import Database, StatusEvent
from .datasets import DatasetRepository
from .events import EventRepository
from .files import FileRepository
from .invocations import INVOCATION_ID, CheckedInvocation, InvocationRepository, StatusReport
from .new_invocations import ID_PREFIX
from .secrets import SecretRepository
from .states import StateRepository
from .tokens import TokenRecord, TokenRepository

#: The organisation and the user of a server that has one of each.
LOCAL_ORG = "og_local"
LOCAL_USER = "local"


class Store:
    """The repositories of one database.

    :param path: the SQLite file; it is created, and completed if an earlier version made it.
    """

    def __init__(self, path: Path) -> None:
        self.database = Database(path)
        self.actions = ActionRepository(self.database)
        self.invocations = InvocationRepository(self.database)
        self.claims = ClaimRepository(self.database)
        self.events = EventRepository(self.database)
        self.aborts = AbortRepository(self.database)
        self.states = StateRepository(self.database)
        self.datasets = DatasetRepository(self.database)
        self.files = FileRepository(self.database)
        self.secrets = SecretRepository(self.database)
        self.tokens = TokenRepository(self.database)

    def close(self) -> None:
        """Close the database."""
        self.database.close()


def open_store(path: Path) -> Store:
    """Open the database of a data folder. Raises StartError."""
    try:
        return Store(path)
    except DBAPIError as error:
        raise StartError(f"can't use the database {path}: {error.orig}") from None


__all__ = [
    "ID_PREFIX",
    "INVOCATION_ID",
    "LOCAL_ORG",
    "LOCAL_USER",
    "RUNNER_PREFIX",
    "CheckedInvocation",
    "OrphanedInvocation",
    "PendingAbort",
    "StatusEvent",
    "StatusReport",
    "Store",
    "TokenRecord",
    "open_store",
]
