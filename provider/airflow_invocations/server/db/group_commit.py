"""Group commit: the writes of several threads in one SQLite transaction, with one fsync for all of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """The writes that share one SQLite transaction."""

    transaction: sa.Transaction
    #: The connection's `info` after each write that succeeded, in the order of the writes.
    infos: list[dict[str, Any]] = field(default_factory=list)
    #: Done when the transaction is on the disk; the exception if it was rolled back.
    outcome: Future[None] = field(default_factory=Future)


class GroupCommit:
    """Run writers one after another, and commit when no other writer waits.

    A writer that finishes while others wait leaves the commit to the last of them, and each returns only
    after that commit. A group therefore has at most one write of each thread, and a lone writer commits at
    once.

    :param engine: has one connection; its transactions begin with the write lock.
    :param on_commit: called after each commit, in commit order, before the writers return.
    """

    def __init__(self, engine: sa.Engine, on_commit: Callable[[Group], None]) -> None:
        self._connection = engine.connect()
        self._on_commit = on_commit
        self._turn = threading.Lock()
        self._counting = threading.Lock()
        self._waiting = 0
        self._group: Group | None = None

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    @contextmanager
    def transaction(self) -> Iterator[sa.Connection]:
        """Yield the connection for one write: all of it is stored, or none and an exception is raised.

        A write sees the earlier writes of its group. It returns or raises only after the group's commit,
        because also an error may be based on what those earlier writes did.
        """
        group = None
        try:
            with self._my_turn():
                group = self._group = self._group or Group(self._connection.begin())
                try:
                    with self._savepoint(group):
                        yield self._connection
                finally:
                    if group is self._group and not self._waiting:
                        self._commit(group)
        finally:
            if group is not None:
                group.outcome.result()

    @contextmanager
    def _my_turn(self) -> Iterator[None]:
        with self._counting:
            self._waiting += 1
        with self._turn:
            with self._counting:
                self._waiting -= 1
            yield

    @contextmanager
    def _savepoint(self, group: Group) -> Iterator[None]:
        """Roll back a write that fails, without the group's other writes."""
        self._connection.exec_driver_sql("SAVEPOINT one_write")
        try:
            yield
            self._connection.exec_driver_sql("RELEASE one_write")
        except BaseException as error:
            try:
                self._connection.exec_driver_sql("ROLLBACK TO one_write")
                self._connection.exec_driver_sql("RELEASE one_write")
            except sa.exc.DBAPIError:
                # The savepoint is gone: after some errors, such as a full disk, SQLite rolls back the whole
                # transaction.
                self._roll_back(group, error)
            raise
        group.infos.append(dict(self._connection.info))

    def _commit(self, group: Group) -> None:
        try:
            group.transaction.commit()
        except BaseException as error:
            self._roll_back(group, error)
            return
        self._group = None
        try:
            self._on_commit(group)
        finally:
            group.outcome.set_result(None)

    def _roll_back(self, group: Group, error: BaseException) -> None:
        self._group = None
        try:
            group.transaction.rollback()
            # SQLAlchemy considers a transaction finished when its commit failed; SQLite may not.
            self._connection.connection.rollback()
        finally:
            group.outcome.set_exception(error)
