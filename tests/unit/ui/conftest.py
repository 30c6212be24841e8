"""A fake Airflow and fake platforms around the real routes of the page."""

from __future__ import annotations

import asyncio
import datetime
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import jwt
import pytest
from airflow.api_fastapi import app as airflow_app
from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
from airflow.models.dag import DagModel
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.testclient import TestClient

from airflow_invocations.hooks import InvocationHook
from airflow_invocations.models import (
    DagRunProvenance,
    InvocationRecord,
    InvocationStatus,
    LogPage,
    LogProcess,
    LogRecord,
)
from airflow_invocations.platforms import Capabilities, NotFoundError, Platform
from airflow_invocations.ui.airflow import app as page_app
from airflow_invocations.ui.airflow.queries import PlatformQueries
from airflow_invocations.ui.airflow.runs import Instance, RunKey, Try, TryKey
from airflow_invocations.version_compat import VERSION

from ...support.records import (
    INVOCATION,
)

NOON = datetime.datetime(2026, 1, 31, 12, tzinfo=datetime.UTC)
RUN = RunKey("fleet", "manual__2026-01-31T12:00:00+00:00")
S = InvocationStatus


def at(seconds: float) -> datetime.datetime:
    return NOON + datetime.timedelta(seconds=seconds)


def record(
    invocation_id: str = "iv_1",
    run: RunKey = RUN,
    task_id: str = "ask",
    *,
    map_index: int = -1,
    try_number: int = 1,
    asked_in: Mapping[str, Any] | None = None,
    steps: tuple[tuple[InvocationStatus, float], ...] = ((S.Queued, 0), (S.Processing, 2)),
    action: str = "scan",
    detail: str | None = None,
    **fields: Any,
) -> InvocationRecord:
    """An invocation that a task asked for; `steps` are its statuses and their seconds after noon.

    `asked_in` are more fields of its provenance.
    """
    asker = DagRunProvenance(
        dag_id=run.dag_id, run_id=run.run_id, run_type="manual", task_id=task_id, map_index=map_index,
        try_number=try_number, **(asked_in or {}),
    )  # fmt: skip
    provenance = {
        **INVOCATION["provenance"],
        "action": {**INVOCATION["provenance"]["action"], "name": action},
        "source": asker.source,
    }
    status = [{"status": status, "timestamp": at(seconds)} for status, seconds in steps]
    status[-1]["detail"] = detail
    content = {
        **INVOCATION, "invocation_id": invocation_id, "created": at(0), "provenance": provenance,
        "status": status, "last_status": steps[-1][0], **fields,
    }  # fmt: skip
    return InvocationRecord.model_validate(content)


def page_of(*lines: str, more: bool = False, last_read: str | None = "1") -> LogPage:
    items = [LogRecord(log=line, process=LogProcess.Action, timestamp=NOON) for line in lines]
    return LogPage(items=items, has_next=more, last_read=last_read)


@dataclass
class FakePlatform:
    """A platform that has these invocations, and what it was asked."""

    records: list[InvocationRecord] = field(default_factory=list)
    pages: dict[str | None, LogPage] = field(default_factory=dict)
    capabilities: Capabilities = field(default_factory=Capabilities)
    link_base: str = "https://platform.example"
    #: Awaited before each answer.
    before: Callable[[], Awaitable[None]] | None = None
    error: Exception | None = None
    asked: list[tuple[Any, ...]] = field(default_factory=list)

    async def find(
        self,
        dag_id: str,
        run_id: str | None,
        task_id: str | None,
        map_index: int | None,
        limit: int | None,
        iteration: int | None = None,
    ) -> list[InvocationRecord]:
        await self._asked("find", dag_id, run_id, limit)
        source_id = DagRunProvenance(
            dag_id=dag_id, run_id=str(run_id), run_type="manual", task_id="", try_number=1
        ).source_id.partition("/tasks/")[0]
        mine = [each for each in self.records if each.provenance.source.source_id.startswith(source_id)]
        return mine[:limit]

    async def get(self, invocation_id: str) -> InvocationRecord:
        await self._asked("get", invocation_id)
        for each in self.records:
            if each.invocation_id == invocation_id:
                return each
        raise NotFoundError(f"no {invocation_id} (at https://secret-host.example)")

    async def logs(self, invocation_id: str, cursor: str | None = None) -> LogPage:
        await self._asked("logs", invocation_id, cursor)
        return self.pages.get(cursor) or page_of(last_read=cursor)

    def page_url(self, invocation_id: str) -> str:
        return f"{self.link_base}/{invocation_id}"

    url = Platform.url

    async def _asked(self, *what: Any) -> None:
        self.asked.append(what)
        if self.before is not None:
            await self.before()
        if self.error is not None:
            raise self.error


class World:
    """Connections by id, and everything that Airflow's REST API would say."""

    def __init__(self) -> None:
        self.platforms: dict[str, FakePlatform] = {}
        self.types: dict[str, str] = {}
        #: What making a hook's connection raises.
        self.broken: dict[str, Exception] = {}
        #: The DAG runs that there are, and whether each has ended.
        self.runs: dict[RunKey, bool] = {RUN: False}
        self.named: dict[RunKey, list[str]] = {}
        #: None: the viewer may not list connections.
        self.listed: dict[str, str] | None = {}
        self.instances: dict[TryKey, Instance] = {}

    def connect(self, conn_id: str, *records: InvocationRecord, kind: str = "roboto") -> FakePlatform:
        """A connection that RUN's tasks name."""
        self.platforms[conn_id] = platform = FakePlatform(list(records))
        self.types[conn_id] = kind
        self.named.setdefault(RUN, []).append(conn_id)
        return platform

    def hook(self, conn_id: str) -> Any:
        return FakeHook(self, conn_id)


class FakeHook:
    """A hook whose connection leads to a FakePlatform, over the real bridge."""

    def __init__(self, world: World, conn_id: str) -> None:
        self._world = world
        self._conn_id = conn_id

    @property
    def connection_type(self) -> str:
        if self._conn_id in self._world.broken:
            raise self._world.broken[self._conn_id]
        return self._world.types[self._conn_id]

    def ask(self, operation: Callable[[Any], Any]) -> Any:
        platform = self._world.platforms[self._conn_id]
        return InvocationHook.run(lambda: operation(platform))


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def platforms(world: World) -> Iterator[PlatformQueries]:
    asked = PlatformQueries(world.hook)
    yield asked
    asked.close()


@dataclass
class Person:
    """Somebody whom Airflow knows, and what they may see."""

    dags: set[str]
    may_see_plugins: bool = True
    may_not: frozenset[DagAccessEntity] = frozenset()


class Auth:
    """An auth manager: who somebody is by their token, and the DAGs that they may read."""

    def __init__(self) -> None:
        self.people = {"ada": Person({"fleet"}), "bob": Person({"other"})}

    async def get_user_from_token(self, token: str) -> Person:
        try:
            return self.people[token]
        except KeyError:
            raise jwt.InvalidTokenError from None

    def is_authorized_view(self, *, access_view: Any, user: Person) -> bool:
        return user.may_see_plugins

    def is_authorized_dag(self, *, method: str, user: Person, access_entity: Any, details: Any) -> bool:
        assert method == "GET"
        return access_entity not in user.may_not and (details.id is None or details.id in user.dags)

    def get_authorized_dag_ids(self, *, user: Person) -> set[str]:
        return user.dags


@pytest.fixture
def auth(monkeypatch: pytest.MonkeyPatch) -> Auth:
    auth = Auth()
    if VERSION >= (3, 2):
        monkeypatch.setattr(airflow_app._AuthManagerState, "instance", auth)
    else:
        monkeypatch.setattr(airflow_app, "auth_manager", auth)
    monkeypatch.setattr(DagModel, "get_team_name", lambda dag_id: None)
    return auth


def _instance_json(key: TryKey, made: Try, label: str | None, conn_id: str | None) -> dict[str, Any]:
    """A task instance as Airflow's API has it, as far as the page reads it."""
    return {
        "dag_id": key.dag_id,
        "dag_run_id": key.run_id,
        "task_id": key.task_id,
        "map_index": key.map_index,
        "in_loop": key.region_id is not None,
        "region_id": key.region_id,
        "region_index": key.region_index,
        "try_number": made.number,
        "start_date": made.started and made.started.isoformat(),
        "end_date": made.ended and made.ended.isoformat(),
        "rendered_map_index": label,
        "rendered_fields": {} if conn_id is None else {"conn_id": conn_id},
    }


def airflow_of(world: World, auth: Auth) -> FastAPI:
    """An API server with the routes that the page asks, each with the asker's own rights."""
    airflow = FastAPI()

    async def readable(request: Request) -> set[str]:
        token = request.cookies.get("_token") or request.headers.get("authorization", "")[len("Bearer ") :]
        return (await auth.get_user_from_token(token)).dags

    readers = Depends(readable)

    @airflow.get("/api/v2/dags/~/dagRuns/~/taskInstances/~/xcomEntries")
    def xcoms(xcom_key: str, map_index: int, dags: set[str] = readers) -> dict[str, Any]:
        assert xcom_key == "invocation_id"
        runs = [run for run in world.runs if run.dag_id in dags and map_index == -1]
        entries = [
            {"dag_id": run.dag_id, "run_id": run.run_id, "timestamp": at(number).isoformat()}
            for number, run in enumerate(runs)
        ]
        return {"xcom_entries": entries}

    @airflow.post("/api/v2/dags/~/dagRuns/~/taskInstances/list")
    async def instances(request: Request, dags: set[str] = readers) -> dict[str, Any]:
        body = await request.json()
        listed = [
            _instance_json(TryKey(run.dag_id, run.run_id, f"task_{name}", -1), Try(1, None, None), None, name)
            for run, names in world.named.items()
            for name in names
        ]
        listed += [
            _instance_json(key, instance.tries[-1], instance.label, None)
            for key, instance in world.instances.items()
        ]
        wanted = [
            each
            for each in listed
            if each["dag_id"] in {*body["dag_ids"]} & dags
            and each["dag_run_id"] in body["dag_run_ids"]
            and each["task_id"] in body.get("task_ids", [each["task_id"]])
        ]
        begin = body["page_offset"]
        return {"task_instances": wanted[begin : begin + body["page_limit"]]}

    @airflow.get("/api/v2/connections")
    def connections(dags: set[str] = readers) -> dict[str, Any]:
        if world.listed is None:
            raise HTTPException(403)
        return {
            "connections": [{"connection_id": name, "conn_type": kind} for name, kind in world.listed.items()]
        }

    @airflow.get("/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/tries")
    def tries(dag_id: str, run_id: str, task_id: str) -> dict[str, Any]:
        key = TryKey(dag_id, run_id, task_id, -1)
        return {
            "task_instances": [_instance_json(key, each, None, None) for each in world.instances[key].tries]
        }

    @airflow.get("/api/v2/dags/{dag_id}/dagRuns/{run_id:path}")
    def dag_run(dag_id: str, run_id: str, dags: set[str] = readers) -> dict[str, Any]:
        if dag_id not in dags:
            raise HTTPException(403)
        if RunKey(dag_id, run_id) not in world.runs:
            raise HTTPException(404)
        return {"state": "success" if world.runs[RunKey(dag_id, run_id)] else "running"}

    return airflow


@pytest.fixture
def client(world: World, platforms: PlatformQueries, auth: Auth) -> Iterator[TestClient]:
    """A browser without a login, at the page of an Airflow that knows what the world says."""
    airflow = airflow_of(world, auth)
    airflow.mount("/invocations", page_app.create_app(platforms))
    with TestClient(airflow, base_url="http://testserver/invocations") as client:
        yield client


@pytest.fixture
def ada(client: TestClient) -> TestClient:
    """The same, logged in as somebody who may read the DAG `fleet`."""
    client.cookies.set("_token", "ada")
    return client


class Gate:
    """Lets nothing through until it is opened."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self._open = threading.Event()

    async def __call__(self) -> None:
        self.entered.set()
        await asyncio.to_thread(self._open.wait)

    def open(self) -> None:
        self._open.set()


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open()
