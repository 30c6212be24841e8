"""Tasks that a worker starts and a trigger ends: same XComs, and a worker where Airflow needs one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import anyio.to_thread
import pytest
from airflow.triggers.base import TaskFailedEvent, TaskSuccessEvent, TriggerEvent

from airflow_invocations.exceptions import InvocationFailedError, InvocationPermanentError
from airflow_invocations.hooks import RobotoHook
from airflow_invocations.operators import InvokeActionOperator
from airflow_invocations.triggers import InvocationTrigger, _base

from ...support.airflow_version import TaskDeferred, since
from .conftest import Task, script

pytestmark = [pytest.mark.anyio, since("3.3", "tasks that end in the triggerer")]


@pytest.fixture
def xcoms(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[int, str], Any]:
    """What triggers have stored, by map index and key."""
    stored: dict[tuple[int, str], Any] = {}

    async def push(trigger: Any, key: str, value: Any) -> None:
        stored[trigger.task_instance.map_index, key] = value

    monkeypatch.setattr(_base, "push_xcom", push)
    return stored


def operator(action: str, **arguments: Any) -> InvokeActionOperator:
    return InvokeActionOperator(
        task_id="ask", action=action, end_from_trigger=True, poll_interval=0.1, defer_after=0, **arguments
    )


async def deferred(made: InvokeActionOperator, task: Task) -> InvocationTrigger:
    """Execute a task until it defers; return its trigger as a triggerer recreates it."""
    with pytest.raises(TaskDeferred) as raised:
        await anyio.to_thread.run_sync(made.execute, task.context)
    trigger = InvocationTrigger(**raised.value.trigger.serialize()[1])
    instance = vars(task.context["ti"])
    trigger._task_instance = SimpleNamespace(**{
        name: instance[name] for name in ("dag_id", "run_id", "task_id", "map_index", "try_number")
    })  # fmt: skip
    return trigger


async def event_of(trigger: InvocationTrigger) -> TriggerEvent:
    steps = trigger.run()
    event = await anext(steps)
    await steps.aclose()  # type: ignore[attr-defined]
    return event


@pytest.mark.parametrize("map_index", [-1, 3])
@pytest.mark.parametrize("multiple_outputs", [False, True])
async def test_success_ends_in_the_triggerer_with_the_result_of_a_worker(
    hook: RobotoHook,
    xcoms: dict[tuple[int, str], Any],
    action_log: list[str],
    map_index: int,
    multiple_outputs: bool,
) -> None:
    action = await anyio.to_thread.run_sync(script, hook, "echo one; echo two")
    task = Task(try_number=1, max_tries=2, map_index=map_index)
    trigger = await deferred(operator(action, multiple_outputs=multiple_outputs), task)
    event = await event_of(trigger)
    assert type(event) is TaskSuccessEvent
    assert event.xcoms is None
    assert action_log == ["one", "two"]
    result = xcoms[map_index, "return_value"]
    # The same try, run to its end in a worker, finds the same invocation.
    worker = InvokeActionOperator(task_id="ask", action=action, poll_interval=0.1)
    assert result == await anyio.to_thread.run_sync(worker.execute, task.context)
    parts = result if multiple_outputs else {}
    assert xcoms == {(map_index, key): value for key, value in {**parts, "return_value": result}.items()}


async def test_success_stores_no_result_without_do_xcom_push(
    hook: RobotoHook, xcoms: dict[tuple[int, str], Any]
) -> None:
    action = await anyio.to_thread.run_sync(script, hook, "true")
    trigger = await deferred(operator(action, do_xcom_push=False), Task(try_number=1))
    assert type(await event_of(trigger)) is TaskSuccessEvent
    assert xcoms == {}


@pytest.mark.parametrize(
    ("tries", "arguments"),
    [
        ({"try_number": 1, "max_tries": 1}, {}),
        ({"try_number": 2, "max_tries": 1}, {"on_failure_callback": print}),
    ],
    ids=["a retry is left", "a callback needs the exception"],
)
@pytest.mark.parametrize(("code", "kind"), [(3, InvocationFailedError), (65, InvocationPermanentError)])
async def test_failure_is_raised_in_a_worker_when_airflow_needs_its_exception(
    hook: RobotoHook,
    xcoms: dict[tuple[int, str], Any],
    tries: dict[str, int],
    arguments: dict[str, Any],
    code: int,
    kind: type[Exception],
) -> None:
    action = await anyio.to_thread.run_sync(script, hook, f"echo last; exit {code}")
    made, task = operator(action, **arguments), Task(**tries)
    event = await event_of(await deferred(made, task))
    assert type(event) is TriggerEvent
    with pytest.raises(kind, match=f"exit code {code}") as raised:
        await anyio.to_thread.run_sync(made.execute_complete, task.context, event.payload)
    assert raised.value.log_tail == ["last"]  # type: ignore[attr-defined]
    assert xcoms == {}


async def test_last_failure_ends_in_the_triggerer(
    hook: RobotoHook, xcoms: dict[tuple[int, str], Any]
) -> None:
    action = await anyio.to_thread.run_sync(script, hook, "exit 3")
    event = await event_of(await deferred(operator(action), Task(try_number=2, max_tries=1)))
    assert type(event) is TaskFailedEvent
    assert xcoms == {}


async def test_invocation_cancelled_by_a_clear_is_submitted_again_in_a_worker(hook: RobotoHook) -> None:
    action = await anyio.to_thread.run_sync(script, hook, "sleep 60")
    first = Task(try_number=1, max_tries=3)
    began = await deferred(operator(action), first)
    # Cleared while its worker ran: the next try adopts the invocation before the cancel reaches it.
    second = Task(try_number=2, max_tries=3, run_id=first.context["ti"].run_id)
    second.context["dag_run"].start_date = first.context["dag_run"].start_date
    second.context["dag_run"].clear_number = 1
    made = operator(action)
    trigger = await deferred(made, second)
    assert trigger.invocation_id == began.invocation_id
    await anyio.to_thread.run_sync(hook.cancel, trigger.invocation_id)
    event = await event_of(trigger)
    assert event.payload is None
    with pytest.raises(TaskDeferred) as again:
        await anyio.to_thread.run_sync(made.execute_complete, second.context, event.payload)
    assert again.value.trigger.invocation_id != began.invocation_id
    await anyio.to_thread.run_sync(hook.cancel, again.value.trigger.invocation_id)


async def test_without_a_task_instance_a_worker_ends_the_task(
    hook: RobotoHook, xcoms: dict[tuple[int, str], Any]
) -> None:
    """`dag.test()` runs triggers so, and ignores end events."""
    action = await anyio.to_thread.run_sync(script, hook, "true")
    made, task = operator(action), Task(try_number=1)
    trigger = await deferred(made, task)
    trigger._task_instance = None
    event = await event_of(trigger)
    result = await anyio.to_thread.run_sync(made.execute_complete, task.context, event.payload)
    assert result["status"] == "Completed"
    assert xcoms == {}
