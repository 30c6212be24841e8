"""Airflow's faces on every platform: the same DAG, whichever connection, in a worker and deferred."""

from __future__ import annotations

import asyncio
import datetime
import logging
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest
from airflow.sdk.exceptions import AirflowException, TaskDeferred

from airflow_invocations.exceptions import (
    InvocationCancelledError,
    InvocationConflictError,
    InvocationFailedError,
    InvocationLostError,
    PlatformUnavailableError,
    RequestRejectedError,
)
from airflow_invocations.hooks import InvocationHook
from airflow_invocations.models import InvocationStatus
from airflow_invocations.operators import InvokeActionOperator
from airflow_invocations.sensors import InvocationSensor
from airflow_invocations.tasks.provenance import provenance_of
from airflow_invocations.waiters import wait, watcher

from ..integration.airflow.conftest import Task, run_deferred
from ..support.task_context import record_state
from ..support.waiting import until
from .conftest import CONN_ID, IDLE_CONN_ID, NOWHERE_CONN_ID, Asking
from .deployment import PlatformUnderTest, executions, release

pytestmark = pytest.mark.anyio
S = InvocationStatus

both_ways = pytest.mark.parametrize("deferrable", [False, True], ids=["worker", "deferred"])


@pytest.fixture
def task() -> Task:
    return Task(try_number=1)


def operator(action: str, folder: Path, *, conn_id: str = CONN_ID, **arguments: Any) -> InvokeActionOperator:
    parameters = {"folder": str(folder), **arguments.pop("parameters", {})}
    return InvokeActionOperator(
        task_id="ask",
        action=action,
        parameters=parameters,
        conn_id=conn_id,
        **{"poll_interval": 0.1, "defer_after": 0, **arguments},
    )


async def outcome(task_operator: InvokeActionOperator, task: Task) -> Any:
    """What a task returns or raises: run in a worker, or deferred on the way."""
    try:
        if task_operator.deferrable:
            return await run_deferred(task_operator, task)
        return await anyio.to_thread.run_sync(task_operator.execute, task.context)
    except AirflowException as error:
        return error


def when_begun(folder: Path, then: Callable[[], object]) -> threading.Thread:
    """Do something once an action has been begun with this folder."""

    def wait_and_do() -> None:
        until(lambda: executions(folder) > 0, within=60.0)
        then()

    thread = threading.Thread(target=wait_and_do)
    thread.start()
    return thread


@both_ways
class TestBothWays:
    async def test_a_success_has_a_result(
        self,
        hook: InvocationHook,
        under_test: PlatformUnderTest,
        asking: Asking,
        task: Task,
        deferrable: bool,
    ) -> None:
        action = under_test.actions.completes
        result = await outcome(
            operator(action, asking.folder, parameters={"answer": 43}, deferrable=deferrable), task
        )
        assert (result["action"], result["status"]) == (action, "Completed")
        assert result["invocation_id"] == task.pushed["invocation_id"]
        assert result["url"] == task.pushed["_link_InvocationLink"] == hook.url(result["invocation_id"])
        assert result["created"] <= result["started"] <= result["ended"]
        assert result["duration"] >= 0
        keeps_outputs = hook.get_conn().capabilities.outputs
        assert result["outputs"] == ({"answer": 43} if keeps_outputs else None)
        assert result["provenance"]["dag_id"] == "fleet"
        assert hook.get(result["invocation_id"]).provenance.source == provenance_of(task.context).source
        assert executions(asking.folder) == 1

    async def test_a_failure_is_typed_and_says_why(
        self,
        hook: InvocationHook,
        under_test: PlatformUnderTest,
        asking: Asking,
        task: Task,
        deferrable: bool,
    ) -> None:
        action = under_test.actions.fails
        error = await outcome(
            operator(action, asking.folder, parameters={"message": "no such bag"}, deferrable=deferrable),
            task,
        )
        assert type(error) is InvocationFailedError
        assert (error.action, error.status) == (action, "Failed")
        assert error.invocation_id == task.pushed["invocation_id"]
        assert "no such bag" in str(error)
        assert "no such bag" in error.detail
        assert "()" not in str(error)

    async def test_an_action_that_is_not_there_is_rejected(
        self,
        hook: InvocationHook,
        under_test: PlatformUnderTest,
        asking: Asking,
        task: Task,
        deferrable: bool,
    ) -> None:
        unknown = under_test.actions.unknown
        error = await outcome(operator(unknown, asking.folder, deferrable=deferrable), task)
        assert type(error) is RequestRejectedError
        assert f"'{unknown}' was not invoked" in str(error)
        assert f"'{CONN_ID}', {hook.get_conn().where}" in str(error)
        assert task.pushed == {}

    async def test_parameters_that_do_not_fit_are_rejected(
        self,
        hook: InvocationHook,
        under_test: PlatformUnderTest,
        asking: Asking,
        task: Task,
        deferrable: bool,
    ) -> None:
        for parameters, hint in under_test.unfit:
            error = await outcome(
                operator(
                    under_test.actions.typed, asking.folder, parameters=parameters, deferrable=deferrable
                ),
                task,
            )
            assert type(error) is RequestRejectedError
            assert re.search(hint, str(error))
        assert task.pushed == {}

    async def test_unsupported_arguments_are_rejected(
        self,
        hook: InvocationHook,
        under_test: PlatformUnderTest,
        asking: Asking,
        task: Task,
        deferrable: bool,
    ) -> None:
        if hook.get_conn().capabilities.timeout:
            pytest.skip(f"{under_test.name} declares that it honours timeout")
        error = await outcome(
            operator(under_test.actions.completes, asking.folder, timeout=5, deferrable=deferrable), task
        )
        assert type(error) is RequestRejectedError
        assert "doesn't support argument 'timeout'; use the task's execution_timeout" in str(error)
        assert task.pushed == {}

    async def test_a_cancel_from_outside_is_not_a_failure(
        self,
        idle_hook: InvocationHook,
        under_test: PlatformUnderTest,
        asking: Asking,
        task: Task,
        deferrable: bool,
    ) -> None:
        def cancel_when_invoked() -> None:
            assert task.invoked.wait(20)
            idle_hook.cancel(task.pushed["invocation_id"])

        thread = threading.Thread(target=cancel_when_invoked)
        thread.start()
        error = await outcome(
            operator(
                under_test.actions.completes, asking.folder, conn_id=IDLE_CONN_ID, deferrable=deferrable
            ),
            task,
        )
        thread.join()
        assert type(error) is InvocationCancelledError

    async def test_where_nobody_answers_is_out_of_reach(
        self,
        nowhere: InvocationHook,
        under_test: PlatformUnderTest,
        asking: Asking,
        task: Task,
        deferrable: bool,
    ) -> None:
        error = await outcome(
            operator(
                under_test.actions.completes,
                asking.folder,
                conn_id=NOWHERE_CONN_ID,
                outage_limit=0,
                deferrable=deferrable,
            ),
            task,
        )
        assert type(error) is PlatformUnavailableError
        assert nowhere.get_conn().where in str(error)
        assert task.pushed == {}

    async def test_a_sensor_takes_the_same_verdict(
        self,
        hook: InvocationHook,
        under_test: PlatformUnderTest,
        asking: Asking,
        task: Task,
        deferrable: bool,
    ) -> None:
        async def sensed(invocation_id: str) -> Any:
            sensor = InvocationSensor(
                task_id="sense",
                conn_id=CONN_ID,
                invocation_id=invocation_id,
                poke_interval=0.1,
                deferrable=deferrable,
            )
            return await outcome(sensor, Task())  # type: ignore[arg-type]

        actions = under_test.actions
        good = await anyio.to_thread.run_sync(hook.invoke, actions.completes, asking.request())
        assert await sensed(good.invocation_id) == good.invocation_id
        bad = await anyio.to_thread.run_sync(hook.invoke, actions.fails, asking.request())
        assert type(await sensed(bad.invocation_id)) is InvocationFailedError

    async def test_a_sensor_waits_for_the_newest_of_an_action(
        self,
        hook: InvocationHook,
        under_test: PlatformUnderTest,
        asking: Asking,
        deferrable: bool,
    ) -> None:
        began = datetime.datetime.now(datetime.UTC)

        def sensor(action: str) -> InvocationSensor:
            return InvocationSensor(
                task_id="sense",
                conn_id=CONN_ID,
                action=action,
                since=began.isoformat(),
                poke_interval=0.1,
                deferrable=deferrable,
            )

        actions = under_test.actions
        # It is looked for before it is there.
        sensing = asyncio.create_task(outcome(sensor(actions.waits), Task()))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        late = await anyio.to_thread.run_sync(hook.invoke, actions.waits, asking.request())
        release(asking.folder)
        assert await sensing == late.invocation_id
        bad = await anyio.to_thread.run_sync(hook.invoke, actions.fails, asking.request())
        error = await outcome(sensor(actions.fails), Task())  # type: ignore[arg-type]
        assert type(error) is InvocationFailedError
        assert error.invocation_id == bad.invocation_id

    async def test_invocation_unknown_to_the_platform_is_lost(
        self,
        hook: InvocationHook,
        under_test: PlatformUnderTest,
        deferrable: bool,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(watcher, "AUDIT_INTERVAL", 0.2)
        monkeypatch.setattr(watcher, "LOST_PAUSE", 0.05)
        monkeypatch.setattr(wait, "LOST_PAUSE", 0.05)
        sensor = InvocationSensor(
            task_id="sense",
            conn_id=CONN_ID,
            invocation_id=under_test.unknown_id,
            poke_interval=0.1,
            deferrable=deferrable,
        )
        assert type(await outcome(sensor, Task())) is InvocationLostError  # type: ignore[arg-type]


def tries_of(asking: Asking) -> tuple[Task, Task]:
    """Two tries of one task."""
    first, second = (Task(try_number=number, run_id=asking.run_id) for number in (1, 2))
    second.context["dag_run"] = first.context["dag_run"]
    return first, second


async def test_a_retry_after_a_failure_invokes_anew(
    hook: InvocationHook, under_test: PlatformUnderTest, asking: Asking
) -> None:
    errors = [
        await outcome(operator(under_test.actions.fails, asking.folder, retries=3), one)
        for one in tries_of(asking)
    ]
    assert [type(error) for error in errors] == [InvocationFailedError] * 2
    assert errors[0].invocation_id != errors[1].invocation_id
    assert executions(asking.folder) == 2


async def test_a_retry_after_a_dead_worker_goes_on_with_what_that_had_invoked(
    hook: InvocationHook, under_test: PlatformUnderTest, asking: Asking
) -> None:
    first, second = tries_of(asking)
    dies = operator(under_test.actions.waits, asking.folder, retries=3, wait=False)
    invoked = await anyio.to_thread.run_sync(dies.execute, first.context)
    thread = when_begun(asking.folder, lambda: release(asking.folder))
    result = await outcome(operator(under_test.actions.waits, asking.folder, retries=3), second)
    thread.join()
    assert (result["invocation_id"], result["status"]) == (invoked["invocation_id"], "Completed")
    assert executions(asking.folder) == 1


async def test_a_retry_that_asks_for_something_else_is_rejected_and_says_what(
    hook: InvocationHook, under_test: PlatformUnderTest, asking: Asking
) -> None:
    first, second = tries_of(asking)
    action = under_test.actions.waits
    dies = operator(action, asking.folder, retries=3, wait=False)
    invoked = await anyio.to_thread.run_sync(dies.execute, first.context)
    elsewhere = asking.folder / "elsewhere"
    error = await outcome(operator(action, elsewhere, retries=3), second)
    assert type(error) is InvocationConflictError
    assert (error.invocation_id, error.detail) == (
        invoked["invocation_id"],
        "parameter 'folder' (another value)",
    )
    assert str(elsewhere) not in str(error)
    # A retry goes on all the same where the author says that this one changes.
    changes = operator(action, elsewhere, retries=3, volatile_parameters=["folder"])
    thread = when_begun(asking.folder, lambda: release(asking.folder))
    result = await outcome(changes, second)
    thread.join()
    assert (result["invocation_id"], result["status"]) == (invoked["invocation_id"], "Completed")
    assert executions(asking.folder) == 1


class TestKilled:
    async def test_in_a_worker_while_it_is_queued(
        self, idle_hook: InvocationHook, under_test: PlatformUnderTest, asking: Asking, task: Task
    ) -> None:
        task_operator = operator(under_test.actions.completes, asking.folder, conn_id=IDLE_CONN_ID)

        def kill_when_invoked() -> None:
            assert task.invoked.wait(20)
            task_operator.on_kill()

        thread = threading.Thread(target=kill_when_invoked)
        thread.start()
        error = await outcome(task_operator, task)
        thread.join()
        assert type(error) is InvocationCancelledError

    async def test_in_a_worker_while_it_runs(
        self,
        hook: InvocationHook,
        under_test: PlatformUnderTest,
        asking: Asking,
        task: Task,
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        task_operator = operator(under_test.actions.waits, asking.folder)
        monkeypatch.setattr(InvokeActionOperator, "log", logging.getLogger("task"))

        cancels_running = hook.get_conn().capabilities.cancels_running

        def kill_and_release() -> None:
            try:
                task_operator.on_kill()
                if not cancels_running:
                    until(lambda: "can't be stopped from outside" in caplog.text, within=30)
            finally:
                if not cancels_running:
                    release(asking.folder)

        thread = when_begun(asking.folder, kill_and_release)
        end = await outcome(task_operator, task)
        thread.join()
        if cancels_running:
            assert type(end) is InvocationCancelledError
        else:
            assert end["status"] == "Completed"
            warned = [line for line in caplog.records if (line.name, line.levelname) == ("task", "WARNING")]
            said = [line.getMessage() for line in warned if line.funcName != "wrapper"]
            assert said[-2] == f"Cancelling invocation {end['invocation_id']}", said
            assert "can't be stopped from outside" in said[-1]

    async def test_while_deferred(
        self, idle_hook: InvocationHook, under_test: PlatformUnderTest, asking: Asking, task: Task
    ) -> None:
        task_operator = operator(
            under_test.actions.completes, asking.folder, conn_id=IDLE_CONN_ID, deferrable=True
        )
        with pytest.raises(TaskDeferred) as deferred:
            await anyio.to_thread.run_sync(task_operator.execute, task.context)
        record_state(deferred.value.trigger, "failed")
        await deferred.value.trigger.on_kill()
        record = await asyncio.to_thread(idle_hook.get, task.pushed["invocation_id"])
        assert record.current.status is S.Cancelled
