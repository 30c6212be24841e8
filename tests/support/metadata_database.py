"""The metadata database that this process's Airflow has: its own SQLite, or one in a PostgreSQL."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import sqlalchemy as sa

#: Where databases may be made and dropped; the password, if it needs one, is in it too.
POSTGRES = os.environ.get("INVOCATIONS_TEST_POSTGRES", "postgresql://postgres@127.0.0.1:5432/postgres")

#: The databases that tests of what Airflow stores run on.
DATABASES = ("sqlite", "postgresql")

_VARIABLE = "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"


@contextmanager
def metadata_database(kind: str) -> Iterator[None]:
    """Have Airflow's tables in a database of this kind; that of PostgreSQL is made and dropped here."""
    if kind == "sqlite":
        _migrate()
        yield
        return
    with empty_postgres() as url, pytest.MonkeyPatch.context() as environment:
        environment.setenv(_VARIABLE, url)
        _reconnect()
        try:
            _migrate()
            yield
        finally:
            environment.undo()
            _reconnect()


@contextmanager
def empty_postgres() -> Iterator[str]:
    """The URL of a database that is made and dropped here, with its password.

    Skips where no PostgreSQL answers; where CI is set, fails.
    """
    name = f"invocations_{secrets.token_hex(6)}"
    _execute(f'CREATE DATABASE "{name}" TEMPLATE "template0"')
    try:
        url = sa.make_url(POSTGRES).set(drivername="postgresql+psycopg2", database=name)
        yield url.render_as_string(hide_password=False)
    finally:
        _execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


def _execute(statement: str) -> None:
    url = sa.make_url(POSTGRES).set(drivername="postgresql+psycopg2")
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    try:
        with engine.connect() as connection:
            connection.execute(sa.text(statement))
    except sa.exc.OperationalError as error:
        missing = f"no PostgreSQL at {POSTGRES} (INVOCATIONS_TEST_POSTGRES): {str(error.orig).strip()}"
        if os.environ.get("CI"):
            pytest.fail(f"CI is set, and there is {missing}")
        pytest.skip(missing)


def _reconnect() -> None:
    """Have Airflow use the database that its configuration names now."""
    from airflow import settings

    settings.configure_vars()
    settings.reconfigure_orm()


def _migrate() -> None:
    from airflow.dag_processing.bundles.manager import DagBundlesManager
    from airflow.utils.db import initdb

    initdb()
    DagBundlesManager().sync_bundles_to_db()
