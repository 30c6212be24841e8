"""Retries, clears and kills, one try after another of one task: one invocation for each incarnation."""

from __future__ import annotations

import datetime
import os
import threading
import uuid
from typing import Any

import anyio.to_thread
import pytest

from airflow_invocations.action_log import NOTHING_SHOWN
from airflow_invocations.exceptions import (
    InvocationCancelledError,
    InvocationConflictError,
    InvocationFailedError,
    InvocationTimedOutError,
    PlatformUnavailableError,
    RequestRejectedError,
)
from airflow_invocations.hooks import RobotoHook
from airflow_invocations.models import ActionParameter, InvocationStatus
from airflow_invocations.operators import InvokeActionOperator
from airflow_invocations.platforms import UnavailableError
from airflow_invocations.platforms.roboto.platform import RobotoPlatform

from ...support.airflow_version import AirflowException, TaskDeferred
from ...support.waiting import until
from .conftest import Task, connect_to, end_of, run_deferred, script

S = InvocationStatus


class Instance:
    """One task instance and its tries, as Airflow numbers them."""

    def __init__(self, action: str, **arguments: Any) -> None:
        self.arguments: dict[str, Any] = {
            "task_id": "ask", "action": action, "poll_interval": 0.1, "defer_after": 0, **arguments
        }  # fmt: skip
        self.run_id = f"manual__{uuid.uuid4()}"
        self.retries = 3
        #: `retries` in the DAG file, which a worker reads.
        self.edited_retries = 3
        self.try_number, self.max_tries, self.clear_number = 0, self.retries, 0
        self.first = Task()
        self.store: Any = None

    def next_try(self) -> Task:
        """What an automatic retry, or the first run, is given."""
        self.try_number += 1
        task = Task(try_number=self.try_number, max_tries=self.max_tries, run_id=self.run_id)
        run = task.context["dag_run"]
        task.context["task"].retries = self.edited_retries
        task.context["task_state_store"] = self.store
        run.start_date, run.clear_number = self.first.context["dag_run"].start_date, self.clear_number
        return task

    def clear(self, *, while_it_runs: bool = False) -> None:
        """What Airflow's clear_task_instances does to the numbers."""
        self.clear_number += 1
        if not while_it_runs:
            self.max_tries = self.try_number + self.retries

    def operator(self, **changes: Any) -> InvokeActionOperator:
        return InvokeActionOperator(**{**self.arguments, **changes})

    def start(self) -> tuple[Task, str]:
        """A try whose worker dies right after it has invoked; its invocation."""
        task = self.next_try()
        result = self.operator(wait=False).execute(task.context)
        return task, str(result["invocation_id"])

    def run(self) -> tuple[Task, Any]:
        """A try that is left to come to its end: its result, or its exception."""
        task = self.next_try()
        try:
            return task, self.operator().execute(task.context)
        except AirflowException as error:
            return task, error


def count(hook: RobotoHook, action: str) -> int:
    async def query(platform: RobotoPlatform) -> int:
        condition = {"field": "provenance.action.name", "comparator": "EQUALS", "value": action}
        body = {"condition": condition}
        data = await platform._client.call("POST", "v1/actions/invocations/query", body=body, idempotent=True)
        return len(data["items"])

    return hook.call(query)


def test_a_retry_after_a_worker_died_goes_on_with_what_it_had_invoked(hook: RobotoHook) -> None:
    instance = Instance(script(hook, "sleep 0.5; echo done"))
    _, invoked = instance.start()
    _, result = instance.run()
    assert (result["invocation_id"], result["status"]) == (invoked, "Completed")
    # Another retry, as if that worker had died too before it could say so: the result, no second run.
    _, again = instance.run()
    assert again["invocation_id"] == invoked
    assert count(hook, instance.arguments["action"]) == 1


def test_a_retry_after_a_failure_invokes_anew_and_once(hook: RobotoHook) -> None:
    # Long enough that the third try still finds running what the second one has begun.
    instance = Instance(script(hook, "sleep 1.5; exit 3"))
    _, error = instance.run()
    assert type(error) is InvocationFailedError
    _, second = instance.start()
    assert second != error.invocation_id
    _, error = instance.run()
    assert error.invocation_id == second
    assert count(hook, instance.arguments["action"]) == 2


def test_a_clear_invokes_anew(hook: RobotoHook) -> None:
    instance = Instance(script(hook, "true"))
    _, first = instance.run()
    instance.clear()
    _, second = instance.run()
    assert second["invocation_id"] != first["invocation_id"]
    assert second["status"] == "Completed"


@pytest.mark.parametrize("cancel_on_kill", [True, False])
def test_a_cleared_task_cancels_what_it_had_invoked_before(hook: RobotoHook, cancel_on_kill: bool) -> None:
    # Nobody else does, if no triggerer had begun to wait for it.
    instance = Instance(script(hook, "sleep 60"), cancel_on_kill=cancel_on_kill)
    _, first = instance.start()
    _, first_again = instance.start()
    instance.clear()
    instance.next_try()
    _, ignored = instance.start()  # a task that doesn't wait leaves what it has invoked alone
    assert first == first_again != ignored
    assert not hook.get(first).current.status.is_terminal
    instance.clear()
    instance.arguments["action"] = script(hook, "true")
    _, second = instance.run()
    assert second["status"] == "Completed"
    assert {hook.get(one).current.status for one in (first, ignored)} == (
        {S.Cancelled} if cancel_on_kill else {S.Processing}
    )
    for one in (first, ignored):
        hook.cancel(one)


def test_without_durability_each_try_invokes(hook: RobotoHook) -> None:
    instance = Instance(script(hook, "true"), durable=False)
    for _ in range(2):
        instance.run()
    assert count(hook, instance.arguments["action"]) == 2


def test_another_action_under_the_same_identity_is_rejected_and_says_what_to_do(hook: RobotoHook) -> None:
    instance = Instance(script(hook, "true"))
    instance.start()
    instance.arguments["action"] = script(hook, "true")
    _, error = instance.run()
    assert type(error) is InvocationConflictError
    assert "clear the task to invoke the action with the new request" in str(error)
    assert error.detail.startswith("action (")
    assert count(hook, instance.arguments["action"]) == 0


def test_a_task_cleared_while_its_worker_runs_does_not_inherit_the_cancel(hook: RobotoHook) -> None:
    # The action takes its time to end, so the next try finds it running still.
    action = script(hook, "trap '' TERM; sleep 60 & wait; sleep 60")
    instance = Instance(action)
    _, first = instance.start()
    assert hook.get(first).current.status is not S.Cancelled
    hook.call(lambda platform: platform.cancel(first))
    instance.clear(while_it_runs=True)
    killed = threading.Event()
    task = instance.next_try()
    operator = instance.operator()

    def kill_the_second() -> None:
        while task.pushed.get("invocation_id") in (None, first):
            task.invoked.clear()
            task.invoked.wait(20)
        operator.on_kill()
        killed.set()

    thread = threading.Thread(target=kill_the_second)
    thread.start()
    with pytest.raises(InvocationCancelledError) as cancelled:
        operator.execute(task.context)
    thread.join()
    assert killed.is_set()
    assert cancelled.value.invocation_id != first
    assert count(hook, action) == 2


def test_a_cancel_by_somebody_else_is_not_invoked_away(hook: RobotoHook) -> None:
    instance = Instance(script(hook, "sleep 60"))
    _, first = instance.start()
    instance.clear_number = 1  # a neighbour was cleared before
    task = instance.next_try()
    task.context["dag_run"].clear_number = 0
    canceller = threading.Thread(target=lambda: task.invoked.wait(20) and hook.cancel(first))
    canceller.start()
    with pytest.raises(InvocationCancelledError):
        instance.operator().execute(task.context)
    canceller.join()
    assert count(hook, instance.arguments["action"]) == 1


def test_a_kill_before_the_platform_has_answered_cancels_what_it_answers(
    hook: RobotoHook, monkeypatch: pytest.MonkeyPatch
) -> None:
    instance = Instance(script(hook, "sleep 60"))
    arrived, go_on = threading.Event(), threading.Event()
    real = RobotoPlatform.invoke

    async def held(self: RobotoPlatform, action: str, request: Any) -> Any:
        record = await real(self, action, request)
        arrived.set()
        await anyio.to_thread.run_sync(go_on.wait, 20)
        return record

    monkeypatch.setattr(RobotoPlatform, "invoke", held)
    operator, task = instance.operator(), instance.next_try()
    errors: list[AirflowException] = []

    def run() -> None:
        try:
            operator.execute(task.context)
        except AirflowException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    assert arrived.wait(20)
    operator.on_kill()
    go_on.set()
    thread.join(30)
    assert [type(error) for error in errors] == [InvocationCancelledError]
    assert hook.get(task.pushed["invocation_id"]).current.status is S.Cancelled


def execute_and_kill(instance: Instance, state: str | Exception, **changes: Any) -> object:
    """Kill a worker's process once it has invoked; return its status, or the type of its exception.

    :param state: the state of the task that Airflow answers then.
    """
    operator, task = instance.operator(**changes), instance.next_try()
    task.state = state
    ends: list[object] = []

    def run() -> None:
        try:
            ends.append(operator.execute(task.context)["status"])
        except AirflowException as error:
            ends.append(type(error))

    thread = threading.Thread(target=run)
    thread.start()
    assert task.invoked.wait(20)
    operator.on_kill()
    thread.join(30)
    (end,) = ends
    return end


@pytest.mark.parametrize(
    "state",
    [
        pytest.param("running", id="heartbeats failed, or a later try has taken over"),
        pytest.param("up_for_retry", id="it stood still until Airflow called it dead"),
        pytest.param("queued", id="its retry is about to begin"),
        pytest.param("deferred", id="its retry has deferred"),
        pytest.param(RuntimeError("the API server is away"), id="Airflow does not answer"),
    ],
)
def test_a_killed_worker_cancels_nothing_unless_airflow_confirms(
    hook: RobotoHook, monkeypatch: pytest.MonkeyPatch, state: str | Exception
) -> None:
    monkeypatch.setattr("airflow_invocations.tasks.guard._READ_PAUSE", 0.05)
    instance = Instance(script(hook, "sleep 1.5"))
    assert execute_and_kill(instance, state) == "Completed"
    assert count(hook, instance.arguments["action"]) == 1


@pytest.mark.parametrize("state", ["failed", "success", "skipped", "restarting", "removed"])
def test_a_killed_worker_cancels_if_airflow_says_that_the_task_has_ended(
    hook: RobotoHook, state: str
) -> None:
    instance = Instance(script(hook, "sleep 60"))
    assert execute_and_kill(instance, state) is InvocationCancelledError


def test_a_kill_before_a_deferred_task_resumes_cancels_too(hook: RobotoHook) -> None:
    instance = Instance(script(hook, "sleep 60"))
    operator, task = instance.operator(deferrable=True), instance.next_try()
    with pytest.raises(TaskDeferred):
        operator.execute(task.context)
    resumed = instance.operator(deferrable=True)
    resumed.on_kill()
    event = {"invocation_id": task.pushed["invocation_id"], "given_up": None, **NOTHING_SHOWN.as_event()}
    with pytest.raises(InvocationCancelledError):
        resumed.resume_execution("execute_complete", {"event": event}, task.context)


@pytest.mark.parametrize(
    ("max_tries", "status"), [(0, S.Cancelled), (3, S.Processing)], ids=["no retry left", "a retry adopts"]
)
def test_a_task_that_fails_after_invoking_cancels_unless_a_retry_adopts(
    hook: RobotoHook, max_tries: int, status: InvocationStatus
) -> None:
    instance = Instance(script(hook, "echo begun; sleep 60"))
    instance.max_tries = max_tries
    task = instance.next_try()
    push = task.context["ti"].xcom_push

    def fail(key: str, value: Any) -> None:
        push(key=key, value=value)
        raise AirflowException("404: the XCom can't be stored")

    task.context["ti"].xcom_push = fail
    with pytest.raises(AirflowException, match="404"):
        instance.operator().execute(task.context)
    invocation_id = task.pushed["invocation_id"]
    if status is S.Processing:
        until(lambda: hook.get(invocation_id).current.status is S.Processing, within=20)
        hook.cancel(invocation_id)
    assert hook.get(invocation_id).current.status is S.Cancelled


@pytest.mark.parametrize("cancel_on_kill", [True, False])
def test_task_that_keeps_its_invocation_does_not_cancel_it(hook: RobotoHook, cancel_on_kill: bool) -> None:
    instance = Instance(script(hook, "sleep 1.5"), cancel_on_kill=cancel_on_kill)
    end = execute_and_kill(instance, "failed")
    assert end == (InvocationCancelledError if cancel_on_kill else "Completed")


@pytest.mark.anyio
@pytest.mark.parametrize("deferrable", [False, True], ids=["worker", "deferred"])
async def test_invocation_that_stays_queued_is_cancelled(
    start_server: Any, monkeypatch: pytest.MonkeyPatch, deferrable: bool
) -> None:
    connect_to(start_server("--slots", "0"), monkeypatch)
    hook = RobotoHook()
    instance = Instance(script(hook, "true"), queue_timeout=1, deferrable=deferrable)
    task = instance.next_try()

    async def run() -> None:
        if deferrable:
            await run_deferred(instance.operator(), task)
        else:
            await anyio.to_thread.run_sync(instance.operator().execute, task.context)

    with pytest.raises(
        InvocationTimedOutError,
        match=r"still Queued after [0-9.]+ s \(queue_timeout\)",
    ):
        await run()
    assert hook.get(task.pushed["invocation_id"]).current.status is S.Cancelled


@pytest.mark.anyio
async def test_an_absolute_deadline_ends_a_deferred_task_and_its_invocation(
    hook: RobotoHook, server: Any, monkeypatch: pytest.MonkeyPatch, action_log: list[str]
) -> None:
    stops = "trap 'echo stopping; exit 1' TERM; echo begun; while :; do sleep 0.1; done"
    instance = Instance(script(hook, stops), deferrable=True, execution_timeout=datetime.timedelta(seconds=1))
    task = instance.next_try()
    with pytest.raises(TaskDeferred) as deferred:
        await anyio.to_thread.run_sync(instance.operator().execute, task.context)
    deadline = deferred.value.trigger.deadline
    assert deadline == task.context["ti"].start_date.timestamp() + 1
    assert deferred.value.timeout > datetime.timedelta(seconds=60)
    steps = deferred.value.trigger.run()
    event = (await anext(steps)).payload
    await steps.aclose()
    assert event["given_up"] == "timed_out"
    end = await anyio.to_thread.run_sync(end_of, hook, event["invocation_id"])
    assert end is S.Cancelled
    with pytest.raises(InvocationTimedOutError) as late:
        await anyio.to_thread.run_sync(instance.operator().execute_complete, task.context, event)
    invocation_id = event["invocation_id"]
    said = f"timed out after 1 s (execution_timeout); invocation {invocation_id} cancelled"
    assert str(late.value).endswith(f"{said}: {hook.url(invocation_id)}")
    # It is known to be cancelled, so it isn't cancelled again: the platform may be away by now.
    unused: list[str] = []
    monkeypatch.setattr(RobotoPlatform, "cancel", lambda _, one: unused.append(one))
    with pytest.raises(InvocationTimedOutError):
        await anyio.to_thread.run_sync(instance.operator().execute_complete, task.context, event)
    assert unused == []
    monkeypatch.undo()
    connect_to(server, monkeypatch)
    assert (action_log[0], action_log[-1]) == ("begun", "stopping")
    # The retry doesn't go on with what was cancelled.
    _, again = instance.start()
    assert again != event["invocation_id"]
    hook.cancel(again)


@pytest.mark.anyio
async def test_a_resume_without_an_event_goes_on_with_the_invocation(hook: RobotoHook) -> None:
    instance = Instance(await anyio.to_thread.run_sync(script, hook, "sleep 1"), deferrable=True)
    task = instance.next_try()
    with pytest.raises(TaskDeferred) as deferred:
        await anyio.to_thread.run_sync(instance.operator().execute, task.context)
    invoked = deferred.value.trigger.invocation_id
    # Airflow calls the method that the deferral named, with nothing but the context.
    resumed = instance.operator(deferrable=False)
    result = await anyio.to_thread.run_sync(
        resumed.resume_execution, deferred.value.method_name, {}, task.context
    )
    assert (result["invocation_id"], result["status"]) == (invoked, "Completed")


@pytest.mark.parametrize(("retries", "status"), [(0, S.Cancelled), (2, S.Processing)])
def test_a_task_that_fails_right_after_it_has_invoked_leaves_nothing_behind(
    hook: RobotoHook, retries: int, status: S
) -> None:
    action = script(hook, "sleep 60")
    instance = Instance(action)
    instance.max_tries = instance.retries = retries
    task = instance.next_try()

    def push(key: str, value: Any) -> None:
        raise AirflowException(f"the push of {key} = {value} fails")

    task.context["ti"].xcom_push = push
    with pytest.raises(AirflowException, match="the push of invocation_id") as failed:
        instance.operator().execute(task.context)
    invocation_id = str(failed.value).split()[5]
    waiting = {S.Queued, S.Scheduled, S.Downloading}
    end = until(lambda: (one := hook.get(invocation_id).current.status) not in waiting and one)
    assert end is status
    if retries:  # and the retry goes on with it
        _, again = instance.start()
        assert again == invocation_id
        hook.cancel(again)


@pytest.mark.parametrize("run_id", ["manual__what?", "backfill#1", "a/b"])
def test_a_run_whose_xcoms_airflow_cannot_store_invokes_nothing(hook: RobotoHook, run_id: str) -> None:
    instance = Instance(script(hook, "true"))
    instance.run_id = run_id
    _, error = instance.run()
    assert type(error) is RequestRejectedError
    assert f"run id {run_id!r}: Airflow can't store XComs" in str(error)
    assert count(hook, instance.arguments["action"]) == 0


def test_airflow_tasks_test_never_touches_the_invocation_of_a_real_try(hook: RobotoHook) -> None:
    instance = Instance(script(hook, "true"))
    _, real = instance.run()
    instance.try_number = -1  # the next one is 0, as `airflow tasks test` has it
    _, tested = instance.run()
    assert tested["status"] == "Completed"
    assert tested["invocation_id"] != real["invocation_id"]


@pytest.mark.parametrize("retries", [0, 2, 5])
def test_an_edit_of_retries_neither_starts_a_second_one_nor_revives_an_old_one(
    hook: RobotoHook, retries: int
) -> None:
    instance = Instance(script(hook, "sleep 60"))
    _, invoked = instance.start()
    instance.edited_retries = retries
    _, again = instance.start()
    assert again == invoked
    instance.retries = retries
    instance.clear()
    instance.edited_retries = 1
    instance.arguments["action"] = script(hook, "true")
    _, result = instance.run()
    assert (result["status"], result["invocation_id"] != invoked) == ("Completed", True)
    assert hook.get(invoked).current.status is S.Cancelled
    _, retried = instance.run()
    assert retried["invocation_id"] == result["invocation_id"]


def test_a_changed_start_of_the_run_starts_no_second_one(hook: RobotoHook) -> None:
    # PATCH dagRuns/{id} {"state": "queued"} changes it, and so does a clear of a run that has ended.
    instance = Instance(script(hook, "sleep 60"))
    _, invoked = instance.start()
    instance.first.context["dag_run"].start_date += datetime.timedelta(hours=1)
    _, again = instance.start()
    assert again == invoked
    instance.first.context["dag_run"].start_date = None
    instance.clear()
    instance.arguments["action"] = script(hook, "true")
    _, result = instance.run()
    assert result["status"] == "Completed"
    assert hook.get(invoked).current.status is S.Cancelled


def test_a_clear_cancels_the_earlier_one_although_the_new_arguments_are_rejected(hook: RobotoHook) -> None:
    instance = Instance(script(hook, "sleep 60"))
    _, invoked = instance.start()
    instance.clear()
    required = [ActionParameter(name="n", required=True)]
    instance.arguments["action"] = script(hook, "true", parameters=required)
    _, error = instance.run()
    assert type(error) is RequestRejectedError
    assert hook.get(invoked).current.status is S.Cancelled


@pytest.mark.parametrize("is_cleared", [True, False])
def test_without_durability_no_try_leaves_another_running(hook: RobotoHook, is_cleared: bool) -> None:
    instance = Instance(script(hook, "sleep 60"), durable=False)
    _, invoked = instance.start()
    if is_cleared:
        instance.clear()
    instance.arguments["action"] = script(hook, "true")
    _, result = instance.run()
    assert result["status"] == "Completed"
    assert hook.get(invoked).current.status is S.Cancelled


def test_a_search_that_is_unavailable_is_repeated(hook: RobotoHook, monkeypatch: pytest.MonkeyPatch) -> None:
    instance = Instance(script(hook, "sleep 60"))
    _, invoked = instance.start()
    instance.clear()
    instance.arguments["action"] = script(hook, "true")
    failures = ["503", "503"]
    find = RobotoPlatform.find

    async def unavailable_twice(self: RobotoPlatform, *arguments: Any) -> Any:
        if failures:
            raise UnavailableError(failures.pop())
        return await find(self, *arguments)

    monkeypatch.setattr(RobotoPlatform, "find", unavailable_twice)
    _, result = instance.run()
    assert (result["status"], failures) == ("Completed", [])
    assert hook.get(invoked).current.status is S.Cancelled


def test_nothing_is_invoked_while_the_cancel_of_an_earlier_one_is_unconfirmed(
    hook: RobotoHook, monkeypatch: pytest.MonkeyPatch
) -> None:
    instance = Instance(script(hook, "sleep 60"), outage_limit=1)
    _, invoked = instance.start()
    instance.clear()
    instance.arguments["action"] = script(hook, "true")

    async def hangs(self: RobotoPlatform, invocation_id: str) -> None:
        raise UnavailableError("504")

    with monkeypatch.context() as patch:
        patch.setattr(RobotoPlatform, "cancel", hangs)
        _, error = instance.run()
    assert type(error) is PlatformUnavailableError
    assert invoked in str(error)
    assert count(hook, instance.arguments["action"]) == 0
    _, result = instance.run()
    assert result["status"] == "Completed"
    assert hook.get(invoked).current.status is S.Cancelled


def test_a_run_that_is_created_again_under_its_id_inherits_nothing(hook: RobotoHook) -> None:
    instance = Instance(script(hook, "sleep 60"))
    _, invoked = instance.start()
    instance.try_number = 0
    instance.arguments["action"] = script(hook, "true")
    _, result = instance.run()
    assert result["status"] == "Completed"
    assert hook.get(invoked).current.status is S.Cancelled
    _, retried = instance.run()
    assert retried["invocation_id"] == result["invocation_id"]


def test_another_airflows_invocations_are_left_alone(
    hook: RobotoHook, monkeypatch: pytest.MonkeyPatch
) -> None:
    instance = Instance(script(hook, "sleep 60"))
    with monkeypatch.context() as patch:
        patch.setenv("AIRFLOW__API__BASE_URL", "https://staging.example")
        _, theirs = instance.start()
    instance.clear()
    instance.arguments["action"] = script(hook, "true")
    _, result = instance.run()
    assert result["status"] == "Completed"
    assert hook.get(theirs).current.status is not S.Cancelled
    hook.cancel(theirs)


class Store:
    """Airflow's task state store, which retries and clears keep."""

    def __init__(self) -> None:
        self.kept: dict[str, Any] = {}

    def get(self, key: str, default: Any = None) -> Any:
        return self.kept.get(key, default)

    def set(self, key: str, value: Any) -> None:
        self.kept[key] = value


@pytest.mark.parametrize("is_cleared", [True, False])
def test_an_edit_of_the_connection_leaves_nothing_behind(
    hook: RobotoHook, monkeypatch: pytest.MonkeyPatch, is_cleared: bool
) -> None:
    connection = os.environ["AIRFLOW_CONN_ROBOTO_DEFAULT"]
    monkeypatch.setenv("AIRFLOW_CONN_OTHER", connection)
    instance = Instance(script(hook, "sleep 60"))
    instance.store = Store()
    instance.store.kept["invocation_conn_id"] = "roboto_default"
    _, invoked = instance.start()  # it doesn't wait, and so it stores nothing
    if is_cleared:
        instance.clear()
    instance.arguments |= {"action": script(hook, "true"), "conn_id": "other"}
    _, result = instance.run()
    assert result["status"] == "Completed"
    assert hook.get(invoked).current.status is S.Cancelled
    assert instance.store.kept == {"invocation_conn_id": "other"}


def test_an_earlier_connection_that_is_gone_does_not_keep_the_task_from_running(hook: RobotoHook) -> None:
    instance = Instance(script(hook, "true"))
    instance.store = Store()
    instance.store.kept["invocation_conn_id"] = "deleted"
    instance.next_try()
    _, result = instance.run()
    assert result["status"] == "Completed"
