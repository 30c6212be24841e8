"""The platforms, each with workers and without, and how a case asks them for something."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from airflow_invocations import invocation_api
from airflow_invocations.hooks import InvocationHook
from airflow_invocations.models import DagRunProvenance, InvocationRecord, InvocationRequest
from airflow_invocations.operators import invoke_action
from airflow_invocations.platforms import Platform
from airflow_invocations.platforms.flyte import client as connect
from airflow_invocations.platforms.ray import client as jobs_api
from airflow_invocations.sensors import invocation
from airflow_invocations.tasks.validation import read_arguments, request_of
from airflow_invocations.waiters import WaitOptions, fetch_record, wait_until_terminal

from .deployment import Deployment, PlatformUnderTest
from .local import LocalServer
from .on_flyte import OnFlyte
from .on_pynenc import OnRedis, OnSQLite
from .on_ray import OnRay

#: A platform is one class; to add one, name it here.
PLATFORMS: list[type[PlatformUnderTest]] = [LocalServer, OnFlyte, OnSQLite, OnRedis, OnRay]

#: The connections that the cases use.
CONN_ID = "under_test"
IDLE_CONN_ID = "under_test_idle"
LATE_CONN_ID = "under_test_late"
NOWHERE_CONN_ID = "under_test_nowhere"


@pytest.fixture(scope="session", params=PLATFORMS, ids=lambda platform: platform.name)
def under_test(request: pytest.FixtureRequest) -> PlatformUnderTest:
    """The platform that a case runs against."""
    platform: PlatformUnderTest = request.param()
    if why_not := platform.why_not_here():
        pytest.skip(why_not)
    return platform


@pytest.fixture(scope="session")
def deployment(
    under_test: PlatformUnderTest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    """One installation with workers, for all cases that leave it as they found it."""
    with under_test.deploy(tmp_path_factory.mktemp("with-workers"), workers=True) as deployment:
        yield deployment


@pytest.fixture(scope="session")
def idle_deployment(
    under_test: PlatformUnderTest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    """One installation whose workers never run."""
    with under_test.deploy(tmp_path_factory.mktemp("without-workers"), workers=False) as deployment:
        yield deployment


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside a real Airflow no executor has to digest a deferral; and who isn't there needs no patience."""
    monkeypatch.setattr(invoke_action, "SHORTEST_DEFERRAL", 0.0)
    monkeypatch.setattr(invocation, "SHORTEST_DEFERRAL", 0.0)
    monkeypatch.setattr(invocation_api, "ATTEMPTS", 1)
    monkeypatch.setattr(connect, "ATTEMPTS", 1)
    monkeypatch.setattr(jobs_api, "ATTEMPTS", 1)


@pytest.fixture
def hook(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> InvocationHook:
    """A hook on the platform with workers."""
    return _hook(CONN_ID, deployment.connection, monkeypatch)


@pytest.fixture
def idle_hook(idle_deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> InvocationHook:
    """A hook on the platform without workers: what is invoked there stays queued."""
    return _hook(IDLE_CONN_ID, idle_deployment.connection, monkeypatch)


@dataclass
class Late:
    """An installation of a case's own, whose workers are started by the case."""

    deployment: Deployment
    hook: InvocationHook


@pytest.fixture
def late(under_test: PlatformUnderTest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Late]:
    """A platform on which what is invoked stays queued until the case starts the workers."""
    folder = tmp_path / "late"
    folder.mkdir()
    with under_test.deploy(folder, workers=False) as deployment:
        yield Late(deployment, _hook(LATE_CONN_ID, deployment.connection, monkeypatch))


@pytest.fixture
def nowhere(under_test: PlatformUnderTest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> InvocationHook:
    """A hook whose connection leads to where no platform answers."""
    return _hook(NOWHERE_CONN_ID, under_test.nowhere(tmp_path), monkeypatch)


@pytest.fixture
async def platform(hook: InvocationHook) -> AsyncIterator[Platform]:
    """An open client of the platform with workers."""
    async with await hook.connect() as opened:
        yield opened


def _hook(conn_id: str, connection: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch) -> InvocationHook:
    monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", json.dumps(dict(connection)))
    return InvocationHook(conn_id)


@dataclass
class Asking:
    """A task that asks: its provenance, and the requests that it sends."""

    folder: Path
    dag_id: str = "fleet"
    run_id: str = field(default_factory=lambda: f"manual__{uuid.uuid4()}")
    task_id: str = "ask"
    map_index: int = -1
    iteration: int | None = None

    def provenance(self, try_number: int = 1) -> DagRunProvenance:
        return DagRunProvenance(
            dag_id=self.dag_id,
            run_id=self.run_id,
            run_type="scheduled",
            task_id=self.task_id,
            map_index=self.map_index,
            iteration=self.iteration,
            try_number=try_number,
            triggered_by="ada",
        )

    def request(
        self,
        *,
        try_number: int = 1,
        once: str | None = None,
        arguments: Mapping[str, Any] | None = None,
        **parameters: Any,
    ) -> InvocationRequest:
        """What the operator would send: action parameters as keywords, `once` the idempotency id."""
        none = dict.fromkeys(
            (
                "input_data", "data_source_id", "upload_destination", "compute_requirements",
                "container_parameters", "timeout",
            )
        )  # fmt: skip
        given = {"action": "a", "parameters": {"folder": str(self.folder), **parameters}}
        values, problems = read_arguments({**none, **given, **(arguments or {})})
        assert problems == []
        request = request_of(values, self.provenance(try_number))
        return request.model_copy(update={"idempotency_id": once or f"once-{uuid.uuid4()}"})


@pytest.fixture
def asking(tmp_path: Path) -> Asking:
    """A task of a DAG run of its own, and a folder for its actions."""
    folder = tmp_path / "asked"
    folder.mkdir()
    return Asking(folder)


async def end_of(hook: InvocationHook, invocation_id: str, within: float = 60.0) -> InvocationRecord:
    """An invocation's last record, once it has ended."""
    waiting = WaitOptions(invocation_id, poll_interval=0.1)
    async with asyncio.timeout(within):
        async for _ in wait_until_terminal(hook.conn_id, hook.connect, waiting):
            pass
        return await fetch_record(hook.connect, waiting)
