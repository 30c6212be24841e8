"""An action without a worker, against the real server: what its trigger does is what the operator does."""

from __future__ import annotations

import asyncio
import datetime
import uuid
from types import SimpleNamespace
from typing import Any

import anyio.to_thread
import pytest
from airflow.triggers.base import TaskFailedEvent, TaskSuccessEvent, TriggerEvent

from airflow_invocations.action_log import SHOWN_AGAIN
from airflow_invocations.exceptions import (
    InvocationCancelledError,
    InvocationPermanentError,
    InvocationTimedOutError,
)
from airflow_invocations.hooks import RobotoHook
from airflow_invocations.models import (
    ActionParameter,
    DagRunProvenance,
    InvocationStatus,
    ParameterType,
)
from airflow_invocations.operators import InvokeActionOperator
from airflow_invocations.platforms.roboto.platform import RobotoPlatform
from airflow_invocations.tasks.provenance import identity_of, provenance_of
from airflow_invocations.triggers import InvokeActionTrigger, _base, invoke_action
from airflow_invocations.waiters import LOG_SETTINGS

from ...support.airflow_version import since
from .conftest import Task, connect_to, run_deferred, script
from .test_durability import Instance, count

pytestmark = [pytest.mark.anyio, since("3.3", "tasks that start in the triggerer")]
S = InvocationStatus


class Triggerer:
    """Runs the triggers of one task instance's tries as a triggerer does; XComs outlive tries, as there."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, retries: int = 0) -> None:
        self.xcoms: dict[str, Any] = {}
        self.retries = retries
        #: Set when the first XCom says that there is an invocation.
        self.invoked = asyncio.Event()
        self.states: set[str] = {"failed"}

        async def push(_: Any, key: str, value: Any) -> None:
            self.xcoms[key] = value
            if key == "invocation_id":
                self.invoked.set()

        async def pull(_: Any, key: str) -> Any:
            return self.xcoms.get(key)

        async def states(_: Any, __: Any) -> set[str]:
            return self.states

        async def xcom_id(_: Any, __: Any) -> Any:
            return self.xcoms.get("invocation_id")

        for module in (_base, invoke_action):
            monkeypatch.setattr(module, "push_xcom", push)
        monkeypatch.setattr(invoke_action, "pull_xcom", pull)
        monkeypatch.setattr(_base.BaseInvocationTrigger, "_task_states", states)
        monkeypatch.setattr(_base.BaseInvocationTrigger, "_xcom_id", xcom_id)

    def trigger(self, operator: InvokeActionOperator, task: Task) -> InvokeActionTrigger:
        """The trigger of a try; a triggerer isn't told the task's numbers."""
        trigger = InvokeActionTrigger(**operator.start_trigger_args.trigger_kwargs)
        instance = task.context["ti"]
        known = {**vars(instance), "max_tries": 0}
        context = {
            **task.context,
            "ti": SimpleNamespace(**known),
            "task": SimpleNamespace(owner="ada", retries=self.retries),
        }
        trigger._task_instance = SimpleNamespace(
            **known, task=context["task"], get_template_context=lambda: context
        )
        return trigger

    async def end(self, operator: InvokeActionOperator, task: Task) -> TriggerEvent:
        return await end_of_trigger(self.trigger(operator, task))


async def end_of_trigger(trigger: InvokeActionTrigger) -> TriggerEvent:
    steps = trigger.run()
    async with asyncio.timeout(30):
        event = await anext(steps)
    await steps.aclose()  # type: ignore[attr-defined]
    return event


def operator(action: str, **arguments: Any) -> InvokeActionOperator:
    return InvokeActionOperator(
        task_id="ask", action=action, start_from_trigger=True, **{"poll_interval": 0.1, **arguments}
    )


def first_try(**changes: Any) -> Task:
    return Task(**{"try_number": 1, "max_tries": 0, **changes})


async def test_it_invokes_waits_logs_and_ends(
    hook: RobotoHook, monkeypatch: pytest.MonkeyPatch, action_log: list[str]
) -> None:
    action = await anyio.to_thread.run_sync(
        lambda: script(
            hook,
            'for i in 1 2 3; do echo "$ROBOTO_PARAM_who $i"; sleep 0.1; done',
            parameters=[
                ActionParameter(name="who", required=True),
                ActionParameter(name="n", type=ParameterType.Integer),
            ],
        )
    )
    triggerer, task = Triggerer(monkeypatch), first_try()
    event = await triggerer.end(operator(action, parameters={"who": "ada", "n": "3"}), task)
    assert type(event) is TaskSuccessEvent
    assert event.xcoms is None
    assert action_log == ["ada 1", "ada 2", "ada 3"]
    result = triggerer.xcoms["return_value"]
    assert (result["status"], result["action"]) == ("Completed", action)
    assert triggerer.xcoms["invocation_id"] == result["invocation_id"]
    assert triggerer.xcoms["_link_InvocationLink"] == result["url"]
    assert triggerer.xcoms["_link_InvocationLogsLink"] == f"{result['url']}#log"
    record = hook.get(result["invocation_id"])
    assert record.parameter_values == {"who": "ada", "n": 3}
    told = DagRunProvenance.from_environment(record.container_parameters.env_vars)
    assert told is not None
    assert told.model_dump(mode="json", exclude_none=True) == result["provenance"]
    # What a worker that takes over the same try derives is what the trigger has derived.
    assert record.idempotency_id == identity_of(task.context, 0).idempotency_id(0)
    assert record.provenance.source.source_id == provenance_of(task.context, in_worker=False).source_id


async def test_its_log_is_shown_whole_and_of_a_flood_the_first_and_the_last_lines(
    hook: RobotoHook, monkeypatch: pytest.MonkeyPatch, action_log: list[str]
) -> None:
    most = LOG_SETTINGS.triggerer_end.lines
    action = await anyio.to_thread.run_sync(script, hook, f"seq 1 {most}")
    assert type(await Triggerer(monkeypatch).end(operator(action), first_try())) is TaskSuccessEvent
    assert action_log == [str(number) for number in range(1, most + 1)]
    action_log.clear()
    action = await anyio.to_thread.run_sync(script, hook, "seq 1 30000")
    assert type(await Triggerer(monkeypatch).end(operator(action), first_try())) is TaskSuccessEvent
    numbers = [int(line) for line in action_log]
    assert most <= len(numbers) < 5 * most
    assert numbers[-most // 2 :] == list(range(30_001 - most // 2, 30_001))
    assert numbers[: -most // 2] == list(range(1, len(numbers) - most // 2 + 1))


async def test_without_waiting_it_ends_at_once(hook: RobotoHook, monkeypatch: pytest.MonkeyPatch) -> None:
    action = await anyio.to_thread.run_sync(script, hook, "sleep 60")
    triggerer = Triggerer(monkeypatch)
    assert type(await triggerer.end(operator(action, wait=False), first_try())) is TaskSuccessEvent
    assert triggerer.xcoms["return_value"]["ended"] is None
    hook.cancel(triggerer.xcoms["invocation_id"])


@pytest.mark.parametrize(
    ("command", "retries", "expected"),
    [
        ("exit 3", 0, TaskFailedEvent),
        ("exit 3", 2, TaskFailedEvent),
        ("exit 65", 0, TaskFailedEvent),
        ("echo last; exit 65", 2, TriggerEvent),
    ],
)
async def test_a_failure_ends_the_task_unless_only_a_worker_can_refuse_its_retries(
    hook: RobotoHook,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    retries: int,
    expected: type[TriggerEvent],
) -> None:
    action = await anyio.to_thread.run_sync(script, hook, command)
    triggerer, task = Triggerer(monkeypatch, retries), first_try(max_tries=retries)
    made = operator(action, retries=retries)
    event = await triggerer.end(made, task)
    assert type(event) is expected
    assert "return_value" not in triggerer.xcoms
    if expected is TriggerEvent:
        with pytest.raises(InvocationPermanentError, match="exit code 65") as raised:
            await anyio.to_thread.run_sync(made.execute_complete, task.context, event.payload)
        assert raised.value.log_tail == ["last"]
        assert made.invocation_url == triggerer.xcoms["_link_InvocationLink"]


async def test_rejected_task_fails_with_every_problem(
    hook: RobotoHook, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    action = await anyio.to_thread.run_sync(
        lambda: script(hook, "true", parameters=[ActionParameter(name="who", required=True)])
    )
    triggerer = Triggerer(monkeypatch, retries=1)
    event = await triggerer.end(operator(action, parameters={"wot": 1}), first_try())
    assert event.payload["invocation_id"] is None
    assert event.payload["error"]["kind"] == "RequestRejectedError"
    assert "unknown parameter 'wot'; missing: 'who'" in event.payload["error"]["message"]
    assert triggerer.xcoms == {}


async def test_moved_to_another_triggerer_it_goes_on_with_the_same_invocation(
    hook: RobotoHook,
    monkeypatch: pytest.MonkeyPatch,
    action_log: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    action = await anyio.to_thread.run_sync(script, hook, "echo begun; sleep 0.7")
    triggerer, task = Triggerer(monkeypatch), first_try()
    triggerer.states = {"deferred"}
    first = triggerer.trigger(operator(action), task)
    moved = asyncio.create_task(end_of_trigger(first))
    await triggerer.invoked.wait()
    moved.cancel()
    with pytest.raises(asyncio.CancelledError):
        await moved
    await first.on_kill()  # Airflow calls it then too
    assert SHOWN_AGAIN not in capsys.readouterr().out
    assert type(await triggerer.end(operator(action), task)) is TaskSuccessEvent
    assert SHOWN_AGAIN in capsys.readouterr().out
    assert action_log[-1] == "begun"
    assert await anyio.to_thread.run_sync(count, hook, action) == 1


async def test_a_retry_goes_on_and_a_clear_begins_anew(
    hook: RobotoHook, monkeypatch: pytest.MonkeyPatch
) -> None:
    action = await anyio.to_thread.run_sync(script, hook, "sleep 0.4; exit 3")
    triggerer = Triggerer(monkeypatch, retries=3)
    task = first_try(max_tries=3)
    run = {"run_id": task.context["ti"].run_id}

    def next_try(number: int) -> Task:
        return Task(try_number=number, **run)

    made = operator(action, retries=3)
    incarnations = []
    for number in (1, 2):
        assert type(await triggerer.end(made, next_try(number))) is TaskFailedEvent
        incarnations.append(triggerer.xcoms["invocation_retry"])
    assert [word["incarnation"] for word in incarnations] == [0, 0]
    # Try 3 is an automatic retry too, try 5 isn't: try 4 ended otherwise, and then somebody cleared the task.
    assert await triggerer.trigger(made, next_try(3))._incarnation(3) == 0
    assert await triggerer.trigger(made, next_try(5))._incarnation(5) == 4
    records = [
        await anyio.to_thread.run_sync(hook.get, invocation)
        for invocation in await anyio.to_thread.run_sync(ids_of_task, hook, task)
    ]
    assert {record.idempotency_id for record in records} == set(
        identity_of(task.context, 0).idempotency_ids(2)
    )


def ids_of_task(hook: RobotoHook, task: Task) -> list[str]:
    return [one.invocation_id for one in hook.find("fleet", task.context["ti"].run_id)]


async def test_a_cleared_task_cancels_what_it_had_invoked_before(
    hook: RobotoHook, monkeypatch: pytest.MonkeyPatch
) -> None:
    action = await anyio.to_thread.run_sync(script, hook, "sleep 60")
    triggerer, task = Triggerer(monkeypatch), first_try()
    lost = asyncio.create_task(end_of_trigger(triggerer.trigger(operator(action), task)))
    await triggerer.invoked.wait()
    before = triggerer.xcoms["invocation_id"]
    lost.cancel()  # with its triggerer: nobody is told
    await asyncio.gather(lost, return_exceptions=True)
    cleared = Task(try_number=2, run_id=task.context["ti"].run_id)
    cleared.context["dag_run"].clear_number = 1
    quick = await anyio.to_thread.run_sync(script, hook, "true")
    assert type(await triggerer.end(operator(quick), cleared)) is TaskSuccessEvent
    assert triggerer.xcoms["invocation_id"] != before
    assert hook.get(before).current.status is S.Cancelled


@pytest.mark.parametrize("cancel_on_kill", [True, False])
async def test_killed_trigger_cancels(
    hook: RobotoHook, monkeypatch: pytest.MonkeyPatch, cancel_on_kill: bool
) -> None:
    action = await anyio.to_thread.run_sync(script, hook, "sleep 60")
    triggerer = Triggerer(monkeypatch)
    trigger = triggerer.trigger(operator(action, cancel_on_kill=cancel_on_kill), first_try())
    running = asyncio.create_task(end_of_trigger(trigger))
    await triggerer.invoked.wait()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await trigger.on_kill()
    record = hook.get(triggerer.xcoms["invocation_id"])
    assert (record.current.status is S.Cancelled) is cancel_on_kill
    hook.cancel(record.invocation_id)


async def test_trigger_killed_during_submission_cancels_the_new_invocation(
    hook: RobotoHook, monkeypatch: pytest.MonkeyPatch
) -> None:
    action = await anyio.to_thread.run_sync(script, hook, "sleep 60")
    arrived, go_on = asyncio.Event(), asyncio.Event()
    real = RobotoPlatform.invoke

    async def held(self: RobotoPlatform, name: str, request: Any) -> Any:
        record = await real(self, name, request)
        arrived.set()
        await go_on.wait()
        return record

    monkeypatch.setattr(RobotoPlatform, "invoke", held)
    triggerer = Triggerer(monkeypatch)
    trigger = triggerer.trigger(operator(action), first_try())
    running = asyncio.create_task(end_of_trigger(trigger))
    await arrived.wait()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    kill = asyncio.create_task(trigger.on_kill())
    go_on.set()
    await kill
    assert hook.get(triggerer.xcoms["invocation_id"]).current.status is S.Cancelled


async def test_its_time_may_be_over_and_what_the_action_says_to_that_is_shown(
    hook: RobotoHook, monkeypatch: pytest.MonkeyPatch, action_log: list[str]
) -> None:
    stops = "trap 'echo stopping; exit 1' TERM; echo begun; while :; do sleep 0.1; done"
    action = await anyio.to_thread.run_sync(script, hook, stops)
    triggerer = Triggerer(monkeypatch)
    trigger = triggerer.trigger(operator(action), first_try())
    trigger.timeout_after = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=1)
    assert type(await end_of_trigger(trigger)) is TaskFailedEvent
    assert hook.get(triggerer.xcoms["invocation_id"]).current.status is S.Cancelled
    assert (action_log[0], action_log[-1]) == ("begun", "stopping")


async def test_invocation_that_stays_queued_is_cancelled(
    start_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await anyio.to_thread.run_sync(lambda: start_server("--slots", "0"))
    connect_to(server, monkeypatch)
    hook = RobotoHook()
    action = await anyio.to_thread.run_sync(script, hook, "true")
    triggerer = Triggerer(monkeypatch)
    assert type(await triggerer.end(operator(action, queue_timeout=1), first_try())) is TaskFailedEvent
    assert hook.get(triggerer.xcoms["invocation_id"]).current.status is S.Cancelled


async def test_a_worker_takes_over_from_a_trigger_that_broke(
    hook: RobotoHook, monkeypatch: pytest.MonkeyPatch
) -> None:
    instance = Instance(await anyio.to_thread.run_sync(script, hook, "sleep 0.5"), start_from_trigger=True)
    task, made = instance.next_try(), instance.operator()
    # The trigger has invoked, and then it broke.
    triggerer = Triggerer(monkeypatch, retries=3)
    broken = asyncio.create_task(end_of_trigger(triggerer.trigger(made, task)))
    await triggerer.invoked.wait()
    broken.cancel()
    await asyncio.gather(broken, return_exceptions=True)
    task.pushed |= {**triggerer.xcoms, "invocation_id": "iv_of_an_earlier_try"}
    result = await anyio.to_thread.run_sync(
        made.resume_execution,
        "__fail__",
        {"error": "Trigger failure", "traceback": ["KeyError: 1\n"]},
        task.context,
    )
    assert (result["invocation_id"], result["status"]) == (triggerer.xcoms["invocation_id"], "Completed")
    assert await anyio.to_thread.run_sync(count, hook, made.action) == 1


async def test_a_worker_cancels_what_no_triggerer_ended_in_time(
    hook: RobotoHook, monkeypatch: pytest.MonkeyPatch
) -> None:
    instance = Instance(await anyio.to_thread.run_sync(script, hook, "sleep 60"), start_from_trigger=True)
    task, made = instance.next_try(), instance.operator()
    task.pushed["invocation_id"] = "iv_of_an_earlier_try"
    late = ("__fail__", {"error": "Trigger timeout"}, task.context)
    with pytest.raises(InvocationTimedOutError, match="no invocation was active"):
        await anyio.to_thread.run_sync(made.resume_execution, *late)
    triggerer = Triggerer(monkeypatch, retries=3)
    stuck = asyncio.create_task(end_of_trigger(triggerer.trigger(made, task)))
    await triggerer.invoked.wait()
    stuck.cancel()
    await asyncio.gather(stuck, return_exceptions=True)
    task.pushed |= triggerer.xcoms
    with pytest.raises(InvocationTimedOutError, match=triggerer.xcoms["invocation_id"]):
        await anyio.to_thread.run_sync(made.resume_execution, *late)
    assert hook.get(triggerer.xcoms["invocation_id"]).current.status is S.Cancelled


async def test_task_fails_if_a_user_cancels_the_invocation(
    hook: RobotoHook, monkeypatch: pytest.MonkeyPatch
) -> None:
    action = await anyio.to_thread.run_sync(script, hook, "sleep 60")
    triggerer = Triggerer(monkeypatch, retries=2)
    ends = asyncio.create_task(triggerer.end(operator(action), first_try()))
    await triggerer.invoked.wait()
    await anyio.to_thread.run_sync(
        lambda: hook.call(lambda platform: platform.cancel(triggerer.xcoms["invocation_id"]))
    )
    event = await ends
    assert event.payload["error"]["kind"] == InvocationCancelledError.__name__


async def test_without_durability_a_try_is_its_own_name(
    hook: RobotoHook, monkeypatch: pytest.MonkeyPatch
) -> None:
    action = await anyio.to_thread.run_sync(script, hook, "true")
    triggerer, task = Triggerer(monkeypatch), first_try()
    await triggerer.end(operator(action, durable=False), task)
    record = hook.get(triggerer.xcoms["invocation_id"])
    assert record.idempotency_id == str(uuid.UUID(str(task.context["ti"].id)))


@pytest.mark.parametrize("multiple_outputs", [True, False])
async def test_the_xcoms_are_the_same_in_a_worker_deferred_and_without_one(
    hook: RobotoHook, monkeypatch: pytest.MonkeyPatch, multiple_outputs: bool
) -> None:
    action = await anyio.to_thread.run_sync(script, hook, "true")

    async def by_worker(**arguments: Any) -> set[str]:
        task = first_try()
        made = InvokeActionOperator(
            task_id="ask", action=action, multiple_outputs=multiple_outputs, poll_interval=0.1, **arguments
        )
        result = await run_deferred(made, task)
        # These two are pushed by Airflow's task runner.
        return {*task.pushed, "return_value", *(result if multiple_outputs else ())}

    in_worker, deferred = await by_worker(), await by_worker(deferrable=True, defer_after=0)
    triggerer = Triggerer(monkeypatch)
    await triggerer.end(operator(action, multiple_outputs=multiple_outputs), first_try())
    assert in_worker == deferred == set(triggerer.xcoms)
    assert ("url" in triggerer.xcoms) is multiple_outputs
