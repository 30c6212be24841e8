"""Group commit: those who wait share a transaction, and nobody is told what isn't stored."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa

from airflow_invocations.models import InvocationRecord
from airflow_invocations.server.db import StatusEvent, Store
from airflow_invocations.server.errors import NotFoundError

from .conftest import create, invoke

Unit = Callable[[], InvocationRecord]


@pytest.fixture
def store(store: Store) -> Store:
    create(store)
    return store


def in_one_transaction(store: Store, *units: Unit) -> list[Future[InvocationRecord]]:
    """Have all of these wait for a turn, one after another, and then go on; what each came to."""
    commits = store.database._group_commit
    with ThreadPoolExecutor(len(units)) as threads:
        with commits._turn:
            begun = []
            for place, unit in enumerate(units):
                begun.append(threads.submit(unit))
                while commits._waiting <= place:
                    time.sleep(0.001)
        return begun


def stored_by_another(database: Path) -> int:
    """How many invocations somebody else finds in the database."""
    other = Store(database)
    try:
        return sum(other.invocations.count_by_status().values())
    finally:
        other.close()


def test_those_who_wait_share_a_commit(store: Store, database: Path) -> None:
    commits: list[list[StatusEvent]] = []
    store.database.listen_to_events(lambda events: commits.append(list(events)))
    outcomes = in_one_transaction(store, *[lambda: invoke(store)] * 5)
    ids = {outcome.result().invocation_id for outcome in outcomes}
    assert [{event.invocation_id for event in events} for events in commits] == [ids]
    assert len(ids) == stored_by_another(database) == 5


def test_one_who_is_alone_commits_at_once(store: Store, database: Path) -> None:
    for count in (1, 2, 3):
        invoke(store)
        assert stored_by_another(database) == count


def test_listeners_are_notified_after_the_commit(store: Store) -> None:
    told: list[str] = []
    committing = threading.Event()

    @sa.event.listens_for(store.database._writing, "commit")
    def slowly(_: sa.Connection) -> None:
        committing.set()
        time.sleep(0.05)
        assert told == []

    def rejected() -> InvocationRecord:
        try:
            return invoke(store, "no-such-action")
        finally:
            told.append("rejected")

    def taken() -> InvocationRecord:
        try:
            return invoke(store)
        finally:
            told.append("taken")

    outcomes = in_one_transaction(store, taken, rejected, taken)
    assert isinstance(outcomes[1].exception(), NotFoundError)
    assert committing.is_set()
    assert sorted(told) == ["rejected", "taken", "taken"]


@pytest.mark.parametrize("place", [0, 1, 2], ids=["first", "between", "last"])
def test_failed_write_fails_alone_and_leaves_nothing(store: Store, database: Path, place: int) -> None:
    def half_done() -> InvocationRecord:
        with store.database.write() as connection:
            connection.exec_driver_sql("DELETE FROM actions")
            raise NotFoundError("in the middle")

    units: list[Unit] = [lambda: invoke(store)] * 2
    units.insert(place, half_done)
    outcomes = in_one_transaction(store, *units)
    assert [type(outcome.exception()) for outcome in outcomes].count(NotFoundError) == 1
    assert stored_by_another(database) == 2
    assert invoke(store).invocation_id


def test_same_idempotency_id_in_one_transaction_is_one_invocation(store: Store, database: Path) -> None:
    outcomes = in_one_transaction(store, *[lambda: invoke(store, idempotency_id="once")] * 5)
    assert len({outcome.result().invocation_id for outcome in outcomes}) == 1
    assert stored_by_another(database) == 1


def test_a_commit_that_fails_fails_all_of_its_units(store: Store, database: Path) -> None:
    heard: list[StatusEvent] = []
    store.database.listen_to_events(heard.extend)

    def reject(_: sa.Connection) -> None:
        raise sa.exc.OperationalError("COMMIT", None, OSError(28, "No space left on device"))

    sa.event.listen(store.database._writing, "commit", reject)
    outcomes = in_one_transaction(store, *[lambda: invoke(store)] * 3)
    sa.event.remove(store.database._writing, "commit", reject)
    assert [type(outcome.exception()) for outcome in outcomes] == [sa.exc.OperationalError] * 3
    assert (heard, stored_by_another(database)) == ([], 0)
    invoke(store)
    assert (len(heard), stored_by_another(database)) == (1, 1)


def test_a_transaction_that_sqlite_takes_back_fails_all_of_its_units(store: Store, database: Path) -> None:
    begun = threading.Event()

    def first() -> None:
        with store.database.write() as connection:
            connection.exec_driver_sql("DELETE FROM actions")
            begun.set()
            while not store.database._group_commit._waiting:
                time.sleep(0.001)

    def disk_full() -> None:
        with store.database.write() as connection:
            connection.exec_driver_sql("ROLLBACK")  # what SQLite does by itself then
            raise sa.exc.OperationalError("INSERT", None, OSError(28, "No space left on device"))

    with ThreadPoolExecutor(2) as threads:
        before = threads.submit(first)
        begun.wait(10)
        full = threads.submit(disk_full)
        failures = [before.exception(), full.exception()]
    assert [type(failure) for failure in failures] == [sa.exc.OperationalError] * 2
    assert invoke(store).invocation_id  # the action is there, and the store works
    assert stored_by_another(database) == 1
