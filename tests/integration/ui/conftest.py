"""A metadata database with DAG runs that have really invoked something, and Airflow's own auth manager."""

from __future__ import annotations

import datetime
import json
import os
import secrets
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from airflow.api_fastapi.app import create_app, init_auth_manager
from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser
from airflow.dag_processing.bundles.manager import DagBundlesManager
from airflow.models.connection import Connection
from airflow.sdk import DAG
from airflow.utils import db
from airflow.utils.session import create_session
from fastapi import Request
from fastapi.testclient import TestClient
from starlette.routing import Mount

from airflow_invocations.hooks import RobotoHook
from airflow_invocations.operators import InvokeActionOperator
from airflow_invocations.plugins.invocations import URL_PREFIX
from airflow_invocations.ui.airflow import app as page_app
from airflow_invocations.ui.airflow.airflow_api import AirflowApi
from airflow_invocations.ui.airflow.runs import RunKey

from ...support.airflow_version import DagBag, sync_bag_to_db
from ..airflow.conftest import connect_to, script

__all__ = ["script"]


@pytest.fixture(scope="session")
def database() -> None:
    """Airflow's tables, in the tests' own home."""
    db.initdb()
    DagBundlesManager().sync_bundles_to_db()


@pytest.fixture
def hook(server: Any, monkeypatch: pytest.MonkeyPatch) -> RobotoHook:
    """A hook on the server, under the connection that operators use by default."""
    connect_to(server, monkeypatch)
    return RobotoHook()


@pytest.fixture
def run_dag(database: None, hook: RobotoHook) -> Callable[..., RunKey]:
    """Run a DAG of one task that invokes a script; the run's key."""

    def run(command: str, **arguments: Any) -> RunKey:
        action = script(hook, command)
        with DAG(
            f"seen_{uuid.uuid4().hex[:8]}", schedule=None, start_date=datetime.datetime(2026, 1, 1)
        ) as dag:
            InvokeActionOperator(task_id="ask", action=action, **{"poll_interval": 0.1, **arguments})
        bag = DagBag(dag_folder=os.devnull)
        bag.bag_dag(dag)
        sync_bag_to_db(bag, "dags-folder", None)
        return RunKey(dag.dag_id, dag.test().run_id)

    return run


@pytest.fixture
def stored_connections(database: None) -> Iterator[None]:
    """Connections that the database has: one of ours, one of somebody else's."""
    with create_session(scoped=False) as session:
        session.add(
            Connection(conn_id="stored", conn_type="roboto", host="http://127.0.0.1:9", password="s3cret")
        )
        session.add(Connection(conn_id="warehouse", conn_type="postgres", host="127.0.0.1"))
    yield
    with create_session(scoped=False) as session:
        for conn_id in ("stored", "warehouse"):
            session.delete(session.query(Connection).filter_by(conn_id=conn_id).one())


@pytest.fixture
def client(database: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    """A browser at the page in a whole API server, without a login; Airflow's simple auth manager decides."""
    monkeypatch.setenv("AIRFLOW__API_AUTH__JWT_SECRET", secrets.token_hex(32))
    application = create_app(apps="core")
    (mount,) = [
        route for route in application.routes if isinstance(route, Mount) and route.path == URL_PREFIX
    ]
    # Airflow keeps one page for the life of its process, and with it what another test's platforms said.
    mount.app = page_app.create_app()
    with TestClient(application, base_url=f"http://testserver{URL_PREFIX}") as client:
        yield client


@pytest.fixture
def viewer(client: TestClient) -> TestClient:
    """The same, logged in as somebody who may look and nothing else."""
    user = SimpleAuthManagerUser(username="vera", role="VIEWER")
    client.cookies.set("_token", init_auth_manager().generate_jwt(user))
    return client


@pytest.fixture
def ask(client: TestClient) -> Callable[..., Any]:
    """Call a coroutine function with the REST API of that application, as somebody with a role."""

    def call(about: Callable[..., Any], *arguments: Any, role: str = "VIEWER") -> Any:
        token = init_auth_manager().generate_jwt(SimpleAuthManagerUser(username="vera", role=role))
        scope = {
            "type": "http", "method": "GET", "scheme": "http", "server": ("testserver", 80), "path": "/",
            "query_string": b"", "headers": [(b"authorization", f"Bearer {token}".encode())],
            "airflow_invocations.parent": client.app,
        }  # fmt: skip

        async def with_api() -> Any:
            async with AirflowApi(Request(scope)) as api:
                return await about(api, *arguments)

        assert client.portal is not None
        return client.portal.call(with_api)

    return call


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, dict[str, Any] | str], None]:
    """Define a connection in the environment."""

    def define(conn_id: str, connection: dict[str, Any] | str) -> None:
        value = connection if isinstance(connection, str) else json.dumps(connection)
        monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", value)

    return define
