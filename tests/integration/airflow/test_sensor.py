"""The sensor and the real server: one, several, the newest; poking, rescheduled, deferred, workerless."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import AsyncIterator, Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import anyio.to_thread
import pytest
from airflow.triggers.base import TaskFailedEvent, TaskSkippedEvent, TaskSuccessEvent, TriggerEvent
from structlog.testing import capture_logs

from airflow_invocations.exceptions import (
    AccessRejectedError,
    InvocationCancelledError,
    InvocationFailedError,
    InvocationLostError,
    InvocationPermanentError,
    PlatformUnavailableError,
    RequestRejectedError,
)
from airflow_invocations.hooks import RobotoHook
from airflow_invocations.models import InvocationRequest, InvocationSource
from airflow_invocations.sensors import InvocationSensor
from airflow_invocations.tasks.completion import CompletionCriteria
from airflow_invocations.triggers import SensorTrigger, invocations
from airflow_invocations.triggers._base import announced
from airflow_invocations.waiters import rejection, watcher

from ...support.airflow_version import (
    AirflowException,
    AirflowRescheduleException,
    AirflowSensorTimeout,
    AirflowSkipException,
    TaskDeferred,
    since,
)
from .conftest import Task, end_of, script

pytestmark = pytest.mark.anyio
starts_in_triggerer = since("3.3", "tasks that start in the triggerer")

#: How a sensor is run to its end: its result, or its exception.
Way = Callable[[InvocationSensor, Task], Awaitable[Any]]


def invoke(hook: RobotoHook, command: str) -> str:
    return invoke_action(hook, script(hook, command))


def invoke_action(hook: RobotoHook, action: str) -> str:
    request = InvocationRequest(invocation_source=InvocationSource.Manual)
    return hook.invoke(action, request).invocation_id


def sensor(**arguments: Any) -> InvocationSensor:
    return InvocationSensor(task_id="wait", **{"poke_interval": 0.1, **arguments})


async def poking(made: InvocationSensor, task: Task) -> Any:
    return await anyio.to_thread.run_sync(made.execute, task.context)


async def rescheduled(made: InvocationSensor, task: Task) -> Any:
    made.mode = "reschedule"
    first = datetime.datetime.now(datetime.UTC)
    task.context["ti"].get_first_reschedule_date = lambda _: first
    while True:
        try:
            return await anyio.to_thread.run_sync(made.execute, task.context)
        except AirflowRescheduleException as again:
            await asyncio.sleep(
                max(0.0, (again.reschedule_date - datetime.datetime.now(datetime.UTC)).total_seconds())
            )


async def deferred(made: InvocationSensor, task: Task) -> Any:
    made.deferrable = True
    method, arguments = "execute", {}
    while True:
        try:
            if method == "execute":
                return await anyio.to_thread.run_sync(made.execute, task.context)
            return await anyio.to_thread.run_sync(made.resume_execution, method, arguments, task.context)
        except TaskDeferred as deferral:
            method, arguments = deferral.method_name, {"event": (await fired_by(deferral.trigger)).payload}


WAYS: list[Way] = [poking, rescheduled, deferred]


async def fired_by(trigger: Any) -> TriggerEvent:
    steps: AsyncIterator[TriggerEvent] = trigger.run()
    async with asyncio.timeout(30):
        event = await anext(steps)
    await steps.aclose()  # type: ignore[attr-defined]
    return event


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watcher, "AUDIT_INTERVAL", 0.2)
    monkeypatch.setattr("airflow_invocations.waiters.wait.LOST_PAUSE", 0.05)
    monkeypatch.setattr(watcher, "LOST_PAUSE", 0.05)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
class TestEveryWay:
    async def test_one(self, hook: RobotoHook, task: Task, way: Way) -> None:
        started = await anyio.to_thread.run_sync(invoke, hook, "sleep 0.5")
        assert await way(sensor(invocation_id={"invocation_id": started}), task) == started
        assert task.pushed["_link_InvocationLink"] == hook.url(started)
        assert task.pushed["_link_InvocationLogsLink"] == f"{hook.url(started)}#log"

    async def test_failed_invocation(self, hook: RobotoHook, task: Task, way: Way) -> None:
        started = await anyio.to_thread.run_sync(invoke, hook, "sleep 0.3; exit 65")
        with pytest.raises(InvocationPermanentError, match="exit code 65"):
            await way(sensor(invocation_id=started), task)

    async def test_unknown_invocation(self, hook: RobotoHook, task: Task, way: Way) -> None:
        with pytest.raises(InvocationLostError, match="iv_unknown"):
            await way(sensor(invocation_id="iv_unknown"), task)

    async def test_all(self, hook: RobotoHook, task: Task, way: Way) -> None:
        ids = [
            await anyio.to_thread.run_sync(invoke, hook, f"sleep {seconds}") for seconds in (0.6, 0.1, 0.3)
        ]
        assert await way(sensor(invocation_ids=ids), task) == ids

    async def test_any(self, hook: RobotoHook, task: Task, way: Way) -> None:
        slow = await anyio.to_thread.run_sync(invoke, hook, "sleep 60")
        quick = await anyio.to_thread.run_sync(invoke, hook, "sleep 0.3")
        bad = await anyio.to_thread.run_sync(invoke, hook, "exit 3")
        assert await way(sensor(invocation_ids=[slow, quick, bad], wait_for="any"), task) == [quick]
        hook.cancel(slow)

    async def test_so_many_of(self, hook: RobotoHook, task: Task, way: Way) -> None:
        slow = await anyio.to_thread.run_sync(invoke, hook, "sleep 60")
        good = [await anyio.to_thread.run_sync(invoke, hook, f"sleep {n}") for n in (0.1, 0.4)]
        assert await way(sensor(invocation_ids=[slow, *good], wait_for=2), task) == good
        hook.cancel(slow)

    async def test_it_fails_once_so_many_can_not_complete_any_more(
        self, hook: RobotoHook, task: Task, way: Way
    ) -> None:
        slow = await anyio.to_thread.run_sync(invoke, hook, "sleep 60")
        bad = await anyio.to_thread.run_sync(invoke, hook, "sleep 0.2; exit 3")
        with pytest.raises(InvocationFailedError) as failed:
            await way(sensor(invocation_ids=[slow, bad]), task)
        assert f"1 of 2 invocations failed, but 2 must complete: {bad} Failed" in str(failed.value)
        assert failed.value.invocation_id == bad
        with pytest.raises(InvocationLostError, match="iv_unknown"):
            await way(sensor(invocation_ids=["iv_unknown", slow]), Task())
        hook.cancel(slow)

    async def test_the_newest_of_an_action(self, hook: RobotoHook, task: Task, way: Way) -> None:
        action = await anyio.to_thread.run_sync(script, hook, "sleep 0.3")
        old = await anyio.to_thread.run_sync(invoke_action, hook, action)
        await anyio.to_thread.run_sync(end_of, hook, old)
        since = datetime.datetime.now(datetime.UTC)
        task.context["dag_run"].data_interval_start = since
        waits = asyncio.create_task(way(sensor(action=action), task))
        await asyncio.sleep(0.3)  # nothing is new yet, and the sensor has seen that
        assert not waits.done()
        new = await anyio.to_thread.run_sync(invoke_action, hook, action)
        assert await waits == new
        assert task.pushed["_link_InvocationLink"] == hook.url(new)
        # The old one is new enough for who asks for an earlier time.
        earlier = (since - datetime.timedelta(hours=1)).isoformat()
        assert await way(sensor(action=action, since=earlier), Task()) == new

    async def test_the_newest_has_failed(self, hook: RobotoHook, task: Task, way: Way) -> None:
        action = await anyio.to_thread.run_sync(script, hook, "exit 3")
        await anyio.to_thread.run_sync(invoke_action, hook, action)
        with pytest.raises(InvocationFailedError, match="exit code 3"):
            await way(sensor(action=action), task)

    @pytest.mark.parametrize("command", ["exit 3", "exit 65"])
    @pytest.mark.parametrize("argument", ["soft_fail", "never_fail"])
    async def test_soft_fail_skips(
        self, hook: RobotoHook, task: Task, way: Way, command: str, argument: str
    ) -> None:
        started = await anyio.to_thread.run_sync(invoke, hook, f"sleep 0.2; {command}")
        with pytest.raises(AirflowSkipException):
            await way(sensor(invocation_id=started, **{argument: True}), task)
        with pytest.raises(AirflowSkipException):  # also where it has ended before the first look
            await way(sensor(invocation_id=started, **{argument: True}), Task())


@pytest.mark.parametrize("way", [poking, rescheduled], ids=lambda way: way.__name__)
async def test_its_time_may_be_over(hook: RobotoHook, task: Task, way: Way) -> None:
    slow = await anyio.to_thread.run_sync(invoke, hook, "sleep 60")
    with pytest.raises(AirflowSensorTimeout):
        await way(sensor(invocation_id=slow, timeout=0.3), task)
    with pytest.raises(AirflowSkipException):
        await way(sensor(invocation_id=slow, timeout=0.3, soft_fail=True), Task())
    assert not hook.get(slow).current.status.is_terminal
    hook.cancel(slow)


@pytest.mark.parametrize(
    ("looked_before", "kind"),
    [
        (None, AccessRejectedError),
        (datetime.datetime.now(datetime.UTC), PlatformUnavailableError),
    ],
    ids=["first", "later"],
)
async def test_a_rescheduled_look_takes_an_earlier_one_for_an_accepted_token(
    server: Any,
    task: Task,
    monkeypatch: pytest.MonkeyPatch,
    looked_before: datetime.datetime | None,
    kind: type[Exception],
) -> None:
    wrong = f'{{"conn_type": "roboto", "host": "{server.endpoint}", "password": "wr0ng-t0ken"}}'
    monkeypatch.setenv("AIRFLOW_CONN_ROBOTO_DEFAULT", wrong)
    monkeypatch.setattr(rejection, "REJECTION_LIMIT", 0.1)
    task.context["ti"].get_first_reschedule_date = lambda _: looked_before
    made = sensor(invocation_id="iv_1", mode="reschedule", timeout=60)
    with pytest.raises(kind):
        await anyio.to_thread.run_sync(made.execute, task.context)


async def test_a_poking_sensor_outlasts_a_rejection_once_it_was_answered(
    hook: RobotoHook, server: Any, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = await anyio.to_thread.run_sync(invoke, hook, "sleep 60")
    made = sensor(invocation_id=slow)
    assert await anyio.to_thread.run_sync(made.poke, task.context) is False
    wrong = f'{{"conn_type": "roboto", "host": "{server.endpoint}", "password": "wr0ng-t0ken"}}'
    with monkeypatch.context() as patch:
        patch.setenv("AIRFLOW_CONN_ROBOTO_DEFAULT", wrong)
        patch.setattr(rejection, "REJECTION_LIMIT", 0.1)
        with pytest.raises(PlatformUnavailableError):
            await anyio.to_thread.run_sync(made.poke, task.context)
    assert await anyio.to_thread.run_sync(made.poke, task.context) is False
    with pytest.raises(TaskDeferred) as deferral:
        made._defer(task.context)
    assert deferral.value.trigger.accepted
    hook.cancel(slow)


async def test_a_deferral_is_given_the_rest_of_the_time_and_its_end_is_a_timeout(
    hook: RobotoHook, task: Task
) -> None:
    slow = await anyio.to_thread.run_sync(invoke, hook, "sleep 60")
    made = sensor(invocation_id=slow, timeout=60, deferrable=True)
    task.context["ti"].start_date -= datetime.timedelta(seconds=20)
    with pytest.raises(TaskDeferred) as deferral:
        await anyio.to_thread.run_sync(made.execute, task.context)
    assert 30 < deferral.value.timeout.total_seconds() <= 40
    late = ("__fail__", {"error": "Trigger timeout"}, task.context)
    with pytest.raises(AirflowSensorTimeout):
        await anyio.to_thread.run_sync(made.resume_execution, *late)
    made.soft_fail = True
    with pytest.raises(AirflowSkipException):
        await anyio.to_thread.run_sync(made.resume_execution, *late)
    # A trigger that broke is no verdict: the sensor looks, and defers again.
    with pytest.raises(TaskDeferred):
        await anyio.to_thread.run_sync(
            made.resume_execution, "__fail__", {"error": "Trigger failure"}, task.context
        )
    hook.cancel(slow)


async def test_invalid_rendered_arguments_fail_immediately(hook: RobotoHook, task: Task) -> None:
    made = sensor(invocation_ids="{{ params.ids }}", wait_for=3)
    made.invocation_ids = ["iv_1"]
    with pytest.raises(RequestRejectedError, match="task 'wait': argument 'wait_for': it is 3 of 1"):
        await anyio.to_thread.run_sync(made.execute, task.context)


class Workerless:
    """A sensor's trigger as the triggerer runs it, and what it does to its task."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, made: InvocationSensor, task: Task, retries: int = 0
    ) -> None:
        self.xcoms: dict[str, Any] = {}

        async def push(_: Any, key: str, value: Any) -> None:
            self.xcoms[key] = value

        monkeypatch.setattr(invocations, "push_xcom", push)
        instance = task.context["ti"]
        self.trigger = SensorTrigger(**made.start_trigger_args.trigger_kwargs)
        self.trigger._task_instance = SimpleNamespace(
            dag_id=instance.dag_id,
            task_id="wait",
            task=SimpleNamespace(retries=retries),
            get_template_context=lambda: task.context,
        )

    async def end(self) -> TriggerEvent:
        return await fired_by(self.trigger)


def workerless(**arguments: Any) -> InvocationSensor:
    return sensor(start_from_trigger=True, **arguments)


@starts_in_triggerer
async def test_without_a_worker_it_succeeds(
    hook: RobotoHook, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = await anyio.to_thread.run_sync(invoke, hook, "sleep 0.3")
    one = Workerless(monkeypatch, workerless(invocation_id=started), task)
    assert type(await one.end()) is TaskSuccessEvent
    assert one.xcoms == {
        "return_value": started,
        "_link_InvocationLink": hook.url(started),
        "_link_InvocationLogsLink": f"{hook.url(started)}#log",
    }
    several = Workerless(monkeypatch, workerless(invocation_ids=[started, "iv_x"], wait_for="any"), task)
    assert type(await several.end()) is TaskSuccessEvent
    assert several.xcoms["return_value"] == [started]


@starts_in_triggerer
async def test_without_a_worker_it_waits_for_the_newest(
    hook: RobotoHook, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    action = await anyio.to_thread.run_sync(script, hook, "sleep 0.2")
    task.context["dag_run"].data_interval_start = datetime.datetime.now(datetime.UTC)
    one = Workerless(monkeypatch, workerless(action=action), task)
    ends = asyncio.create_task(one.end())
    await asyncio.sleep(0.3)  # nothing is new yet, and the trigger has seen that
    new = await anyio.to_thread.run_sync(invoke_action, hook, action)
    assert type(await ends) is TaskSuccessEvent
    assert one.xcoms["return_value"] == new


@pytest.mark.parametrize(
    ("command", "retries", "soft_fail", "expected"),
    [
        ("exit 3", 0, False, TaskFailedEvent),
        ("exit 3", 2, False, TaskFailedEvent),
        ("exit 65", 0, False, TaskFailedEvent),
        ("exit 65", 2, False, TriggerEvent),  # a worker says that it isn't to be retried
        ("exit 65", 2, True, TaskSkippedEvent),
    ],
)
@starts_in_triggerer
async def test_without_a_worker_it_fails(
    hook: RobotoHook,
    task: Task,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    retries: int,
    soft_fail: bool,
    expected: type[TriggerEvent],
) -> None:
    started = await anyio.to_thread.run_sync(invoke, hook, command)
    made = workerless(invocation_id=started, soft_fail=soft_fail)
    one = Workerless(monkeypatch, made, task, retries)
    event = await one.end()
    assert type(event) is expected
    assert "return_value" not in one.xcoms
    if expected is TriggerEvent:
        with pytest.raises(AirflowException, match="exit code 65") as raised:
            await anyio.to_thread.run_sync(made.execute_complete, task.context, event.payload)
        assert type(raised.value) is InvocationPermanentError


@starts_in_triggerer
async def test_without_a_worker_its_time_may_be_over(
    hook: RobotoHook, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = await anyio.to_thread.run_sync(invoke, hook, "sleep 60")
    for soft_fail, expected in ((False, TaskFailedEvent), (True, TaskSkippedEvent)):
        one = Workerless(monkeypatch, workerless(invocation_id=slow, soft_fail=soft_fail), task)
        one.trigger.timeout_after = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=0.5)
        assert type(await one.end()) is expected
    hook.cancel(slow)


async def test_a_cancelled_invocation_is_no_retry_matter(hook: RobotoHook, task: Task) -> None:
    slow = await anyio.to_thread.run_sync(invoke, hook, "sleep 60")
    await anyio.to_thread.run_sync(hook.cancel, slow)
    with pytest.raises(InvocationCancelledError):
        await poking(sensor(invocation_id=slow), task)


async def test_a_sensor_resumed_without_an_event_looks_again(hook: RobotoHook, task: Task) -> None:
    started = await anyio.to_thread.run_sync(invoke, hook, "true")
    await anyio.to_thread.run_sync(end_of, hook, started)
    made = sensor(invocation_id=started, deferrable=True)
    found = await anyio.to_thread.run_sync(made.resume_execution, "execute_complete", {}, task.context)
    assert found == started


async def test_a_sensor_says_what_it_waits_for_at_the_start_and_now_and_then(
    hook: RobotoHook, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = await anyio.to_thread.run_sync(invoke, hook, "sleep 60")
    made = sensor(invocation_id=started)
    with capture_logs() as said:
        for _ in range(3):
            await anyio.to_thread.run_sync(made.poke, task.context)
    assert [one["event"] for one in said].count(f"Waiting for invocation {started}") == 1
    await anyio.to_thread.run_sync(hook.cancel, started)

    monkeypatch.setattr("airflow_invocations.triggers._base.ANNOUNCEMENT_INTERVAL", 0.01)
    trigger = SensorTrigger(conn_id="roboto_default", action="a", since="2026-01-31T12:00:00Z")
    with capture_logs() as said:
        async with announced(trigger, "the newest invocation of 'a'"), asyncio.timeout(20):
            while len(said) < 3:  # noqa: ASYNC110 - what is awaited is a line of the log
                await asyncio.sleep(0.01)
    first, *others = [one["event"] for one in said]
    assert first == "Waiting for the newest invocation of 'a'"
    assert all(one.startswith("Still waiting after ") for one in others)


async def test_description_of_what_a_sensor_waits_for() -> None:
    since = datetime.datetime(2026, 1, 31, 4, tzinfo=datetime.timezone(datetime.timedelta(hours=1)))
    assert str(CompletionCriteria(ids=("iv_1",))) == "invocation iv_1"
    assert str(CompletionCriteria(ids=("iv_1", "iv_2"), required=2)) == "2 of 2 invocations: iv_1, iv_2"
    assert str(CompletionCriteria(action="upload", since=since)) == (
        "the newest invocation of 'upload' created since 2026-01-31 03:00:00 UTC"
    )
