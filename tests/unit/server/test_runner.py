"""The runner at its bad moments: what ended stays ended, what didn't runs again, and nothing hangs."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import random
import signal
import subprocess
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from sqlalchemy.exc import OperationalError

from airflow_invocations.models import (
    ContainerParameters,
    InvocationRecord,
    InvocationStatus,
    LogProcess,
)
from airflow_invocations.server import outages
from airflow_invocations.server.db import CheckedInvocation, Store
from airflow_invocations.server.execution import attempt, processes, runner, termination
from airflow_invocations.server.execution.logs import LogFiles, LogWriter
from airflow_invocations.server.execution.runner import Runner, in_loop
from airflow_invocations.server.execution.workspace import Workspace
from airflow_invocations.server.settings import ServerSettings

from .conftest import ORG, create, invoke, runner_of

pytestmark = pytest.mark.anyio

S = InvocationStatus
ENDPOINT = "http://127.0.0.1:1"
TERMINAL = [status for status in S if status.is_terminal]


@pytest.fixture
def settings(tmp_path: Path) -> ServerSettings:
    return ServerSettings(data_dir=tmp_path, slots=2, grace=0.5)


@pytest.fixture
def logs(settings: ServerSettings) -> LogFiles:
    return LogFiles(settings.logs)


@pytest.fixture
def run(store: Store, logs: LogFiles, settings: ServerSettings) -> Callable[..., Any]:
    """`async with run()`: a runner works, with other settings if some are given."""

    @asynccontextmanager
    async def run(**changed: Any) -> AsyncIterator[Runner]:
        one = runner_of(store, logs, replace(settings, **changed))
        await one.start(ENDPOINT)
        try:
            yield one
        finally:
            async with asyncio.timeout(20):
                await one.stop()

    return run


def script(store: Store, text: str, **fields: Any) -> str:
    """An invocation of an action that runs a shell script; its id."""
    name = f"script-{os.urandom(4).hex()}"
    create(store, name, container_parameters=ContainerParameters(command=["sh", "-c", text]), **fields)
    return invoke(store, name).invocation_id


async def reached(store: Store, invocation_id: str, *statuses: InvocationStatus) -> InvocationRecord:
    """Wait until an invocation takes one of these statuses."""
    changed = asyncio.Event()
    store.database.listen_to_events(in_loop(asyncio.get_running_loop(), lambda _: changed.set()))
    async with asyncio.timeout(15):
        while (record := store.invocations.get(invocation_id)).last_status not in statuses:
            await changed.wait()
            changed.clear()
    return record


async def said(logs: LogFiles, invocation_id: str, text: str) -> None:
    """Wait until an action has written something."""
    grown = asyncio.Event()
    loop = asyncio.get_running_loop()
    logs.listen(lambda *_: loop.call_soon_threadsafe(grown.set) and None)
    async with asyncio.timeout(15):
        while text not in lines(logs, invocation_id):
            await grown.wait()
            grown.clear()


def lines(logs: LogFiles, invocation_id: str) -> list[str]:
    return [record.log for record in logs.read(CheckedInvocation(invocation_id, ORG)).items]


def all_lines(logs: LogFiles, invocation_id: str) -> Iterator[str]:
    cursor = None
    while True:
        page = logs.read(CheckedInvocation(invocation_id, ORG), cursor)
        yield from (record.log for record in page.items)
        if not page.has_next:
            return
        cursor = page.last_read


async def reached_again(store: Store, invocation_id: str, status: InvocationStatus) -> InvocationRecord:
    """Wait until an invocation takes a status for the second time."""
    changed = asyncio.Event()
    store.database.listen_to_events(in_loop(asyncio.get_running_loop(), lambda _: changed.set()))
    async with asyncio.timeout(15):
        while True:
            record = store.invocations.get(invocation_id)
            if record.last_status is status and steps(record).count(status) > 1:
                return record
            await changed.wait()
            changed.clear()


def steps(record: InvocationRecord) -> list[InvocationStatus]:
    return [step.status for step in record.status]


def running(invocation_id: str) -> list[psutil.Process]:
    return termination.marked_processes("ROBOTO_INVOCATION_ID", {invocation_id})


async def test_an_action_runs_through_all_statuses(store: Store, logs: LogFiles, run: Any) -> None:
    one = script(store, "echo out; echo err >&2")
    async with run():
        record = await reached(store, one, *TERMINAL)
    assert steps(record) == [S.Queued, S.Scheduled, S.Downloading, S.Processing, S.Uploading, S.Completed]
    assert record.current.detail is None
    assert sorted(lines(logs, one)) == ["err", "out"]
    assert {item.process for item in logs.read(CheckedInvocation(one, ORG)).items} == {LogProcess.Action}


@pytest.mark.parametrize(
    ("text", "detail", "code"),
    [
        ("exit 3", "exit code 3", 3),
        ("echo first >&2; echo 'the reason' >&2; echo; exit 64", "exit code 64: the reason", 64),
        ("kill -KILL $$", "ended by SIGKILL", None),
        ("printf '\\377\\n' >&2; exit 1", "exit code 1: �", 1),
        ("printf '%01500d' 7 >&2; exit 1", "exit code 1: " + "0" * 999 + "7", 1),
    ],
)
async def test_a_failure_says_how_and_the_last_line_of_stderr(
    store: Store, run: Any, text: str, detail: str, code: int | None
) -> None:
    one = script(store, text)
    async with run():
        record = await reached(store, one, *TERMINAL)
    assert (record.last_status, record.current.detail) == (S.Failed, detail)
    assert record.current.exit_code == code
    assert S.Uploading not in steps(record)


async def test_a_failure_behind_a_progress_bar_has_its_last_state(store: Store, run: Any) -> None:
    draw = r"i=1; while [ $i -le 100 ]; do printf '\r%3d%%|####| part %d/100' $i $i >&2; i=$((i+1)); done"
    one, other = script(store, f"{draw}; exit 3"), script(store, f"{draw}; echo >&2; exit 3")
    async with run():
        for invocation in (one, other):
            record = await reached(store, invocation, *TERMINAL)
            assert record.current.detail == "exit code 3: 100%|####| part 100/100"


async def test_a_progress_bar_is_seen_while_it_is_drawn(store: Store, logs: LogFiles, run: Any) -> None:
    one = script(store, r"printf '\r 1%%|#   |'; printf '\r 2%%|#   |'; sleep 600")
    async with run():
        await said(logs, one, " 2%|#   |")
        store.aborts.request(one, "enough", ORG)
        await reached(store, one, S.Cancelled)
    assert lines(logs, one)[-1] == " 2%|#   |"


async def test_no_slots_run_nothing(store: Store, logs: LogFiles, tmp_path: Path) -> None:
    one = script(store, "true")
    none = runner_of(store, logs, ServerSettings(data_dir=tmp_path, slots=0))
    await none.start(ENDPOINT)
    two = script(store, "true")
    await asyncio.sleep(0.1)  # nothing is to happen, so there is nothing to wait for
    await none.stop()
    assert [store.invocations.get(each).last_status for each in (one, two)] == [S.Queued, S.Queued]


async def test_no_more_run_at_once_than_there_are_slots(store: Store, run: Any, tmp_path: Path) -> None:
    counting = f"echo + >> {tmp_path}/count; sleep 0.1; echo - >> {tmp_path}/count"
    ids = [script(store, counting) for _ in range(6)]
    async with run():
        for one in ids:
            assert (await reached(store, one, *TERMINAL)).last_status is S.Completed
    at_once = most = 0
    for sign in (tmp_path / "count").read_text().split():
        at_once += 1 if sign == "+" else -1
        most = max(most, at_once)
    assert most == 2


async def test_a_timeout_ends_the_whole_group_and_says_so(
    store: Store, logs: LogFiles, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempt, "MINUTE", 0.01)
    one = script(store, "trap '' TERM; sleep 60 & echo up; while :; do sleep 0.05; done", timeout=30)
    async with run():
        record = await reached(store, one, *TERMINAL)
        assert (record.last_status, record.current.detail) == (S.Failed, "timed out after 30 min")
        assert lines(logs, one) == ["up"]
        assert running(one) == []


async def test_a_cancel_ends_the_whole_group_and_keeps_what_it_said(
    store: Store, logs: LogFiles, run: Any
) -> None:
    one = script(store, "trap 'echo bye; exit 0' TERM; sleep 60 & echo up; wait")
    async with run():
        await said(logs, one, "up")
        store.aborts.request(one, "cancelled by ada", ORG)
        record = await reached(store, one, *TERMINAL)
        assert (record.last_status, record.current.detail) == (S.Cancelled, "cancelled by ada")
        assert lines(logs, one) == ["up", "bye"]
        assert running(one) == []


async def test_a_cancel_before_the_process_starts_starts_none(
    store: Store, logs: LogFiles, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = script(store, "echo up")
    claim = store.claims.claim

    def claim_and_abort(*arguments: Any) -> InvocationRecord | None:
        record = claim(*arguments)
        if record is not None:
            store.aborts.request(one, "too soon", ORG)
        return record

    monkeypatch.setattr(store.claims, "claim", claim_and_abort)
    async with run():
        record = await reached(store, one, *TERMINAL)
    assert (record.last_status, record.current.detail) == (S.Cancelled, "too soon")
    assert lines(logs, one) == []


NO_ROOM = OSError(errno.ENOSPC, "No space left on device")


class Failing:
    """A call that fails with an error until it is told to work."""

    def __init__(self, call: Callable[..., Any], error: Exception) -> None:
        self.call, self.error, self.works = call, error, False
        self.failed = threading.Event()

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        if self.works:
            return self.call(*arguments, **named)
        self.failed.set()
        raise self.error

    async def until_it_fails(self) -> None:
        assert await asyncio.to_thread(self.failed.wait, 15)


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outages, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(outages, "LONGEST_PAUSE", 0.05)


@pytest.mark.usefixtures("quick_retries")
class TestOutages:
    """The server's own troubles are never an action's verdict."""

    async def test_an_action_waits_while_its_log_cannot_be_written_and_no_line_is_lost(
        self, store: Store, logs: LogFiles, run: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        failing = Failing(LogWriter._write, NO_ROOM)
        monkeypatch.setattr(LogWriter, "_write", lambda *given: failing(*given))
        one = script(store, "i=0; while [ $i -lt 20000 ]; do echo $i; i=$((i+1)); done; echo last >&2")
        async with run():
            await failing.until_it_fails()
            await reached(store, one, S.Processing)
            failing.works = True
            record = await reached(store, one, *TERMINAL)
        assert (record.last_status, record.current.detail) == (S.Completed, None)
        written = list(all_lines(logs, one))
        assert [line for line in written if line != "last"] == [str(number) for number in range(20000)]
        assert "last" in written

    async def test_an_action_that_ends_while_its_log_cannot_be_written_keeps_its_end_and_its_lines(
        self, store: Store, logs: LogFiles, run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        failing = Failing(LogWriter._write, NO_ROOM)
        monkeypatch.setattr(LogWriter, "_write", lambda *given: failing(*given))
        one = script(store, f"echo ran >> {tmp_path}/ran; echo the reason >&2; exit 3")
        async with run():
            await failing.until_it_fails()
            failing.works = True
            record = await reached(store, one, *TERMINAL)
        assert (record.last_status, record.current.detail) == (S.Failed, "exit code 3: the reason")
        assert lines(logs, one) == ["the reason"]
        assert (tmp_path / "ran").read_text() == "ran\n"

    async def test_a_stop_while_the_log_cannot_be_written_does_not_wait_for_room(
        self, store: Store, run: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        failing = Failing(LogWriter._write, NO_ROOM)
        monkeypatch.setattr(LogWriter, "_write", lambda *given: failing(*given))
        one = script(store, "echo up; exec sleep 60")
        async with run():
            await failing.until_it_fails()
        assert store.invocations.get(one).last_status is S.Queued
        assert running(one) == []

    async def test_a_log_that_cannot_be_opened_has_the_invocation_wait(
        self, store: Store, settings: ServerSettings, run: Any
    ) -> None:
        settings.logs.write_text("not a folder")
        one = script(store, "true")
        async with run():
            queued_again = await reached_again(store, one, S.Queued)
            assert "the server could not run this" in str(queued_again.current.detail)
            settings.logs.unlink()
            record = await reached(store, one, *TERMINAL)
        assert record.last_status is S.Completed

    @pytest.mark.parametrize(
        "error",
        [
            OSError(errno.EMFILE, "Too many open files"),
            OSError(errno.EAGAIN, "Resource temporarily unavailable"),
            MemoryError(),
            OperationalError("SELECT", {}, Exception("disk I/O error")),
            RuntimeError("can't start new thread"),
        ],
        ids=lambda error: type(error).__name__,
    )
    async def test_invocation_waits_while_the_server_lacks_resources(
        self, store: Store, run: Any, monkeypatch: pytest.MonkeyPatch, error: Exception
    ) -> None:
        failing = Failing(processes.start, error)
        monkeypatch.setattr(processes, "start", failing)
        one = script(store, "true")
        async with run():
            # More often than a runner may be lost: outages aren't counted.
            for _ in range(5):
                await failing.until_it_fails()
                failing.failed.clear()
            failing.works = True
            record = await reached(store, one, *TERMINAL)
        assert record.last_status is S.Completed

    async def test_others_run_while_one_waits_for_an_outage_to_end(
        self, store: Store, run: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(outages, "FIRST_PAUSE", 600.0)
        monkeypatch.setattr(outages, "LONGEST_PAUSE", 600.0)
        failing = Failing(processes.start, NO_ROOM)
        monkeypatch.setattr(processes, "start", failing)
        one = script(store, "true")
        async with run():
            await reached_again(store, one, S.Queued)
            failing.works = True
            assert (await reached(store, script(store, "true"), *TERMINAL)).last_status is S.Completed
            assert store.invocations.get(one).last_status is S.Queued

    @pytest.mark.parametrize("status", [S.Processing, S.Uploading, S.Completed], ids=str)
    async def test_a_status_that_the_database_rejects_is_recorded_when_it_does_not(
        self,
        store: Store,
        run: Any,
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
        status: InvocationStatus,
    ) -> None:
        name = "set_processing" if status is S.Processing else "transition_owned"
        when = {"set_processing": lambda *_: True, "transition_owned": lambda _, given, *__: given is status}[
            name
        ]
        rejecting = Rejecting(getattr(store.claims, name), 3, when)
        monkeypatch.setattr(store.claims, name, rejecting)
        one = script(store, f"echo ran >> {tmp_path}/ran")
        async with run():
            record = await reached(store, one, *TERMINAL)
        assert record.last_status is S.Completed
        assert (rejecting.left, (tmp_path / "ran").read_text()) == (0, "ran\n")

    async def test_a_claim_that_the_database_rejects_is_tried_again(
        self, store: Store, run: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rejecting = Rejecting(store.claims.claim, 3, lambda *_: True)
        monkeypatch.setattr(store.claims, "claim", rejecting)
        one = script(store, "true")
        async with run():
            assert (await reached(store, one, *TERMINAL)).last_status is S.Completed
        assert rejecting.left == 0

    async def test_a_question_whether_to_stop_that_the_database_rejects_stops_nothing(
        self, store: Store, logs: LogFiles, run: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        one = script(store, "trap 'exit 0' TERM; echo up; while :; do sleep 0.05; done")
        async with run():
            await said(logs, one, "up")
            rejecting = Rejecting(store.aborts.stop_reason, 3, lambda *_: True)
            monkeypatch.setattr(store.aborts, "stop_reason", rejecting)
            store.aborts.request(one, "cancelled by ada", ORG)
            record = await reached(store, one, *TERMINAL)
        assert (record.last_status, rejecting.left) == (S.Cancelled, 0)


@pytest.mark.usefixtures("quick_retries")
class TestWhatNobodyExpected:
    """An exception that is no outage and no verdict."""

    async def test_repeated_error_ends_the_invocation_after_a_few_attempts(
        self, store: Store, run: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        failing = Failing(Workspace.prepare, ZeroDivisionError("a mistake in the server"))
        monkeypatch.setattr(Workspace, "prepare", lambda *given: failing(*given))
        one = script(store, "true")
        async with run():
            record = await reached(store, one, S.Deadly)
        assert record.current.detail == (
            "lost 3 times: the server could not run this: a mistake in the server"
        )

    async def test_error_that_cannot_be_logged_blocks_nothing(
        self, store: Store, run: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Deep(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                if record.exc_info:
                    raise RecursionError

        handler = Deep()
        monkeypatch.setattr(runner._log, "handlers", [handler])
        failing = Failing(Workspace.prepare, RecursionError("too deep"))
        monkeypatch.setattr(Workspace, "prepare", lambda *given: failing(*given))
        one = script(store, "true")
        async with run():
            assert (await reached(store, one, *TERMINAL)).last_status is S.Deadly

    async def test_owned_invocation_without_work_runs_again(
        self, store: Store, run: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        failing = Failing(store.claims.requeue, ZeroDivisionError())
        monkeypatch.setattr(store.claims, "requeue", failing)
        unprepared = Failing(Workspace.prepare, ZeroDivisionError())
        monkeypatch.setattr(Workspace, "prepare", lambda *given: unprepared(*given))
        one = script(store, "true")
        async with run(reconcile_interval=0.02):
            await failing.until_it_fails()
            failing.works = unprepared.works = True
            record = await reached(store, one, *TERMINAL)
        assert record.last_status is S.Completed
        assert "the server lost track of this invocation" in [step.detail for step in record.status]

    async def test_a_cancel_of_what_nobody_works_on_is_carried_out(
        self, store: Store, run: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        failing = Failing(store.claims.requeue, ZeroDivisionError())
        monkeypatch.setattr(store.claims, "requeue", failing)
        unprepared = Failing(Workspace.prepare, ZeroDivisionError())
        monkeypatch.setattr(Workspace, "prepare", lambda *given: unprepared(*given))
        one = script(store, "true")
        async with run(reconcile_interval=0.02):
            await failing.until_it_fails()
            store.aborts.request(one, "cancelled by ada", ORG)
            failing.works = True
            record = await reached(store, one, *TERMINAL)
        assert (record.last_status, record.current.detail) == (S.Cancelled, "cancelled by ada")


class Rejecting:
    """A method of the repository that fails a few times, as with a disk that is full for a while."""

    def __init__(self, call: Callable[..., Any], times: int, when: Callable[..., bool]) -> None:
        self.call, self.left, self.when = call, times, when

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        if self.left and self.when(*arguments):
            self.left -= 1
            raise OperationalError("COMMIT", {}, Exception("database or disk is full"))
        return self.call(*arguments, **named)


class Held:
    """A method of the repository that is on its way to the database for as long as a test wants."""

    def __init__(self, call: Callable[..., Any], when: Callable[..., bool]) -> None:
        self.call, self.when = call, when
        self.arrived, self.may_go = threading.Event(), threading.Event()

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        if self.when(*arguments):
            self.arrived.set()
            assert self.may_go.wait(10)
        return self.call(*arguments, **named)

    async def until_it_arrives(self) -> None:
        assert await asyncio.to_thread(self.arrived.wait, 10)


class TestStopping:
    async def test_interrupted_invocation_records_that_it_runs_again(
        self, store: Store, logs: LogFiles, run: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        again = f"{tmp_path}/again"  # made before the line is said that the first run is interrupted at
        one = script(store, f"[ -e {again} ] && exec echo km 0; touch {again}; echo km 0; exec sleep 600")
        with caplog.at_level("INFO", "airflow_invocations.server.execution.runner"):
            async with run():
                await said(logs, one, "km 0")
            assert [entry.getMessage() for entry in caplog.records] == ["interrupted, will run again"]
            async with run():
                await reached(store, one, S.Completed)
            assert [entry.getMessage() for entry in caplog.records][1:] == ["ended"]
        second = "attempt 2, from the beginning: the server was stopped while this invocation ran"
        assert lines(logs, one) == ["km 0", second, "km 0"]

    """A clean stop at a bad moment."""

    async def test_running_invocation_is_requeued_and_not_counted_as_lost(
        self, store: Store, logs: LogFiles, run: Any
    ) -> None:
        one = script(store, "echo up; exec sleep 60")
        for _ in range(4):
            async with run():
                await reached(store, one, S.Processing)
            assert store.invocations.get(one).last_status is S.Queued
            assert running(one) == []
        assert store.claims.orphaned() == []

    async def test_a_claim_on_its_way_is_given_back(
        self, store: Store, run: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        one = script(store, "sleep 60")
        held = Held(store.claims.claim, lambda *_: True)
        monkeypatch.setattr(store.claims, "claim", held)
        async with run() as running_one:
            await held.until_it_arrives()
            stopping = asyncio.create_task(running_one.stop())
            await asyncio.sleep(0)
            held.may_go.set()
            async with asyncio.timeout(20):
                await stopping
        record = store.invocations.get(one)
        assert record.last_status is S.Queued
        assert S.Scheduled in steps(record)
        assert store.claims.orphaned() == []

    async def test_a_verdict_on_its_way_arrives(
        self, store: Store, run: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        held = Held(store.claims.transition_owned, lambda _, status, *__: status.is_terminal)
        monkeypatch.setattr(store.claims, "transition_owned", held)
        for text, end in (("exit 1", S.Failed), ("true", S.Completed)):
            held.arrived.clear()
            held.may_go.clear()
            one = script(store, text)
            async with run() as running_one:
                await held.until_it_arrives()
                stopping = asyncio.create_task(running_one.stop())
                await asyncio.sleep(0)
                held.may_go.set()
                async with asyncio.timeout(20):
                    await stopping
            assert store.invocations.get(one).last_status is end
        assert store.claims.claim("runner-next") is None

    async def test_process_that_ignores_sigterm_is_killed_after_the_grace_period(
        self, store: Store, logs: LogFiles, run: Any
    ) -> None:
        one = script(store, "trap 'echo no' TERM; echo up; while :; do sleep 0.05; done")
        loop = asyncio.get_running_loop()
        async with run():
            await said(logs, one, "up")
            began = loop.time()
        assert 0.5 <= loop.time() - began < 10
        assert running(one) == []
        assert "no" in lines(logs, one)
        assert store.invocations.get(one).last_status is S.Queued

    async def test_at_any_moment_nothing_is_lost_and_nothing_that_ended_runs_again(
        self, store: Store, run: Any, tmp_path: Path
    ) -> None:
        ran = tmp_path / "ran"
        text = f"trap 'exit 9' TERM; sleep 0.05 & wait $!; echo $ROBOTO_INVOCATION_ID >> {ran}; exit %d"
        ids = [script(store, text % (number % 2)) for number in range(12)]
        dice = random.Random(9)
        for _ in range(12):
            async with run():
                await asyncio.sleep(dice.uniform(0, 0.12))  # any moment is as good as another
            assert not [one for one in ids if running(one)]
            assert store.claims.orphaned() == []
        async with run():
            ends = [(await reached(store, one, *TERMINAL)).last_status for one in ids]
        assert ends == [S.Completed, S.Failed] * 6
        marks = Counter(ran.read_text().split())
        for one in ids:
            events = store.events.by_invocation(one, ORG)
            ended = [event for event in events if event.status.is_terminal and not event.superseded]
            assert ended == events[-1:]  # and nothing came after it
            # One that is stopped between its mark and its exit leaves a mark, and another when it runs again.
            assert 1 <= marks[one] <= events[-1].attempt

    async def test_a_cancel_that_was_not_carried_out_yet_is_carried_out(
        self, store: Store, logs: LogFiles, run: Any
    ) -> None:
        one = script(store, "echo up; exec sleep 60")
        async with run():
            await said(logs, one, "up")
            store.aborts.request(one, "cancelled by ada", ORG)
        assert store.invocations.get(one).last_status is S.Cancelled


async def test_a_retry_waits_until_the_attempt_before_it_is_gone(
    store: Store, logs: LogFiles, run: Any, tmp_path: Path
) -> None:
    mark = tmp_path / "first"
    one = script(
        store,
        f"[ -e {mark} ] && {{ echo second; exec sleep 0.3; }}"
        f"; trap '' TERM; touch {mark}; echo first; while :; do sleep 0.02; done",
    )
    async with run():
        await said(logs, one, "first")
        first = running(one)
        store.invocations.set_status(one, S.Failed, "again, please", "user-ada", ORG)
        store.invocations.set_status(one, S.Queued, None, "user-ada", ORG)
        await reached(store, one, S.Processing)
        assert first
        assert not [process for process in first if process.is_running()]
        record = await reached(store, one, *TERMINAL)
    assert record.last_status is S.Completed
    assert lines(logs, one) == ["first", "attempt 2, from the beginning", "second"]


class TestRecovery:
    """What a runner of an earlier life left behind."""

    def claimed_by_the_dead(self, store: Store) -> str:
        one = script(store, "echo again")
        assert store.claims.claim("runner-dead") is not None
        return one

    def left_running(self, invocation_id: str) -> subprocess.Popen[bytes]:
        environment = {"PATH": os.environ["PATH"], "ROBOTO_INVOCATION_ID": invocation_id}
        command = ["sh", "-c", "trap '' TERM; sleep 60 & wait"]
        return subprocess.Popen(command, env=environment, start_new_session=True)

    @pytest.mark.parametrize("recorded", [True, False], ids=["recorded", "in the instant before"])
    async def test_its_processes_are_killed_and_its_invocations_run_again(
        self, store: Store, logs: LogFiles, run: Any, recorded: bool
    ) -> None:
        one = self.claimed_by_the_dead(store)
        left = self.left_running(one)
        if recorded:
            store.claims.set_processing(one, "runner-dead", left.pid, termination.started_at(left.pid))
        async with run():
            assert left.wait(30) == -signal.SIGKILL
            record = await reached(store, one, S.Completed)
        before = [S.Queued, S.Scheduled, S.Downloading, *([S.Processing] if recorded else [])]
        assert steps(record)[: len(before) + 2] == [*before, S.Failed, S.Queued]
        assert record.status[len(before)].detail == "the server stopped while this invocation ran"
        assert lines(logs, one) == [
            "attempt 2, from the beginning: the server stopped while this invocation ran",
            "again",
        ]
        assert running(one) == []

    async def test_invocation_with_an_abort_is_cancelled(self, store: Store, run: Any) -> None:
        one = self.claimed_by_the_dead(store)
        left = self.left_running(one)
        store.aborts.request(one, "cancelled by ada", ORG)
        async with run():
            assert left.wait(30) == -signal.SIGKILL
            record = store.invocations.get(one)
        assert (record.last_status, record.current.detail) == (S.Cancelled, "cancelled by ada")

    async def test_somebody_elses_processes_and_invocations_are_left_alone(
        self, store: Store, run: Any
    ) -> None:
        driven = script(store, "true")
        store.invocations.set_status(driven, S.Processing, None, "user-ada", ORG)
        other = self.left_running("iv_of_another_service")
        async with run():
            assert other.poll() is None
            assert store.invocations.get(driven).last_status is S.Processing
        termination.send_to_group(other.pid, signal.SIGKILL)
        other.wait()
