"""Group commit: many writers' units of work in one transaction, with one fsync for all of them."""

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
    """The units of work of one transaction."""

    transaction: sa.Transaction
    #: What those units left in the connection's `info` that were done, in their order.
    left: list[dict[str, Any]] = field(default_factory=list)
    #: There once the transaction is on the disk, or isn't to be.
    outcome: Future[None] = field(default_factory=Future)


class GroupCommit:
    """Takes writers one after another, and commits when nobody waits any more.

    A writer that ends while others wait leaves the commit to the last of them, and each returns only after
    it. So a group has a unit of each thread at most, and a lone writer commits at once.

    :param engine: with one connection, whose transactions begin with the right to write.
    :param committed: called after each commit, in the order of the commits, before the writers return.
    """

    def __init__(self, engine: sa.Engine, committed: Callable[[Group], None]) -> None:
        self._connection = engine.connect()
        self._committed = committed
        self._turn = threading.Lock()
        self._counting = threading.Lock()
        self._waiting = 0
        self._group: Group | None = None

    def close(self) -> None:
        """Release the connection."""
        self._connection.close()

    @contextmanager
    def unit(self) -> Iterator[sa.Connection]:
        """A unit of work: all of it is written, or an exception is raised and nothing of it is.

        A unit sees what those before it in its transaction did. Whatever it ends with, an error too, it ends
        after the commit: nobody is told anything that rests on what might not be stored.
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
        """Take back what a unit did when it fails, and nothing that others did."""
        self._connection.exec_driver_sql("SAVEPOINT unit")
        try:
            yield
            self._connection.exec_driver_sql("RELEASE unit")
        except BaseException as error:
            try:
                self._connection.exec_driver_sql("ROLLBACK TO unit")
                self._connection.exec_driver_sql("RELEASE unit")
            except sa.exc.DBAPIError:
                # There is no savepoint any more: of some errors, a full disk for one, SQLite has taken back
                # the whole transaction.
                self._give_up(group, error)
            raise
        group.left.append(dict(self._connection.info))

    def _commit(self, group: Group) -> None:
        try:
            group.transaction.commit()
        except BaseException as error:
            self._give_up(group, error)
            return
        self._group = None
        try:
            self._committed(group)
        finally:
            group.outcome.set_result(None)

    def _give_up(self, group: Group, error: BaseException) -> None:
        self._group = None
        try:
            group.transaction.rollback()
            # To SQLAlchemy a commit that failed is the end of a transaction; to SQLite it may not be.
            self._connection.connection.rollback()
        finally:
            group.outcome.set_exception(error)
