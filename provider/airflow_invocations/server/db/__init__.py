"""The repository: actions, invocations, and the events of their lives, in SQLite.

Every method is done whole or not at all, and what it wrote is on the disk (fsync) when it returns. Methods
are synchronous and may be called from any thread; writers take turns, and those who wait for one share a
commit (`commits`). The groups, each in a file of its own:

    actions      create, register, get, query, update, accessibility, delete
    invocations  invoke, get, query; status and ownership; what a runner does; trees and counts
    lives        how a status is changed, and batches of changes
    events       all of an invocation, since one of an attempt, the latest by attempt, since a number
    aborts       one, a tree, all; the pending ones, their attempts, cleared
    states       custom state; roots by time
    datasets     create, get, query, update, delete; their files: note, get, list, query, update
    secrets      put, remove, list, get, all of them sealed
    tokens       add, revoke, list, find
"""

from .aborts import Aborts, PendingAbort
from .actions import Actions
from .database import StatusEvent
from .datasets import Datasets
from .invocations import ID_PREFIX, RUNNER_PREFIX, Invocations, LeftOver
from .secrets import SealedSecrets
from .states import States
from .tokens import TokenHashes, TokenRecord
from .transitions import INVOCATION_ID, CheckedInvocation

#: The organisation and the user of a server that has one of each.
LOCAL_ORG = "og_local"
LOCAL_USER = "local"


class Store(Actions, Invocations, Aborts, States, Datasets, SealedSecrets, TokenHashes):
    """The server's memory: all groups over one database."""


__all__ = [
    "ID_PREFIX",
    "INVOCATION_ID",
    "LOCAL_ORG",
    "LOCAL_USER",
    "RUNNER_PREFIX",
    "CheckedInvocation",
    "LeftOver",
    "PendingAbort",
    "StatusEvent",
    "Store",
    "TokenRecord",
]
