"""One SQLite database: its connections, transactions, and notifications after commits."""

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
from ..errors import InvalidRequestError
from ..query.comparisons import add_functions
from .group_commit import Group, GroupCommit
from .tables import metadata
from .time_limit import TimeLimit

#: Seconds that a caller's query may take.
QUERY_TIMEOUT = 10.0

#: Queries that run at the same time, and seconds that another one waits for a connection.
_MAX_QUERIES = 8
_QUERY_POOL_TIMEOUT = 2.0


@dataclass(frozen=True, slots=True)
class StatusEvent:
    """A committed change of an invocation's status, as stored in the table of events."""

    #: Increases with each event of the database.
    number: int
    invocation_id: str
    org_id: str
    action_name: str
    #: The root of the invocation's tree: the invocation itself if no other one started it.
    root_id: str
    #: 1, and one more each time the invocation is requeued.
    attempt: int
    status: InvocationStatus
    detail: str | None
    #: Microseconds since 1970, UTC.
    timestamp: int
    #: Another event of the invocation follows in the same transaction, so this status was never visible.
    superseded: bool = False
    #: The exit code of the action's process, if that is how the invocation ended.
    exit_code: int | None = None
    #: When the previous status began; None: there was none, or the event was read from the database.
    previous: int | None = None


EventListener = Callable[[Sequence[StatusEvent]], None]
InvocationListener = Callable[[str], None]


class Database:
    """Connections and transactions of one SQLite file, and the listeners called after commits.

    Listeners are called in the thread of a writer, in commit order.

    :param path: the file; tables and columns that are missing are created.
    """

    def __init__(self, path: Path) -> None:
        self._reading = _create_engine(path, begin="BEGIN", connections=8)
        # Queries have their own connections, so that slow ones never delay tokens, probes and the runner.
        self._querying = _create_engine(
            path, begin="BEGIN", connections=_MAX_QUERIES, pool_timeout=_QUERY_POOL_TIMEOUT
        )
        self._writing = _create_engine(path, begin="BEGIN IMMEDIATE", connections=1)
        self._time_limit = TimeLimit()
        self._group_commit = GroupCommit(self._writing, self._notify)
        self._event_listeners: list[EventListener] = []
        self._abort_listeners: list[InvocationListener] = []
        with self.write() as connection:
            metadata.create_all(connection)
            # `create_all` doesn't complete a table that an earlier version created.
            for table in metadata.tables.values():
                _add_missing_columns(connection, table)
                for index in table.indexes:
                    index.create(connection, checkfirst=True)

    def close(self) -> None:
        """Close all connections."""
        self._group_commit.close()
        self._time_limit.close()
        self._reading.dispose()
        self._querying.dispose()
        self._writing.dispose()

    def interrupt_queries(self) -> None:
        """Interrupt running queries and each later one, because the server stops."""
        self._time_limit.interrupt_all()

    def listen_to_events(self, listener: EventListener) -> None:
        """Call `listener` after each commit that changed statuses, with the events."""
        self._event_listeners.append(listener)

    def listen_to_aborts(self, listener: InvocationListener) -> None:
        """Call `listener` with the id of each running invocation whose abort was requested."""
        self._abort_listeners.append(listener)

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """Run a write transaction: all or nothing, on the disk when the block ends; see `GroupCommit`."""
        with self._group_commit.transaction() as connection:
            connection.info.update(events=[], aborts=[])
            yield connection

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """Run a read transaction."""
        with self._reading.begin() as connection:
            yield connection

    @contextmanager
    def query(self, timeout: float = QUERY_TIMEOUT) -> Iterator[sa.Connection]:
        """Run a read transaction for a caller's query, which is interrupted when it takes too long.

        :param timeout: seconds.
        :raises InvalidRequestError: the query takes longer, or SQLite cannot execute it.
        :raises SQLAlchemyError: the database is unavailable, for example because too many queries run.
        """
        with self._querying.begin() as connection:
            driver = cast("sqlite3.Connection", connection.connection.dbapi_connection)
            try:
                with self._time_limit.within(timeout, driver):
                    yield connection
            except sa.exc.OperationalError as error:
                raise _invalid_query(error, timeout) or error from None

    def _notify(self, group: Group) -> None:
        committed: list[StatusEvent] = [event for info in group.infos for event in info["events"]]
        if committed:
            for listener in self._event_listeners:
                listener(committed)
        for invocation_id in (invocation_id for info in group.infos for invocation_id in info["aborts"]):
            for abort_listener in self._abort_listeners:
                abort_listener(invocation_id)


def pending_events(connection: sa.Connection) -> list[StatusEvent]:
    """Return the events of a write transaction so far; listeners get them after the commit."""
    events: list[StatusEvent] = connection.info["events"]
    return events


def notify_abort(connection: sa.Connection, invocation_id: str) -> None:
    """Notify the abort listeners after the transaction's commit."""
    connection.info["aborts"].append(invocation_id)


def _add_missing_columns(connection: sa.Connection, table: sa.Table) -> None:
    """Add the columns that an earlier version's table doesn't have; existing rows get NULL."""
    present = {column["name"] for column in sa.inspect(connection).get_columns(table.name)}
    for column in table.columns:
        if column.name not in present:
            kind = column.type.compile(connection.dialect)
            connection.execute(sa.text(f'ALTER TABLE "{table.name}" ADD COLUMN "{column.name}" {kind}'))


def _invalid_query(error: sa.exc.OperationalError, timeout: float) -> InvalidRequestError | None:
    """Return the error for a query that the caller has to change; None if the database failed."""
    code = getattr(error.orig, "sqlite_errorcode", None)
    if code == sqlite3.SQLITE_INTERRUPT:
        return InvalidRequestError(f"the query takes longer than {timeout:g} s; simplify or narrow it")
    if code == sqlite3.SQLITE_ERROR:
        return InvalidRequestError(f"the query cannot be answered: {error.orig}")
    return None


def _create_engine(path: Path, begin: str, connections: int, pool_timeout: float = 30.0) -> sa.Engine:
    engine = sa.create_engine(
        sa.URL.create("sqlite", database=str(path)),
        poolclass=sa.QueuePool,
        pool_size=connections,
        max_overflow=0,
        pool_timeout=pool_timeout,
        # The text of an error goes to the server's log; the parameters may hold tokens.
        hide_parameters=True,
        connect_args={"check_same_thread": False, "timeout": 30},
        # pydantic_core takes a third of the time of json, and a page of invocations has a hundred records.
        json_serializer=lambda value: pydantic_core.to_json(value).decode(),
        json_deserializer=pydantic_core.from_json,
    )

    @sa.event.listens_for(engine, "connect")
    def _prepare(connection: Any, _: object) -> None:
        connection.isolation_level = None  # transactions begin with `begin`, not where the driver guesses
        cursor = connection.cursor()
        # FULL: a commit is on the disk when it returns, so what was acknowledged is stored.
        # A page of 100 out of 100,000 invocations reads some 500 database pages; the cache holds 8 MB.
        pragmas = ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON", "cache_size = -8000")
        for pragma in pragmas:
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()
        add_functions(connection)

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql(begin)

    return engine
