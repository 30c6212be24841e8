"""Invoking anew what failed of a set, on the real service: once for each, and one verdict for all."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest

from airflow_invocations.exceptions import (
    InvocationCancelledError,
    InvocationFailedError,
    InvocationTimedOutError,
    RequestRefusedError,
)
from airflow_invocations.hooks import RobotoHook
from airflow_invocations.models import (
    ContainerParameters,
    DagRunProvenance,
    InvocationRecord,
    InvocationRequest,
    InvocationStatus,
)
from airflow_invocations.operators import RetryFailedInvocationsOperator
from airflow_invocations.platforms import Capabilities
from airflow_invocations.platforms.roboto.platform import RobotoPlatform
from airflow_invocations.tasks.provenance import provenance_of

from ...airflow_version import AirflowException, TaskDeferred
from .conftest import Task, end_of, script
from .test_durability import count
from .test_sensor import fired_by

pytestmark = pytest.mark.anyio
S = InvocationStatus


class Flaky:
    """An action that fails for those of its parameter values that are in a folder as files."""

    def __init__(self, hook: RobotoHook, folder: Path) -> None:
        self.hook = hook
        self.folder = folder
        self.action = script(hook, f'echo $MINE; sleep 0.2; test ! -e "{folder}/$ROBOTO_PARAM_n" || exit 3')

    def break_for(self, *values: str) -> None:
        for value in values:
            (self.folder / value).touch()

    def mend(self, value: str) -> None:
        (self.folder / value).unlink()

    def invoke(self, value: str) -> str:
        asker = provenance_of(Task(task_id="mapped").context)
        variables = {**asker.environment(), "MINE": "kept"}
        request = InvocationRequest(
            invocation_source=asker.source.source_type,
            invocation_source_id=asker.source_id,
            parameter_values={"n": value},
            container_parameter_overrides=ContainerParameters(env_vars=variables),
            timeout=7,
        )
        invocation_id = self.hook.invoke(self.action, request).invocation_id
        end_of(self.hook, invocation_id)
        return invocation_id


@pytest.fixture
def flaky(hook: RobotoHook, tmp_path: Path) -> Flaky:
    return Flaky(hook, tmp_path)


def operator(invocations: Any, **arguments: Any) -> RetryFailedInvocationsOperator:
    return RetryFailedInvocationsOperator(
        task_id="retry", invocations=invocations, **{"poll_interval": 0.1, **arguments}
    )


async def run(made: RetryFailedInvocationsOperator, task: Task) -> Any:
    try:
        return await anyio.to_thread.run_sync(made.execute, task.context)
    except TaskDeferred as deferral:
        event = await fired_by(deferral.trigger)
        return await anyio.to_thread.run_sync(made.execute_complete, task.context, event.payload)


@pytest.mark.parametrize("deferrable", [False, True], ids=["worker", "deferred"])
async def test_what_failed_is_invoked_anew_and_the_rest_is_left(
    flaky: Flaky, task: Task, deferrable: bool
) -> None:
    def begin() -> list[str]:
        flaky.break_for("b", "c")
        return [flaky.invoke(value) for value in "abc"]

    ids = await anyio.to_thread.run_sync(begin)
    flaky.mend("b")
    flaky.mend("c")
    results = await run(operator([{"invocation_id": ids[0]}, *ids[1:]], deferrable=deferrable), task)
    assert [one["retry_of"] for one in results] == [None, ids[1], ids[2]]
    assert [one["status"] for one in results] == ["Completed"] * 3
    assert results[0]["invocation_id"] == ids[0]
    assert results[0]["provenance"]["task_id"] == "mapped"
    assert task.pushed["invocation_id"] == [one["invocation_id"] for one in results[1:]]
    again = flaky.hook.get(results[1]["invocation_id"])
    assert (again.parameter_values, again.timeout) == ({"n": "b"}, 7)
    variables = again.container_parameters.env_vars or {}
    assert variables["MINE"] == "kept"
    assert DagRunProvenance.from_environment(variables) == provenance_of(task.context)
    assert again.provenance.source == provenance_of(task.context).source
    assert await anyio.to_thread.run_sync(count, flaky.hook, flaky.action) == 5


async def test_a_worker_that_dies_invokes_nothing_twice_and_a_retry_only_what_failed_again(
    flaky: Flaky, task: Task
) -> None:
    def begin() -> list[str]:
        flaky.break_for("b", "c")
        return [flaky.invoke(value) for value in "bc"]

    ids = await anyio.to_thread.run_sync(begin)
    flaky.mend("b")
    made = operator(ids)
    # A worker that dies right after it has invoked, then the same try once more.
    await anyio.to_thread.run_sync(made._invoke, flaky.hook, task.context)
    with pytest.raises(InvocationFailedError, match="1 of 2 invocations did not complete"):
        await run(made, task)
    assert await anyio.to_thread.run_sync(count, flaky.hook, flaky.action) == 4
    flaky.mend("c")
    following = Task(try_number=3, run_id=task.context["ti"].run_id)
    following.context["dag_run"].start_date = task.context["dag_run"].start_date
    results = await run(operator(ids), following)
    assert [one["status"] for one in results] == ["Completed"] * 2
    assert await anyio.to_thread.run_sync(count, flaky.hook, flaky.action) == 5


async def test_what_somebody_has_cancelled_is_not_invoked_anew(hook: RobotoHook, task: Task) -> None:
    def begin() -> InvocationRecord | None:
        action = script(hook, "sleep 60")
        request = InvocationRequest(invocation_source=provenance_of(task.context).source.source_type)
        return hook.cancel(hook.invoke(action, request).invocation_id)

    record = await anyio.to_thread.run_sync(begin)
    assert record is not None
    with pytest.raises(InvocationCancelledError):
        await run(operator([record.invocation_id]), task)
    assert await anyio.to_thread.run_sync(count, hook, record.provenance.action.name) == 1


async def test_nothing_to_do_is_no_failure(task: Task, hook: RobotoHook) -> None:
    assert await run(operator([]), task) == []


async def test_what_has_not_ended_is_refused(hook: RobotoHook, task: Task) -> None:
    def begin() -> str:
        request = InvocationRequest(invocation_source=provenance_of(task.context).source.source_type)
        return hook.invoke(script(hook, "sleep 60"), request).invocation_id

    running = await anyio.to_thread.run_sync(begin)
    with pytest.raises(RequestRefusedError, match=f"argument 'invocations': {running} haven't ended"):
        await run(operator([running]), task)
    hook.cancel(running)


async def test_a_platform_that_keeps_no_requests_is_refused(
    hook: RobotoHook, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RobotoPlatform, "capabilities", Capabilities(parameters=False))
    with pytest.raises(RequestRefusedError, match="doesn't keep all that an invocation was asked for"):
        await run(operator(["iv_1"]), task)


@pytest.fixture
def begun(hook: RobotoHook, tmp_path: Path) -> tuple[str, Path]:
    """A failed invocation, that runs for a minute when it is invoked anew."""
    action = script(hook, f'test -e "{tmp_path}/mended" || exit 3; sleep 60')
    request = InvocationRequest(invocation_source=provenance_of(Task().context).source.source_type)
    invocation_id = hook.invoke(action, request).invocation_id
    end_of(hook, invocation_id)
    (tmp_path / "mended").touch()
    return invocation_id, tmp_path


@pytest.mark.parametrize("cancel_on_kill", [True, False])
def test_killed_in_a_worker_it_cancels_what_it_has_invoked(
    hook: RobotoHook, task: Task, begun: tuple[str, Path], cancel_on_kill: bool
) -> None:
    made = operator([begun[0]], cancel_on_kill=cancel_on_kill)
    errors: list[AirflowException] = []

    def work() -> None:
        try:
            made.execute(task.context)
        except AirflowException as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    assert task.invoked.wait(20)
    made.on_kill()
    (again,) = task.pushed["invocation_id"]
    assert (hook.get(again).current.status is S.Cancelled) is cancel_on_kill
    hook.cancel(again)
    thread.join(30)
    assert [type(error) for error in errors] == [InvocationCancelledError]


async def test_killed_while_deferred_it_cancels_what_it_has_invoked(
    hook: RobotoHook, task: Task, begun: tuple[str, Path]
) -> None:
    made = operator([begun[0]], deferrable=True)
    with pytest.raises(TaskDeferred) as deferral:
        await anyio.to_thread.run_sync(made.execute, task.context)
    await deferral.value.trigger.on_kill()
    (again,) = task.pushed["invocation_id"]
    assert hook.get(again).current.status is S.Cancelled


async def test_a_trigger_that_is_late_or_broke(hook: RobotoHook, task: Task, begun: tuple[str, Path]) -> None:
    made = operator([begun[0]], deferrable=True)
    with pytest.raises(TaskDeferred):
        await anyio.to_thread.run_sync(made.execute, task.context)
    (again,) = task.pushed["invocation_id"]
    with pytest.raises(InvocationTimedOutError):
        await anyio.to_thread.run_sync(
            made.resume_execution, "__fail__", {"error": "Trigger timeout"}, task.context
        )
    assert hook.get(again).current.status is S.Cancelled
    with pytest.raises(InvocationCancelledError):
        await anyio.to_thread.run_sync(
            made.resume_execution, "__fail__", {"error": "Trigger failure"}, task.context
        )


async def test_resumed_without_an_event_it_goes_on_with_what_it_had_invoked(flaky: Flaky, task: Task) -> None:
    def begin() -> str:
        flaky.break_for("b")
        return flaky.invoke("b")

    failed = await anyio.to_thread.run_sync(begin)
    flaky.mend("b")
    with pytest.raises(TaskDeferred) as deferral:
        await anyio.to_thread.run_sync(operator([failed], deferrable=True).execute, task.context)
    made = operator([failed])
    (result,) = await anyio.to_thread.run_sync(
        made.resume_execution, deferral.value.method_name, {}, task.context
    )
    assert result["invocation_id"] == deferral.value.trigger.invocation_ids[0]
    assert await anyio.to_thread.run_sync(count, flaky.hook, flaky.action) == 2
