"""A Flyte 2 of each test's own, tasks on it, and requests as a task of Airflow sends them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from flyteidl2.core import types_pb2

from airflow_invocations.models import (
    ContainerParameters,
    DagRunProvenance,
    InvocationRecord,
    InvocationRequest,
)
from airflow_invocations.platforms import retry
from airflow_invocations.platforms.flyte import FlytePlatform, FlyteSettings

from ...platforms.flyte_server import DOMAIN, PROJECT, FlyteServer, Pod, SimpleType, TaskError, literal
from ...support.scripted_server import (
    Script,
    scripted_server,
)
from ...support.waiting import until_async

TASK = f"{PROJECT}/{DOMAIN}/env.greet"


async def greet(pod: Pod) -> dict[str, Any]:
    """Greets, so many times; `trouble` says what becomes of it instead."""
    match pod.value("trouble"):
        case "fails":
            raise TaskError("no such topic", "ValueError")
        case "once" if pod.attempt == 1:
            pod.print("the first try")
            raise TaskError("try again", retry=True)
        case "hangs":
            pod.print("hanging")
            await asyncio.Event().wait()
    for number in range(pod.value("count")):
        pod.print(f"hello {pod.value('who')} {number}")
    return {"o0": literal([f"hello {pod.value('who')}"])}


def deploy(server: FlyteServer, project: str = PROJECT, version: str = "v1") -> None:
    server.backend.deploy(
        "env.greet",
        greet,
        {"who": SimpleType.STRING, "count": SimpleType.INTEGER, "trouble": SimpleType.STRING},
        {"o0": types_pb2.LiteralType(collection_type=types_pb2.LiteralType(simple=SimpleType.STRING))},
        {"count": literal(1), "trouble": literal("none")},
        version=version,
        project=project,
    )


@pytest.fixture
def server() -> Iterator[FlyteServer]:
    with FlyteServer() as server:
        deploy(server)
        yield server


def settings(server: FlyteServer, **changes: Any) -> FlyteSettings:
    return FlyteSettings(
        **{"endpoint": server.endpoint, "project": PROJECT, "domain": DOMAIN, "timeout": 5.0, **changes}
    )


@pytest.fixture
async def flyte(server: FlyteServer) -> AsyncIterator[FlytePlatform]:
    async with FlytePlatform(settings(server)) as flyte:
        yield flyte


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries follow one another at once."""
    monkeypatch.setattr(retry, "retry_pause", lambda attempt, retry_after: 0.0)


def request(key: str | None = "once", variables: Any = None, **parameters: Any) -> InvocationRequest:
    """What the operator sends; `asked_by` is changed by parameters of its own name."""
    asked_by = DagRunProvenance(
        **{
            "dag_id": "fleet",
            "run_id": "manual__2026-01-31T12:00:00+00:00",
            "run_type": "manual",
            "task_id": "ask",
            "try_number": 1,
            "triggered_by": "ada",
            **parameters.pop("asked_by", {}),
        }
    )
    return InvocationRequest(
        invocation_source=asked_by.source.source_type,
        invocation_source_id=asked_by.source_id,
        idempotency_id=key,
        parameter_values={"who": "ada", **parameters},
        container_parameter_overrides=ContainerParameters(
            env_vars={**asked_by.environment(), **(variables or {})}
        ),
    )


async def ended(flyte: FlytePlatform, invocation_id: str) -> InvocationRecord:
    """The record of a run that has ended."""

    async def has_ended() -> bool:
        return (await flyte.get(invocation_id)).current.status.is_terminal

    await until_async(has_ended)
    return await flyte.get(invocation_id)


async def running(flyte: FlytePlatform, invocation_id: str) -> None:
    """Return once a run is under way."""

    async def is_running() -> bool:
        return (await flyte.get(invocation_id)).current.status.is_running

    await until_async(is_running)


@pytest.fixture
async def script() -> AsyncIterator[Script]:
    """A server that answers what a test tells it to."""
    async with scripted_server() as script:
        yield script
