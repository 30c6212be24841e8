"""Flyte 2 as a platform under test: a server of the official definitions, whose pods are coroutines."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgpack
from flyteidl2.core import literals_pb2, types_pb2

from airflow_invocations.models import InvocationStatus

from .deployment import EXECUTIONS, RELEASE, Actions, Deployment
from .flyte_server import DOMAIN, PROJECT, FlyteServer, Pod, SimpleType, TaskError, literal

_PLACE = f"{PROJECT}/{DOMAIN}"
ACTIONS = Actions(
    *(f"{_PLACE}/suite.{name}" for name in ("completes", "fails", "waits", "typed")),
    unknown=f"{_PLACE}/suite.no_such_task",
)


async def _completes(pod: Pod) -> Mapping[str, literals_pb2.Literal]:
    _count(pod)
    pod.print(f"the answer is {pod.value('answer')}")
    packed = literals_pb2.Binary(value=msgpack.packb({"answer": pod.value("answer")}), tag="msgpack")
    return {"o0": literals_pb2.Literal(scalar=literals_pb2.Scalar(binary=packed))}


async def _fails(pod: Pod) -> None:
    _count(pod)
    raise TaskError(pod.value("message"), "ValueError")


async def _waits(pod: Pod) -> None:
    _count(pod)
    released = _folder(pod) / RELEASE
    while not released.exists():  # noqa: ASYNC110  a file tells nobody that it is there
        await asyncio.sleep(0.05)


async def _typed(pod: Pod) -> None:
    _count(pod)


def _folder(pod: Pod) -> Path:
    return Path(pod.value("folder"))


def _count(pod: Pod) -> None:
    with (_folder(pod) / EXECUTIONS).open("a") as counted:
        counted.write("once\n")


class OnFlyte:
    """A server of its own, in a thread."""

    name = "flyte"
    actions = ACTIONS
    unfit = (
        ({}, "'count'"),
        ({"count": "many"}, "'count': expected: integer, got: str 'many'"),
        (
            {"count": 1, "ratio": "half", "other": 1},
            "'ratio': expected: number, got: str 'half'; 'other' is not",
        ),
    )
    unknown_id = f"{_PLACE}/no-such-run"
    words: Mapping[InvocationStatus, str] = {
        InvocationStatus.Queued: "QUEUED",
        InvocationStatus.Scheduled: "INITIALIZING",
        InvocationStatus.Processing: "RUNNING",
        InvocationStatus.Completed: "SUCCEEDED",
        InvocationStatus.Failed: "FAILED",
        InvocationStatus.Cancelled: "ABORTED",
    }

    def why_not_here(self) -> str | None:
        """It can be run wherever the tests' dependencies are."""
        return None

    @contextmanager
    def deploy(self, folder: Path, *, workers: bool) -> Iterator[Deployment]:
        """A server that has the tasks deployed; its pods get their folders as inputs."""
        with FlyteServer() as server:
            if not workers:
                server.backend.stop_workers()
            folder_type = {"folder": SimpleType.STRING}
            struct = types_pb2.LiteralType(simple=SimpleType.STRUCT)
            deploy = server.backend.deploy
            deploy(
                "suite.completes",
                _completes,
                folder_type | {"answer": SimpleType.INTEGER},
                {"o0": struct},
                {"answer": literal(42)},
            )
            deploy(
                "suite.fails",
                _fails,
                folder_type | {"message": SimpleType.STRING},
                defaults={"message": literal("no such topic")},
            )
            deploy("suite.waits", _waits, folder_type)
            deploy(
                "suite.typed",
                _typed,
                folder_type | {"count": SimpleType.INTEGER, "ratio": SimpleType.FLOAT},
                defaults={"ratio": literal(0.5)},
            )
            yield _Deployment(server)

    def nowhere(self, folder: Path) -> Mapping[str, Any]:
        """Nothing listens at the port for discarding."""
        return {"conn_type": "flyte", "host": "http://127.0.0.1:9"}


class _Deployment:
    """A server whose pods wait for somebody to start them."""

    def __init__(self, server: FlyteServer) -> None:
        self._server = server
        self.connection = {
            "conn_type": "flyte",
            "host": server.endpoint,
            "extra": {"project": PROJECT, "domain": DOMAIN},
        }

    def start_workers(self) -> None:
        self._server.do(self._server.backend.start_workers)
