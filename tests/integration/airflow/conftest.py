"""Actions to invoke, a connection to the real server, and a task's context without an Airflow around it."""

from __future__ import annotations

import asyncio
import datetime
import json
import threading
import uuid
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from airflow_invocations import action_log as action_log_module
from airflow_invocations.hooks import RobotoHook
from airflow_invocations.models import ContainerParameters, CreateActionRequest, InvocationStatus
from airflow_invocations.operators import InvokeActionOperator, invoke_action
from airflow_invocations.platforms.roboto.platform import RobotoPlatform
from airflow_invocations.sensors import invocation
from airflow_invocations.tasks.result import INVOCATION_ID_KEY
from airflow_invocations.waiters import WaitOptions, fetch_record, wait_until_terminal

from ...support.airflow_version import TaskDeferred
from ...support.metadata_database import DATABASES, metadata_database
from ...support.task_context import (
    context as unit_context,
)


@pytest.fixture(autouse=True)
def no_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside a real Airflow no executor has to digest a deferral."""
    monkeypatch.setattr(invoke_action, "SHORTEST_DEFERRAL", 0.0)
    monkeypatch.setattr(invocation, "SHORTEST_DEFERRAL", 0.0)


@pytest.fixture
def hook(server: Any, monkeypatch: pytest.MonkeyPatch) -> RobotoHook:
    """A hook on the server, under the connection that operators use by default."""
    connect_to(server, monkeypatch)
    return RobotoHook()


def connect_to(server: Any, monkeypatch: pytest.MonkeyPatch, token: str | None = None) -> None:
    """Have the connection that operators use by default lead to a server."""
    connection = {"conn_type": "roboto", "host": server.endpoint, "password": token or server.token}
    monkeypatch.setenv("AIRFLOW_CONN_ROBOTO_DEFAULT", json.dumps(connection))


def script(hook: RobotoHook, command: str, **fields: Any) -> str:
    """Register an action that runs a shell script; its name."""
    name = f"script-{uuid.uuid4().hex[:12]}"
    request = CreateActionRequest(
        name=name, container_parameters=ContainerParameters(command=["sh", "-c", command]), **fields
    )

    async def create(platform: RobotoPlatform) -> None:
        await platform._client.call("POST", "v1/actions", body=request.wire(), idempotent=False)

    hook.call(create)
    return name


def dataset(server: Any) -> str:
    """Make an empty dataset; its id."""
    answer = server.request("POST", "v1/datasets", json={"name": uuid.uuid4().hex}).raise_for_status()
    return str(answer.json()["data"]["dataset_id"])


def end_of(hook: RobotoHook, invocation_id: str) -> InvocationStatus:
    """Wait for an invocation's end; its status."""

    async def wait() -> InvocationStatus:
        waiting = WaitOptions(invocation_id, poll_interval=0.1)
        async with asyncio.timeout(20):
            async for _ in wait_until_terminal(hook.conn_id, hook.connect, waiting):
                pass
        return (await fetch_record(hook.connect, waiting)).current.status

    return hook.run(wait)


class Task:
    """One try of one task of a DAG run of its own: its context, and what it has pushed."""

    def __init__(self, **changes: Any) -> None:
        self.pushed: dict[str, Any] = {}
        #: The state that Airflow has recorded when a killed worker asks; an exception: it doesn't answer.
        self.state: str | Exception = "failed"
        #: Set once there is an invocation.
        self.invoked = threading.Event()
        present = datetime.datetime.now(datetime.UTC)
        self.context: Any = unit_context(start_date=present)
        instance = {
            **vars(self.context["ti"]), "id": uuid.uuid4(), "run_id": f"manual__{uuid.uuid4()}",
            "start_date": present, **changes
        }  # fmt: skip
        self.context["ti"] = SimpleNamespace(
            **instance,
            xcom_push=self._push,
            xcom_pull=lambda key, **_: self.pushed.get(key),
            get_task_states=self._states,
        )

    def _states(self, *, run_ids: list[str], task_ids: list[str], **_: Any) -> dict[str, dict[str, str]]:
        if isinstance(self.state, Exception):
            raise self.state
        return {run_ids[0]: {task_ids[0]: self.state}}

    def _push(self, key: str, value: Any) -> None:
        self.pushed[key] = value
        if key == INVOCATION_ID_KEY:
            self.invoked.set()


@pytest.fixture
def task() -> Task:
    return Task()


@pytest.fixture(scope="session")
def database(request: pytest.FixtureRequest) -> Iterator[None]:
    """Airflow's tables: in a SQLite in the tests' home, or where `on_every_database` says."""
    with metadata_database(getattr(request, "param", "sqlite")):
        yield


#: Runs a test on each database that Airflow may have.
on_every_database = pytest.mark.parametrize("database", DATABASES, indirect=True, scope="session")


class ActionLogger:
    """Takes the action's lines as the task's logger does."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.times: list[datetime.datetime] = []

    def info(self, line: str, *, logger: str, timestamp: str) -> None:
        self.lines.append(line)
        self.times.append(datetime.datetime.fromisoformat(timestamp))


@pytest.fixture
def action_logger(monkeypatch: pytest.MonkeyPatch) -> ActionLogger:
    """What stands where Airflow's logger of the action's lines is."""
    logger = ActionLogger()
    loggers = {action_log_module.ACTION_LOGGER: logger}
    monkeypatch.setattr(action_log_module, "structlog", SimpleNamespace(get_logger=loggers.__getitem__))
    return logger


@pytest.fixture
def action_log(action_logger: ActionLogger) -> list[str]:
    """The action's lines, as they arrive in the task's log."""
    return action_logger.lines


async def run_deferred(operator: InvokeActionOperator, task: Task) -> Any:
    """Execute, run the trigger as the triggerer would, and resume in a new operator, as Airflow does."""
    try:
        return operator.execute(task.context)
    except TaskDeferred as deferred:
        steps = deferred.trigger.run()
        event = await anext(steps)
        await steps.aclose()  # type: ignore[attr-defined]
        return getattr(operator, deferred.method_name)(task.context, event.payload)
