"""The operator against the real server: the same result, log and error in a worker and deferred."""

from __future__ import annotations

import asyncio
import threading
import time
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio.to_thread
import pytest
from structlog.testing import capture_logs

from airflow_invocations.exceptions import (
    AccessRejectedError,
    InvocationCancelledError,
    InvocationFailedError,
    InvocationLostError,
    PlatformUnavailableError,
    RequestRejectedError,
)
from airflow_invocations.hooks import RobotoHook
from airflow_invocations.models import (
    ActionParameter,
    DagRunProvenance,
    InvocationStatus,
    task_instance_of,
)
from airflow_invocations.operators import InvokeActionOperator
from airflow_invocations.sensors import InvocationSensor
from airflow_invocations.server.admin import add_token
from airflow_invocations.tasks.provenance import provenance_of
from airflow_invocations.triggers import InvocationTrigger
from airflow_invocations.waiters import LOG_SETTINGS

from ...support.airflow_version import AirflowException, AirflowFailException, TaskDeferred
from ...support.task_context import record_state
from .conftest import Task, connect_to, end_of, run_deferred, script

pytestmark = pytest.mark.anyio


def operator(action: str, **arguments: Any) -> InvokeActionOperator:
    return InvokeActionOperator(
        task_id="ask", action=action, **{"poll_interval": 0.1, "defer_after": 0, **arguments}
    )


async def outcome(deferrable: bool, action: str, task: Task, **arguments: Any) -> Any:
    """What a task returns or raises: run in a worker, or deferred on the way."""
    task_operator = operator(action, deferrable=deferrable, **arguments)
    try:
        if deferrable:
            return await run_deferred(task_operator, task)
        return await anyio.to_thread.run_sync(task_operator.execute, task.context)
    except AirflowException as error:
        return error


@pytest.mark.parametrize("deferrable", [False, True], ids=["worker", "deferred"])
class TestBothWays:
    async def test_a_success(
        self, hook: RobotoHook, task: Task, action_log: list[str], deferrable: bool
    ) -> None:
        action = script(
            hook,
            'for i in 1 2 3; do echo "$ROBOTO_PARAM_who $i"; sleep 0.2; done; echo last >&2',
            parameters=[ActionParameter(name="who", required=True)],
        )
        result = await outcome(deferrable, action, task, parameters={"who": "ada"})
        assert action_log == ["ada 1", "ada 2", "ada 3", "last"]
        assert (result["action"], result["status"]) == (action, "Completed")
        assert result["invocation_id"] == task.pushed["invocation_id"]
        assert result["url"] == task.pushed["_link_InvocationLink"]
        assert result["created"] < result["started"] < result["ended"]
        assert result["duration"] >= 0.6
        assert result["provenance"]["dag_id"] == "fleet"

    async def test_a_failure(
        self, hook: RobotoHook, task: Task, action_log: list[str], deferrable: bool
    ) -> None:
        action = script(hook, "echo begun; sleep 0.3; echo 'no such topic' >&2; exit 3")
        error = await outcome(deferrable, action, task)
        assert type(error) is InvocationFailedError
        assert not isinstance(error, AirflowFailException)
        assert f"{action!r}" in str(error)
        assert "exit code 3: no such topic" in str(error)
        assert action_log == ["begun", "no such topic"]

    async def test_a_cancel_from_outside(self, hook: RobotoHook, task: Task, deferrable: bool) -> None:
        action = script(hook, "sleep 60")

        def cancel_when_it_runs() -> None:
            assert task.invoked.wait(20)
            hook.cancel(task.pushed["invocation_id"])

        thread = threading.Thread(target=cancel_when_it_runs)
        thread.start()
        error = await outcome(deferrable, action, task)
        thread.join()
        assert type(error) is InvocationCancelledError
        assert isinstance(error, AirflowFailException)

    async def test_an_unknown_action_is_rejected_and_nothing_invoked(
        self, hook: RobotoHook, task: Task, deferrable: bool
    ) -> None:
        error = await outcome(deferrable, "no-such-action", task)
        assert type(error) is RequestRejectedError
        assert "'no-such-action' was not invoked" in str(error)
        assert "roboto_default" in str(error)
        assert task.pushed == {}

    async def test_a_missing_parameter_is_rejected_and_nothing_invoked(
        self, hook: RobotoHook, task: Task, deferrable: bool
    ) -> None:
        action = script(hook, "true", parameters=[ActionParameter(name="who", required=True)])
        error = await outcome(deferrable, action, task)
        assert type(error) is RequestRejectedError
        assert "missing: 'who'; the action declares: who (required)" in str(error)
        assert task.pushed == {}

    async def test_a_wrong_token_is_rejected(
        self, hook: RobotoHook, server: Any, task: Task, deferrable: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(
            "AIRFLOW_CONN_OTHER",
            f'{{"conn_type": "roboto", "host": "{server.endpoint}", "password": "wr0ng-t0ken"}}',
        )
        error = await outcome(deferrable, "any", task, conn_id="other")
        assert type(error) is AccessRejectedError
        assert "the token is unknown" in str(error)
        assert "wr0ng-t0ken" not in str(error)

    async def test_a_service_that_is_not_there_is_named(
        self, task: Task, deferrable: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        nowhere = '{"conn_type": "roboto", "host": "http://127.0.0.1:9", "password": "t"}'
        monkeypatch.setenv("AIRFLOW_CONN_NOWHERE", nowhere)
        monkeypatch.setattr("airflow_invocations.invocation_api.ATTEMPTS", 1)
        error = await outcome(deferrable, "any", task, conn_id="nowhere", outage_limit=0)
        assert type(error) is PlatformUnavailableError
        assert "http://127.0.0.1:9 can't be reached" in str(error)
        assert task.pushed == {}

    async def test_a_request_over_8_mib_is_rejected(
        self, hook: RobotoHook, task: Task, deferrable: bool
    ) -> None:
        action = script(hook, "true")
        error = await outcome(deferrable, action, task, parameters={"large": "x" * 8 * 1024 * 1024})
        assert type(error) is RequestRejectedError
        assert "8388608" in str(error)

    async def test_a_megabyte_in_one_line_is_cut_and_bytes_that_are_no_text_are_replaced(
        self, hook: RobotoHook, task: Task, action_log: list[str], deferrable: bool
    ) -> None:
        action = script(hook, "head -c 1000000 /dev/zero | tr '\\0' 'x'; echo; printf 'a\\377b\\n'")
        result = await outcome(deferrable, action, task)
        assert result["status"] == "Completed"
        first, last = action_log
        assert first.startswith("x" * LOG_SETTINGS.line_length + " [... cut after 16,384 characters; ")
        assert first.endswith(f"{result['url']}#log ]")
        assert last == "a\N{REPLACEMENT CHARACTER}b"


async def test_an_invocation_that_has_ended_already_does_not_defer(hook: RobotoHook, task: Task) -> None:
    action = script(hook, "true")
    first = operator(action).execute
    await anyio.to_thread.run_sync(first, task.context)
    # The same try asks again, as after a worker that died: the platform answers the first invocation.
    again = await anyio.to_thread.run_sync(operator(action, deferrable=True).execute, task.context)
    assert again["invocation_id"] == task.pushed["invocation_id"]
    assert again["status"] == "Completed"


async def test_without_waiting_the_task_ends_at_once(hook: RobotoHook, task: Task) -> None:
    action = script(hook, "sleep 30")
    result = await anyio.to_thread.run_sync(operator(action, wait=False).execute, task.context)
    assert result["ended"] is None
    assert not hook.get(result["invocation_id"]).current.status.is_terminal
    hook.cancel(result["invocation_id"])


async def test_logs_can_be_left_out(hook: RobotoHook, task: Task, action_log: list[str]) -> None:
    action = script(hook, "echo begun; sleep 0.3")
    await outcome(True, action, task, stream_logs=False)
    assert action_log == []


async def test_the_platform_and_the_action_know_who_asked(
    hook: RobotoHook, task: Task, action_log: list[str]
) -> None:
    action = script(hook, "env | grep ^AIRFLOW_CTX_ | sort")
    result = await outcome(True, action, task)
    provenance = provenance_of(task.context)
    record = hook.get(result["invocation_id"])
    assert record.provenance.source == provenance.source
    assert DagRunProvenance.from_environment(record.container_parameters.env_vars) == provenance
    instance = task_instance_of(record.provenance.source.source_id)
    assert instance is not None
    assert (instance.dag_id, instance.run_id, instance.try_number) == ("fleet", provenance.run_id, 2)
    for line in ("AIRFLOW_CTX_DAG_ID=fleet", "AIRFLOW_CTX_TASK_ID=ask", "AIRFLOW_CTX_TRY_NUMBER=2"):
        assert line in action_log
    assert f"AIRFLOW_CTX_DAG_RUN_ID={provenance.run_id}" in action_log


async def test_the_role_invoke_is_enough_for_what_an_action_declares_and_for_provenance(
    hook: RobotoHook, server: Any, task: Task, action_log: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    registered = {"command": ["sh", "-c", "echo $LEVEL $AIRFLOW_CTX_DAG_ID"], "env_vars": {"LEVEL": "info"}}
    name = f"declares-{uuid.uuid4().hex[:12]}"
    server.request("POST", "v1/actions", json={"name": name, "container_parameters": registered})
    token = add_token(server.data_dir, name, "og_local", "invoke")
    connect_to(server, monkeypatch, token)
    rejected = await outcome(True, name, task, container_parameters={"env_vars": {"PYTHONPATH": "/tmp"}})
    assert type(rejected) is AccessRejectedError
    assert "env_vars['PYTHONPATH']" in str(rejected)
    assert "role admin" in str(rejected)
    await outcome(True, name, task, container_parameters={"env_vars": {"LEVEL": "debug"}})
    assert action_log == ["debug fleet"]


async def test_killing_the_task_in_a_worker_cancels_its_invocation(hook: RobotoHook, task: Task) -> None:
    action = script(hook, "echo begun; sleep 60")
    task_operator = operator(action)
    errors: list[BaseException] = []

    def run() -> None:
        try:
            task_operator.execute(task.context)
        except InvocationCancelledError as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    assert await anyio.to_thread.run_sync(task.invoked.wait, 20)
    # Airflow calls on_kill from a signal handler, which may find the main thread inside an event loop.
    task_operator.on_kill()
    await anyio.to_thread.run_sync(thread.join)
    assert len(errors) == 1
    assert hook.get(task.pushed["invocation_id"]).current.status is InvocationStatus.Cancelled


async def test_killing_a_deferred_task_cancels_its_invocation_even_if_the_kill_is_cut_short(
    hook: RobotoHook, task: Task
) -> None:
    action = script(hook, "sleep 60")
    with pytest.raises(TaskDeferred) as deferred:
        await anyio.to_thread.run_sync(operator(action, deferrable=True).execute, task.context)
    trigger = deferred.value.trigger
    record_state(trigger, "failed")
    kill = asyncio.create_task(trigger.on_kill())
    await asyncio.sleep(0)
    kill.cancel()
    with pytest.raises(asyncio.CancelledError):
        await kill
    invocation_id = task.pushed["invocation_id"]
    end = await anyio.to_thread.run_sync(end_of, hook, invocation_id)
    assert end is InvocationStatus.Cancelled


async def test_a_deferral_that_timed_out_cancels_and_one_that_broke_is_waited_for(
    hook: RobotoHook, task: Task, action_log: list[str]
) -> None:
    action = script(hook, "echo begun; sleep 0.5; echo done")
    task_operator = operator(action, deferrable=True)
    with pytest.raises(TaskDeferred):
        await anyio.to_thread.run_sync(task_operator.execute, task.context)
    result = await anyio.to_thread.run_sync(
        task_operator.resume_execution, "__fail__", {"error": "Trigger failure"}, task.context
    )
    assert result["status"] == "Completed"
    assert action_log == ["begun", "done"]

    late = Task()
    late_operator = operator(script(hook, "sleep 60"), deferrable=True)
    with pytest.raises(TaskDeferred):
        await anyio.to_thread.run_sync(late_operator.execute, late.context)
    with pytest.raises(AirflowException):
        await anyio.to_thread.run_sync(
            late_operator.resume_execution, "__fail__", {"error": "Trigger timeout"}, late.context
        )
    assert hook.get(late.pushed["invocation_id"]).current.status is InvocationStatus.Cancelled


@pytest.mark.parametrize(("ago", "is_told"), [(0.0, False), (60.0, True)], ids=["at once", "late"])
async def test_only_a_wait_that_starts_late_says_that_another_triggerer_may_have_begun_it(
    hook: RobotoHook, ago: float, is_told: bool
) -> None:
    started = await anyio.to_thread.run_sync(
        operator(script(hook, "true"), wait=False).execute, Task().context
    )
    trigger = InvocationTrigger(
        conn_id="roboto_default",
        invocation_id=started["invocation_id"],
        poll_interval=0.1,
        stream_logs=True,
        deferred_at=time.time() - ago,
    )
    with capture_logs() as said:
        steps = trigger.run()
        await anext(steps)
        await steps.aclose()  # type: ignore[attr-defined]
    assert any("another triggerer" in one["event"] for one in said) is is_told


async def late_by_own_deadline(made: InvokeActionOperator, task: Task) -> Any:
    """The trigger sees its deadline pass, and fires."""
    try:
        made.execute(task.context)
    except TaskDeferred as deferred:
        steps = deferred.trigger.run()
        event = await anext(steps)
        await steps.aclose()  # type: ignore[attr-defined]
        return await anyio.to_thread.run_sync(made.execute_complete, task.context, event.payload)


async def late_by_airflow(made: InvokeActionOperator, task: Task) -> Any:
    """Airflow ends the deferral at the deadline, and resumes the task without an event."""
    with pytest.raises(TaskDeferred) as deferred:
        made.execute(task.context)
    await anyio.sleep(deferred.value.trigger.deadline - time.time())
    late = ("__fail__", {"error": "Trigger timeout"}, task.context)
    return await anyio.to_thread.run_sync(made.resume_execution, *late)


@pytest.mark.parametrize("seconds", [60, 0.2], ids=["goes on", "has completed"])
async def test_a_deferral_past_its_execution_timeout_ends_the_same_whoever_ends_it(
    hook: RobotoHook, seconds: float
) -> None:
    action = script(hook, f"echo begun; sleep {seconds}")
    outcomes = []
    for end in (late_by_own_deadline, late_by_airflow):
        task = Task()
        made = operator(action, deferrable=True, execution_timeout=timedelta(seconds=1))
        task.context["ti"].start_date = datetime.now(UTC)
        try:
            result = await end(made, task)
            ended = [result["status"], result["action"], sorted(result)]
        except AirflowException as error:
            ended = [type(error), str(error), vars(error)]
        invocation_id = task.pushed["invocation_id"]
        status = hook.get(invocation_id).current.status
        outcomes.append(repr([*ended, status]).replace(invocation_id, "the invocation"))
    assert outcomes[0] == outcomes[1]
    assert ("InvocationTimedOutError" in outcomes[0]) is (seconds == 60)


@pytest.mark.parametrize("deferrable", [False, True], ids=["worker", "deferred"])
async def test_a_sensor_waits_for_what_it_did_not_start(
    hook: RobotoHook, task: Task, deferrable: bool
) -> None:
    good = operator(script(hook, "sleep 0.5"), wait=False)
    started = await anyio.to_thread.run_sync(good.execute, task.context)
    sensor = InvocationSensor(
        task_id="wait", invocation_id=started["invocation_id"], deferrable=deferrable, poke_interval=0.1
    )
    if deferrable:
        await run_deferred(sensor, task)  # type: ignore[arg-type]
    else:
        await anyio.to_thread.run_sync(sensor.execute, task.context)
    assert hook.get(started["invocation_id"]).current.status is InvocationStatus.Completed


async def test_a_sensor_fails_with_the_invocation_and_for_an_unknown_one(
    hook: RobotoHook, task: Task
) -> None:
    bad = operator(script(hook, "exit 3"), wait=False)
    started = await anyio.to_thread.run_sync(bad.execute, task.context)
    sensor = InvocationSensor(task_id="wait", invocation_id=started["invocation_id"], poke_interval=0.1)
    with pytest.raises(InvocationFailedError, match="exit code 3"):
        await anyio.to_thread.run_sync(sensor.execute, task.context)
    unknown = InvocationSensor(task_id="wait", invocation_id="iv_unknown", poke_interval=0.1)
    with pytest.raises(InvocationLostError, match="iv_unknown"):
        await anyio.to_thread.run_sync(unknown.execute, task.context)


def test_the_hook_tests_its_connection(hook: RobotoHook, server: Any) -> None:
    works, message = hook.test_connection()
    assert works
    assert server.endpoint in message
    assert server.token not in message
