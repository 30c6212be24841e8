"""One verdict, whichever way a task comes to it: every end of an invocation by every path, real server."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Iterator
from types import SimpleNamespace
from typing import Any

import anyio.to_thread
import pytest
from airflow.triggers.base import BaseTrigger, TaskSuccessEvent

from airflow_invocations.exceptions import (
    AccessRejectedError,
    InvocationCancelledError,
    InvocationDeadlyError,
    InvocationFailedError,
    InvocationLostError,
    InvocationPermanentError,
    PlatformUnavailableError,
    UnknownStatusError,
)
from airflow_invocations.hooks import RobotoHook
from airflow_invocations.models import InvocationRecord, InvocationStatus
from airflow_invocations.operators import InvokeActionOperator
from airflow_invocations.platforms import NotFoundError
from airflow_invocations.platforms.roboto.platform import RobotoPlatform
from airflow_invocations.sensors import InvocationSensor
from airflow_invocations.tasks.provenance import provenance_of
from airflow_invocations.triggers import (
    InvocationsTrigger,
    InvocationTrigger,
    InvokeActionTrigger,
    _base,
    invoke_action,
)
from airflow_invocations.triggers._base import EndingTrigger
from airflow_invocations.version_compat import VERSION
from airflow_invocations.waiters import rejection, watcher

from ...support.airflow_version import AirflowException
from .conftest import Task, end_of, script

pytestmark = pytest.mark.anyio
S = InvocationStatus


def completed(hook: RobotoHook) -> str:
    return script(hook, "echo done")


def failed(hook: RobotoHook) -> str:
    return script(hook, "echo begun; echo 'no such topic' >&2; exit 3")


def unmendable(hook: RobotoHook) -> str:
    return script(hook, "echo 'no such column' >&2; exit 65")


def endless(hook: RobotoHook) -> str:
    return script(hook, "sleep 60")


#: By name: the action, and the verdict on its end.
SCENARIOS: dict[str, tuple[Callable[[RobotoHook], str], type[AirflowException] | None]] = {
    "completed": (completed, None),
    "failed": (failed, InvocationFailedError),
    "unmendable": (unmendable, InvocationPermanentError),
    "cancelled": (endless, InvocationCancelledError),
    "deadly": (failed, InvocationDeadlyError),
    "unknown": (completed, UnknownStatusError),
    "lost": (completed, InvocationLostError),
}


async def in_worker(operator: InvokeActionOperator, task: Task, _: str) -> Any:
    return await anyio.to_thread.run_sync(operator.execute, task.context)


async def ended_early(operator: InvokeActionOperator, task: Task, _: str) -> Any:
    operator.deferrable, operator.defer_after = True, 10.0
    return await anyio.to_thread.run_sync(operator.execute, task.context)


async def deferred(operator: InvokeActionOperator, task: Task, invocation_id: str) -> Any:
    event = await event_of(invocation_id)
    return await anyio.to_thread.run_sync(operator.execute_complete, task.context, event)


async def ended_in_triggerer(operator: InvokeActionOperator, task: Task, invocation_id: str) -> Any:
    """A trigger ends the task, or has a worker raise its error."""
    trigger = InvocationTrigger(
        conn_id="roboto_default",
        invocation_id=invocation_id,
        poll_interval=0.1,
        stream_logs=False,
        action=operator.action,
        provenance=provenance_of(task.context).model_dump(mode="json", exclude_none=True),
    )
    trigger._task_instance = task.context["ti"]
    return await ended_by(trigger, operator, task)


async def started_in_triggerer(operator: InvokeActionOperator, task: Task, _: str) -> Any:
    """A trigger does all of it; here a worker raises every error, so that its type can be compared."""
    # The try before this one has failed, as the task's numbers say; a triggerer doesn't know them.
    task.pushed[invoke_action.RETRY_KEY] = {"try_number": 1, "incarnation": 0}
    trigger = InvokeActionTrigger(conn_id="roboto_default", action=operator.action, poll_interval=0.1)
    trigger._task_instance = SimpleNamespace(
        **vars(task.context["ti"]), task=task.context["task"], get_template_context=lambda: task.context
    )
    trigger._needs_worker = lambda error: True  # type: ignore[method-assign]
    return await ended_by(trigger, operator, task)


async def ended_by(trigger: EndingTrigger, operator: InvokeActionOperator, task: Task) -> Any:
    steps = trigger.run()
    event = await anext(steps)
    await steps.aclose()  # type: ignore[attr-defined]
    if type(event) is TaskSuccessEvent:
        return task.pushed["return_value"]
    return await anyio.to_thread.run_sync(operator.execute_complete, task.context, event.payload)


async def after_a_broken_trigger(operator: InvokeActionOperator, task: Task, _: str) -> Any:
    return await anyio.to_thread.run_sync(
        operator.resume_execution, "__fail__", {"error": "Trigger failure"}, task.context
    )


async def by_sensor(operator: InvokeActionOperator, task: Task, invocation_id: str) -> Any:
    sensor = InvocationSensor(task_id="wait", invocation_id=invocation_id, poke_interval=0.1)
    return await anyio.to_thread.run_sync(sensor.execute, task.context)


async def by_deferred_sensor(operator: InvokeActionOperator, task: Task, invocation_id: str) -> Any:
    sensor = InvocationSensor(task_id="wait", invocation_id=invocation_id, poke_interval=0.1, deferrable=True)
    trigger = InvocationsTrigger(conn_id="roboto_default", invocation_ids=[invocation_id], poll_interval=0.1)
    return await anyio.to_thread.run_sync(sensor.execute_complete, task.context, await fired_by(trigger))


async def event_of(invocation_id: str) -> dict[str, Any]:
    trigger = InvocationTrigger(
        conn_id="roboto_default", invocation_id=invocation_id, poll_interval=0.1, stream_logs=False
    )
    return await fired_by(trigger)


async def fired_by(trigger: BaseTrigger) -> dict[str, Any]:
    steps = trigger.run()
    payload: dict[str, Any] = (await anext(steps)).payload
    await steps.aclose()  # type: ignore[attr-defined]
    return payload


Path = Callable[[InvokeActionOperator, Task, str], Awaitable[Any]]
PATHS: list[Path] = [
    in_worker,
    ended_early,
    deferred,
    ended_in_triggerer,
    *([started_in_triggerer] if VERSION >= (3, 3) else []),  # older ones have no such tasks
    after_a_broken_trigger,
    by_sensor,
    by_deferred_sensor,
]


@pytest.fixture(autouse=True)
def xcoms_of_triggers(monkeypatch: pytest.MonkeyPatch, task: Task) -> None:
    async def push(_: Any, key: str, value: Any) -> None:
        task.pushed[key] = value

    async def pull(_: Any, key: str) -> Any:
        return task.pushed.get(key)

    for module in (_base, invoke_action):
        monkeypatch.setattr(module, "push_xcom", push)
    monkeypatch.setattr(invoke_action, "pull_xcom", pull)


@pytest.fixture(autouse=True)
def short_audits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watcher, "AUDIT_INTERVAL", 0.2)
    monkeypatch.setattr(watcher, "LOST_PAUSE", 0.05)


@contextlib.contextmanager
def answered_as(name: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What the local server has no way to answer: a status that isn't known, and that nothing is known."""
    real = RobotoPlatform.get

    async def unknown(self: RobotoPlatform, invocation_id: str) -> InvocationRecord:
        wire = (await real(self, invocation_id)).model_dump(mode="json")
        wire["status"][-1]["status"] = wire["last_status"] = 4711
        return InvocationRecord.model_validate(wire)

    async def gone(self: RobotoPlatform, invocation_id: str) -> InvocationRecord:
        raise NotFoundError(f"there is no invocation {invocation_id}")

    async def none(self: RobotoPlatform, ids: object) -> list[object]:
        return []

    with monkeypatch.context() as patch:
        if name == "unknown":
            patch.setattr(RobotoPlatform, "get", unknown)
        if name == "lost":
            patch.setattr(RobotoPlatform, "get", gone)
            patch.setattr(RobotoPlatform, "statuses", none)
            patch.setattr(RobotoPlatform, "ended", none)
        yield


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.__name__)
@pytest.mark.parametrize("name", SCENARIOS)
async def test_every_end_has_one_verdict(
    hook: RobotoHook, server: Any, task: Task, name: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    action_of, expected = SCENARIOS[name]
    action = action_of(hook)
    arguments = {"task_id": "ask", "action": action, "poll_interval": 0.1}
    begun = InvokeActionOperator(**arguments, wait=False)
    started = await anyio.to_thread.run_sync(begun.execute, task.context)
    invocation_id = started["invocation_id"]
    if name == "cancelled":
        await anyio.to_thread.run_sync(hook.cancel, invocation_id)
    elif name != "completed":
        await anyio.to_thread.run_sync(end_of, hook, invocation_id)
    if name == "deadly":
        answer = server.request(
            "POST",
            f"v1/actions/invocations/{invocation_id}/status",
            json={"status": 999, "detail": "given up"},
        )
        assert answer.status_code == 200, answer.text
    operator = InvokeActionOperator(**arguments)
    with answered_as(name, monkeypatch):
        if expected is not None:
            with pytest.raises(AirflowException) as raised:
                await path(operator, task, invocation_id)
            assert type(raised.value) is expected, raised.value
            return
        result = await path(operator, task, invocation_id)
    if path in (by_sensor, by_deferred_sensor):
        assert result == invocation_id
    else:
        assert (result["invocation_id"], result["status"]) == (invocation_id, "Completed")


async def test_a_token_that_nobody_accepts_has_one_verdict_too(
    hook: RobotoHook, server: Any, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    action = endless(hook)
    begun = InvokeActionOperator(task_id="ask", action=action, wait=False)
    started = await anyio.to_thread.run_sync(begun.execute, task.context)
    wrong = f'{{"conn_type": "roboto", "host": "{server.endpoint}", "password": "wr0ng-t0ken"}}'
    with monkeypatch.context() as patch:
        patch.setenv("AIRFLOW_CONN_ROBOTO_DEFAULT", wrong)
        # Where the task has invoked the token had worked, so that a retry may find that it does again.
        patch.setattr(rejection, "REJECTION_LIMIT", 0.0)
        for path in PATHS:
            operator = InvokeActionOperator(task_id="ask", action=action, poll_interval=0.1)
            had_worked = path in (deferred, ended_in_triggerer, after_a_broken_trigger)
            expected = PlatformUnavailableError if had_worked else AccessRejectedError
            with pytest.raises(expected) as rejected:
                await path(operator, task, started["invocation_id"])
            assert "wr0ng-t0ken" not in str(rejected.value)
    hook.cancel(started["invocation_id"])
