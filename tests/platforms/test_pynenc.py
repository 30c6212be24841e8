"""What only pynenc has: stored objects, retries and controls of its own, tasks that heed, lost messages."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import json
import logging
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.exceptions import TaskDeferred

from airflow_invocations.exceptions import InvocationTimedOutError
from airflow_invocations.hooks import InvocationHook
from airflow_invocations.models import (
    CaughtUp,
    EventFilter,
    InvocationEvent,
    InvocationRecord,
    InvocationStatus,
    cursor_at,
)
from airflow_invocations.operators import InvokeActionOperator
from airflow_invocations.platforms import CannotStopError, Platform, UnsupportedError
from airflow_invocations.platforms import (
    polling as polled_events,
)
from airflow_invocations.platforms.overdue import Overdue
from airflow_invocations.platforms.pynenc.platform import PynencPlatform
from airflow_invocations.triggers import InvocationTrigger
from airflow_invocations.waiters import cancel_and_confirm

from ..integration.airflow.conftest import Task, run_deferred
from ..support.task_context import record_state
from .conftest import CONN_ID, Asking, Late, end_of
from .deployment import executions, release
from .on_pynenc import OnRedis, OnSQLite, task
from .test_platform import begun

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.parametrize(
        "under_test", [OnSQLite, OnRedis], indirect=True, scope="session", ids=lambda one: one.name
    ),
]
S = InvocationStatus


def app_of(platform: Platform) -> Any:
    """The app that a platform calls through, to do to its backend what no caller would."""
    assert isinstance(platform, PynencPlatform)
    assert platform._cluster is not None
    return platform._cluster._app


def deferrable(name: str, asking: Asking, **arguments: Any) -> InvokeActionOperator:
    return InvokeActionOperator(
        task_id="ask",
        action=task(name),
        parameters={"folder": str(asking.folder)},
        conn_id=CONN_ID,
        deferrable=True,
        poll_interval=0.1,
        defer_after=0,
        **arguments,
    )


def with_command(folder: Path) -> dict[str, Any]:
    """What jsonpickle, when it loads it, executes."""
    return {"py/reduce": [{"py/function": "os.mkdir"}, {"py/tuple": [str(folder / "executed")]}]}


class TestOutputs:
    @pytest.mark.parametrize(
        ("what", "expected"),
        [
            ("nothing", None),
            ("tuple", ["a", [1, 2.5]]),
            ("set", {"a": [3]}),
            ("large", ["x" * 100] * 100),
        ],
    )
    async def test_json_and_what_is_nearly_that(
        self, hook: InvocationHook, platform: Platform, asking: Asking, what: str, expected: Any
    ) -> None:
        invoked = await platform.invoke(task("returns"), asking.request(what=what))
        await end_of(hook, invoked.invocation_id)
        assert await platform.outputs(invoked.invocation_id) == expected

    @pytest.mark.parametrize(
        ("what", "hint"),
        [
            ("object", r"it\['readings'\]\[0\] isn't JSON but py/object tests.platforms.fleet_tasks.Reading"),
            ("nan", "NaN is not a number in JSON"),
            ("code", "it isn't JSON but py/function builtins.print"),
        ],
    )
    async def test_anything_else_is_named_and_does_not_fail_the_task(
        self,
        hook: InvocationHook,
        platform: Platform,
        asking: Asking,
        what: str,
        hint: str,
    ) -> None:
        invoked = await platform.invoke(task("returns"), asking.request(what=what))
        await end_of(hook, invoked.invocation_id)
        with pytest.raises(UnsupportedError, match=hint):
            await platform.outputs(invoked.invocation_id)
        parameters = {"folder": str(asking.folder), "what": what}
        operator = InvokeActionOperator(
            task_id="ask", action=task("returns"), parameters=parameters, conn_id=CONN_ID, poll_interval=0.1
        )
        result = await asyncio.to_thread(operator.execute, Task().context)
        assert (result["status"], result["outputs"]) == ("Completed", None)

    async def test_nothing_that_is_stored_is_executed_here(
        self, hook: InvocationHook, platform: Platform, asking: Asking, tmp_path: Path
    ) -> None:
        good = await platform.invoke(task("completes"), asking.request())
        bad = await platform.invoke(task("fails"), asking.request())
        for one in (good, bad):
            await end_of(hook, one.invocation_id)
        backend = app_of(platform).state_backend
        command = json.dumps(with_command(tmp_path))
        failure = {"error_name": "ValueError", "pynenc_error": False, "error_data": command}
        await asyncio.to_thread(backend._set_result, good.invocation_id, command)
        await asyncio.to_thread(backend._set_exception, bad.invocation_id, json.dumps(failure))
        with pytest.raises(UnsupportedError, match="py/reduce"):
            await platform.outputs(good.invocation_id)
        why = (await platform.get(bad.invocation_id)).current.detail
        assert why == f"ValueError: {tmp_path}/executed"
        assert not (tmp_path / "executed").exists()
        # It isn't for want of a command that works.
        await asyncio.to_thread(backend.get_result, good.invocation_id)
        assert (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("custom", "NoSuchSensor: lidar, 3 are known"),
        ("bare", "KeyError"),
        ("os", "FileNotFoundError: 2, No such file, a.bag"),
        ("large", "ValueError: " + "x" * 1988),
    ],
)
async def test_a_failure_says_what_was_raised(
    hook: InvocationHook, platform: Platform, asking: Asking, what: str, expected: str
) -> None:
    invoked = await platform.invoke(task("raises"), asking.request(what=what))
    record = await end_of(hook, invoked.invocation_id)
    assert (record.current.status, record.current.detail) == (S.Failed, expected)


async def test_its_own_retries_are_no_end(hook: InvocationHook, platform: Platform, asking: Asking) -> None:
    invoked = await platform.invoke(task("tries_twice"), asking.request())
    record = await end_of(hook, invoked.invocation_id)
    assert record.current.status is S.Completed
    assert [step.platform_status for step in record.status] == [
        "registered", "pending", "running", "retry", "pending", "running", "success",
    ]  # fmt: skip
    assert executions(asking.folder) == 2


async def test_invocation_rejected_by_concurrency_control_has_failed(
    hook: InvocationHook, platform: Platform, asking: Asking
) -> None:
    first = await platform.invoke(task("alone"), asking.request())
    await begun(asking.folder)
    second = await platform.invoke(task("alone"), asking.request())
    record = await end_of(hook, second.invocation_id)
    assert record.current.status is S.Failed
    assert record.current.platform_status == "concurrency_controlled_final"
    assert record.current.detail == "its concurrency control did not allow it to run"
    release(asking.folder)
    assert (await end_of(hook, first.invocation_id)).current.status is S.Completed


class TestCancel:
    async def test_a_task_that_looks_is_stopped(
        self, hook: InvocationHook, platform: Platform, asking: Asking
    ) -> None:
        invoked = await platform.invoke(task("heeds"), asking.request())
        await begun(asking.folder)
        record = await cancel_and_confirm(platform, invoked.invocation_id, seconds=10.0)
        assert record is not None
        assert (record.current.status, record.current.platform_status) == (S.Cancelled, "failed")
        assert record.current.detail == "InterruptedError: asked to stop"

    async def test_a_deferred_task_that_is_out_of_time_says_what_goes_on_without_it(
        self, hook: InvocationHook, asking: Asking, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("airflow_invocations.platforms.pynenc.platform.CANCEL_TIMEOUT", 0.2)
        ours = Task()
        operator = deferrable("waits", asking, execution_timeout=datetime.timedelta(seconds=0.5))
        with pytest.raises(InvocationTimedOutError) as late:
            await run_deferred(operator, ours)
        invocation_id = ours.pushed["invocation_id"]
        assert f"invocation {invocation_id}: timed out" in str(late.value)
        assert "is running and can't be stopped from outside" in str(late.value)
        release(asking.folder)
        assert (await end_of(hook, invocation_id)).current.status is S.Completed

    async def test_a_deferred_task_that_is_killed_says_so_too(
        self,
        hook: InvocationHook,
        asking: Asking,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        monkeypatch.setattr("airflow_invocations.platforms.pynenc.platform.CANCEL_TIMEOUT", 0.2)
        monkeypatch.setattr(InvocationTrigger, "log", logging.getLogger("trigger"))
        ours = Task()
        with pytest.raises(TaskDeferred) as deferred:
            await asyncio.to_thread(deferrable("waits", asking).execute, ours.context)
        await begun(asking.folder)
        record_state(deferred.value.trigger, "failed")
        await deferred.value.trigger.on_kill()
        invocation_id = ours.pushed["invocation_id"]
        said = [line.getMessage() for line in caplog.records if line.name == "trigger"]
        assert said[:2] == ["The task was killed", f"Cancelling invocation {invocation_id}"]
        assert "can't be stopped from outside" in said[2]
        assert len(said) == 3
        release(asking.folder)
        assert (await end_of(hook, invocation_id)).current.status is S.Completed

    async def test_interrupted_registration_is_continued(
        self, late: Late, asking: Asking, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with await late.hook.connect() as platform:
            invoked = await platform.invoke(task("completes"), asking.request())
            with monkeypatch.context() as patch:
                patch.setattr(app_of(platform).orchestrator, "set_invocation_exception", broken)
                with pytest.raises(BrokenOff):
                    await platform.cancel(invoked.invocation_id)
            assert (await platform.get(invoked.invocation_id)).current.platform_status == "running"
            await platform.cancel(invoked.invocation_id)
            record = await platform.get(invoked.invocation_id)
        assert record.current.status is S.Cancelled
        assert record.current.detail == "RuntimeError: cancelled before it started"

    async def test_without_the_code_of_its_task_it_is_left_alone(
        self, late: Late, asking: Asking, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with await late.hook.connect() as platform:
            invoked = await platform.invoke(task("completes"), asking.request())
            app = app_of(platform)
            monkeypatch.setattr(app, "_tasks", {})
            monkeypatch.setattr(app.theirs, "_tasks", {})
            monkeypatch.setitem(sys.modules, "tests.platforms.fleet_tasks", None)
            with pytest.raises(CannotStopError, match="can't be stopped from here: there is no task"):
                await platform.cancel(invoked.invocation_id)
            # Whoever waits needs none of it.
            record = await platform.get(invoked.invocation_id)
            assert record.current.platform_status == "registered"
            assert [one.status for one in await platform.statuses([invoked.invocation_id])] == [S.Queued]


class TestOnce:
    async def test_a_message_that_was_lost_is_sent_again(
        self,
        hook: InvocationHook,
        platform: Platform,
        asking: Asking,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        request = asking.request()
        with monkeypatch.context() as patch:
            patch.setattr(app_of(platform).broker, "route_invocations", broken)
            with pytest.raises(BrokenOff):
                await platform.invoke(task("completes"), request)
        sent: list[str] = []
        send = app_of(platform).broker.route_invocation
        monkeypatch.setattr(
            app_of(platform).broker, "route_invocation", lambda one: (sent.append(one), send(one))
        )
        young = await platform.invoke(task("completes"), request)
        assert (sent, young.current.platform_status) == ([], "registered")
        monkeypatch.setattr("airflow_invocations.platforms.pynenc.cluster._LOST_MESSAGE", 0.0)
        old = await platform.invoke(task("completes"), request)
        assert sent == [old.invocation_id] == [young.invocation_id]
        assert (await end_of(hook, old.invocation_id)).current.status is S.Completed
        assert executions(asking.folder) == 1

    async def test_one_whose_message_was_lost_is_sent_again_while_it_is_waited_for(
        self,
        hook: InvocationHook,
        platform: Platform,
        asking: Asking,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        request = asking.request()
        with monkeypatch.context() as patch:
            patch.setattr(app_of(platform).broker, "route_invocations", lambda ids: None)
            lost = (await platform.invoke(task("completes"), request)).invocation_id
        assert [one.status for one in await platform.statuses([lost])] == [S.Queued]
        monkeypatch.setattr("airflow_invocations.platforms.pynenc.cluster._LOST_MESSAGE", 0.0)
        monkeypatch.setattr("airflow_invocations.platforms.overdue.FIRST_LOOK", 0.0)
        platform._overdue = Overdue()  # type: ignore[attr-defined]
        async with asyncio.timeout(60):
            while [one.status for one in await platform.statuses([lost])] != [S.Completed]:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        assert executions(asking.folder) == 1

    async def test_concurrent_caller_waits_for_the_registration(
        self,
        hook: InvocationHook,
        platform: Platform,
        asking: Asking,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        from airflow_invocations.platforms.pynenc.cluster import invocation_id_of

        request = asking.request()
        once = request.idempotency_id or ""
        app = app_of(platform)
        registered: list[object] = []
        register = app.orchestrator.register_new_invocations
        monkeypatch.setattr(
            app.orchestrator,
            "register_new_invocations",
            lambda some: (registered.append(some), register(some)),
        )
        # Another process has found nothing, as this one does, and is about to register it.
        assert app.trigger.claim_trigger_run(f"airflow-registers-{invocation_id_of(once)}", 1)
        asked_at = time.monotonic()
        record = await platform.invoke(task("completes"), request)
        assert time.monotonic() - asked_at >= 0.5, "nobody waited for the other"
        # The other had died; who stalled instead finds that it has come too late.
        monkeypatch.setattr(app.trigger, "claim_trigger_run", lambda *_: True)
        look = app.orchestrator.get_invocation_status_record
        looks = iter([KeyError("stale")])

        def stale(one: str) -> Any:
            for error in looks:
                raise error
            return look(one)

        monkeypatch.setattr(app.orchestrator, "get_invocation_status_record", stale)
        assert (await platform.invoke(task("completes"), request)).invocation_id == record.invocation_id
        assert len(registered) == 1
        await end_of(hook, record.invocation_id)
        assert executions(asking.folder) == 1

    async def test_by_processes_at_once(
        self, hook: InvocationHook, platform: Platform, tmp_path: Path
    ) -> None:
        askings = [Asking(tmp_path / f"asked-{number}") for number in range(20)]
        for asking in askings:
            asking.folder.mkdir()
        requests = [asking.request() for asking in askings]
        settings = json.dumps(dataclasses.asdict(hook.get_conn()._settings))  # type: ignore[attr-defined]
        asked = json.dumps([[task("completes"), request.wire()] for request in requests])
        command = [sys.executable, "-m", "tests.platforms.invoke_all", settings, asked]
        said = await asyncio.to_thread(at_once, command, 2)
        assert len(set(said)) == 1
        ids = json.loads(said[0])
        assert len(set(ids)) == len(askings)
        for invocation_id in ids:
            await end_of(hook, invocation_id)
        assert [executions(asking.folder) for asking in askings] == [1] * len(askings)


class TestEvents:
    async def test_an_end_that_is_not_in_the_history_is_told_all_the_same(
        self, late: Late, asking: Asking, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(polled_events, "POLL_INTERVAL", 0.02)
        async with await late.hook.connect() as platform:
            invoked = await platform.invoke(task("completes"), asking.request())
            async with asyncio.timeout(20), platform.events(EventFilter(), None) as stream:
                events = aiter(stream)
                assert isinstance(await anext(events), CaughtUp)
                backend = app_of(platform).state_backend
                write = backend.add_history
                monkeypatch.setattr(
                    backend,
                    "add_history",
                    lambda one, record, by: None if record.status.is_final() else write(one, record, by),
                )
                await platform.cancel(invoked.invocation_id)
                event = await anext(events)
            record = await platform.get(invoked.invocation_id)
        assert isinstance(event, InvocationEvent)
        assert (event.invocation_id, event.status) == (invoked.invocation_id, S.Cancelled)
        assert event.at == record.current.timestamp

    async def test_the_history_is_read_in_pages_whatever_their_size(
        self, late: Late, asking: Asking, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("airflow_invocations.platforms.pynenc.history.ROWS", 2)
        monkeypatch.setattr("airflow_invocations.platforms.pynenc.platform.BATCH", 2)
        began = datetime.datetime.now(datetime.UTC)
        async with await late.hook.connect() as platform:
            invoked = [await platform.invoke(task("completes"), asking.request()) for _ in range(5)]
            ids = [one.invocation_id for one in invoked]
            backend = app_of(platform).state_backend
            (line,) = await asyncio.to_thread(backend.get_history, ids[0])
            # More lines of one moment than are read at a time.
            for one in ids:
                same = dataclasses.replace(line, invocation_id=one)
                same._timestamp = line._timestamp
                await asyncio.to_thread(backend._add_histories, [one], same)
            newest = await platform.newest(task("completes"), began)
            assert newest is not None
            assert newest.invocation_id == ids[-1]
            for one in ids:
                await platform.cancel(one)
            told: list[Any] = []
            cursor = cursor_at(began)
            async with asyncio.timeout(20), platform.events(EventFilter(), cursor) as stream:
                async for event in stream:
                    if isinstance(event, CaughtUp):
                        break
                    told.append(event)
            found = await platform.records(ids)
        assert [(one.invocation_id, one.status) for one in told] == [(one, S.Cancelled) for one in ids]
        assert [one.invocation_id for one in found if isinstance(one, InvocationRecord)] == ids

    async def test_internal_tasks_of_the_cluster_are_not_reported(self, late: Late, asking: Asking) -> None:
        from pynenc.call import Call

        began = datetime.datetime.now(datetime.UTC)
        async with await late.hook.connect() as platform:
            app = app_of(platform)
            # As a runner does.
            app.register_core_tasks()
            own = next(one for one in app.tasks.values() if one.task_id.module == "pynenc.core_tasks")
            await asyncio.to_thread(app.orchestrator.route_call, Call(own, own.args()))
            ours = await platform.invoke(task("completes"), asking.request())
            assert isinstance(platform, PynencPlatform)
            listed, following = await platform._call(lambda cluster: cluster.history.changes(None, began))
        assert ([one.invocation_id for one in listed], following) == ([ours.invocation_id], None)


async def test_purged_invocation_is_known_by_its_end(
    hook: InvocationHook, platform: Platform, asking: Asking
) -> None:
    invoked = await platform.invoke(task("completes"), asking.request(answer=43))
    before = await end_of(hook, invoked.invocation_id)
    await asyncio.to_thread(app_of(platform).orchestrator.purge)
    assert await platform.get(invoked.invocation_id) == before
    assert [one.status for one in await platform.statuses([invoked.invocation_id])] == [S.Completed]
    assert await platform.outputs(invoked.invocation_id) == {"answer": 43}
    await platform.cancel(invoked.invocation_id)


async def test_a_caller_does_not_describe_itself_in_the_backend(late: Late, asking: Asking) -> None:
    async with await late.hook.connect() as platform:
        await platform.invoke(task("completes"), asking.request())
        backend = app_of(platform).state_backend
        with pytest.raises((KeyError, ValueError), match="found"):
            await asyncio.to_thread(backend.get_app_info)


async def test_any_number_of_waits_has_one_thread_and_few_files(
    hook: InvocationHook, platform: Platform, asking: Asking
) -> None:
    async def look(number: int) -> None:
        async with await hook.connect() as one:
            await one.statuses([f"00000000-0000-5000-8000-{number:012}"])

    await look(0)
    before = open_files()
    await asyncio.gather(*(look(number) for number in range(150)))
    assert open_files() < before + 100
    assert len([one for one in threading.enumerate() if one.name.startswith("invocations-pynenc")]) == 1


class BrokenOff(Exception):
    """The process dies here."""


def broken(*_: Any) -> None:
    raise BrokenOff


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def at_once(command: list[str], processes: int) -> list[str]:
    """What so many processes say that are told to begin at the same time, once all of them are ready."""
    started = [
        subprocess.Popen(
            command, cwd=Path(__file__).parents[2], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(processes)
    ]
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in started:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    return [process.communicate()[0] for process in started]
