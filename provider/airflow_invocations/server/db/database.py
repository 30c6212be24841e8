"""The database under the repository: one engine to read, one to write, and who hears of a commit."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pydantic_core
import sqlalchemy as sa

from ...models import InvocationStatus
from ..api.errors import InvalidRequestError
from ..query.comparisons import add_functions
from .group_commit import Group, GroupCommit
from .tables import metadata
from .time_limit import TimeLimit

#: Seconds that a query of a caller's may take.
QUERY_WITHIN = 10.0

#: Queries that run at once, and seconds that another one waits for its turn.
_QUERIES = 8
_QUERY_PATIENCE = 2.0


@dataclass(frozen=True, slots=True)
class StatusEvent:
    """A committed change of an invocation's status; also one of the events that are stored."""

    #: Its place among all events: later ones have higher numbers.
    number: int
    invocation_id: str
    org_id: str
    action_name: str
    #: The invocation at the top of the tree that this one is in: itself, where nothing started it.
    root_id: str
    #: Which run of the invocation it belongs to: 1, and one more each time it is put back into the queue.
    attempt: int
    status: InvocationStatus
    detail: str | None
    #: Microseconds since 1970, UTC.
    timestamp: int
    #: It was followed by another one in the same transaction: nobody could ever see it as the status.
    passing: bool = False
    #: What the action's process ended with, if that is how the invocation ended.
    exit_code: int | None = None
    #: When the status before it was taken; None: there was none, or it isn't known (read from the table).
    previous: int | None = None


Listener = Callable[[Sequence[StatusEvent]], None]


class Database:
    """Transactions on one SQLite file, and the listeners that are called after commits."""

    def __init__(self, database: Path) -> None:
        self._reading = _engine(database, begin="BEGIN", connections=8)
        # However many queries there are and however slow, tokens, probes and the runner are served.
        self._querying = _engine(database, begin="BEGIN", connections=_QUERIES, patience=_QUERY_PATIENCE)
        self._writing = _engine(database, begin="BEGIN IMMEDIATE", connections=1)
        self._time_limit = TimeLimit()
        self._commits = GroupCommit(self._writing, self._committed)
        self._listeners: list[Listener] = []
        self._abort_listeners: list[Callable[[str], None]] = []
        self._state_listeners: list[Callable[[str], None]] = []
        with self._write() as connection:
            metadata.create_all(connection)
            # What a table lacks that an earlier version has made, `create_all` doesn't add.
            for table in metadata.tables.values():
                _add_columns(connection, table)
                for index in table.indexes:
                    index.create(connection, checkfirst=True)

    def close(self) -> None:
        """Release the database."""
        self._commits.close()
        self._time_limit.close()
        self._reading.dispose()
        self._querying.dispose()
        self._writing.dispose()

    def end_queries(self) -> None:
        """Interrupt the queries that run, and each later one: the server stops."""
        self._time_limit.end()

    def listen(self, listener: Listener) -> None:
        """Have `listener` called, in the writer's thread, after each commit that changed statuses."""
        self._listeners.append(listener)

    def listen_to_aborts(self, listener: Callable[[str], None]) -> None:
        """Have `listener` called, in the writer's thread, with the id of an invocation to be stopped."""
        self._abort_listeners.append(listener)

    def listen_to_states(self, listener: Callable[[str], None]) -> None:
        """Have `listener` called, in the writer's thread, with the id of an invocation with a new state."""
        self._state_listeners.append(listener)

    def notify_state(self, invocation_id: str) -> None:
        """Tell those who listen that an invocation's custom state is another."""
        for listener in self._state_listeners:
            listener(invocation_id)

    @staticmethod
    def _after_commit(connection: sa.Connection, event: StatusEvent) -> None:
        connection.info["events"].append(event)

    @staticmethod
    def _after_commit_abort(connection: sa.Connection, invocation_id: str) -> None:
        connection.info["aborts"].append(invocation_id)

    @contextmanager
    def _write(self) -> Iterator[sa.Connection]:
        """A unit of work: all or nothing, on the disk when the block has ended; see GroupCommit."""
        with self._commits.unit() as connection:
            connection.info.update(events=[], aborts=[])
            yield connection

    def _committed(self, group: Group) -> None:
        committed: list[StatusEvent] = [event for left in group.left for event in left["events"]]
        if committed:
            for listener in self._listeners:
                listener(committed)
        for invocation_id in (invocation_id for left in group.left for invocation_id in left["aborts"]):
            for abort_listener in self._abort_listeners:
                abort_listener(invocation_id)

    @contextmanager
    def _read_bounded(self, within: float = QUERY_WITHIN) -> Iterator[sa.Connection]:
        """A connection for what a caller asks for in words of their own, ended after some seconds.

        :param within: how many.
        :raises InvalidRequestError: it takes longer, or SQLite cannot answer it.
        :raises SQLAlchemyError: an outage; too many queries run, say.
        """
        with self._querying.begin() as connection:
            driver = cast("sqlite3.Connection", connection.connection.dbapi_connection)
            try:
                with self._time_limit.within(within, driver):
                    yield connection
            except sa.exc.OperationalError as error:
                raise _refusal(error, within) or error from None

    @contextmanager
    def _read(self) -> Iterator[sa.Connection]:
        with self._reading.begin() as connection:
            yield connection


def _add_columns(connection: sa.Connection, table: sa.Table) -> None:
    """Add the columns that an earlier version's table doesn't have; rows have NULL in them."""
    present = {column["name"] for column in sa.inspect(connection).get_columns(table.name)}
    for column in table.columns:
        if column.name not in present:
            kind = column.type.compile(connection.dialect)
            connection.execute(sa.text(f'ALTER TABLE "{table.name}" ADD COLUMN "{column.name}" {kind}'))


def _refusal(error: sa.exc.OperationalError, within: float) -> InvalidRequestError | None:
    """What is wrong with a query that SQLite did not answer; None: nothing is."""
    kind = getattr(error.orig, "sqlite_errorcode", None)
    if kind == sqlite3.SQLITE_INTERRUPT:
        return InvalidRequestError(f"the query takes longer than {within:g} s; simplify or narrow it")
    if kind == sqlite3.SQLITE_ERROR:
        return InvalidRequestError(f"the query cannot be answered: {error.orig}")
    return None


def _engine(database: Path, begin: str, connections: int, patience: float = 30.0) -> sa.Engine:
    engine = sa.create_engine(
        sa.URL.create("sqlite", database=str(database)),
        poolclass=sa.QueuePool,
        pool_size=connections,
        max_overflow=0,
        pool_timeout=patience,
        # An error's text goes into the server's log: not with the parameters and tokens of its statement.
        hide_parameters=True,
        connect_args={"check_same_thread": False, "timeout": 30},
        # pydantic's, which take a third of the time of json's: a page of invocations has a hundred records.
        json_serializer=lambda value: pydantic_core.to_json(value).decode(),
        json_deserializer=pydantic_core.from_json,
    )

    @sa.event.listens_for(engine, "connect")
    def _prepare(connection: Any, _: object) -> None:
        connection.isolation_level = None  # transactions begin where we say, not where the driver guesses
        cursor = connection.cursor()
        # FULL: a commit has reached the disk when it returns. Acknowledged means stored.
        # Pages of 100 out of 100,000 look into some 500 of the database's pages: 8 MB of them are kept.
        pragmas = ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON", "cache_size = -8000")
        for pragma in pragmas:
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()
        add_functions(connection)

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql(begin)

    return engine
