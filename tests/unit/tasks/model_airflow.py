"""Airflow in memory: one task instance, its workers and triggers, and everything that can happen to them.

The workers and triggers run the provider's engine; their processes, signals, heartbeats and records are
modelled after docs/internals/task-lifecycle.md and docs/internals/triggerer.md.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from functools import partial
from types import SimpleNamespace
from typing import Any

from airflow_invocations.exceptions import InvocationError
from airflow_invocations.models import InvocationStatus, TaskInstanceReference
from airflow_invocations.platforms import Platform, PlatformError
from airflow_invocations.tasks.guard import InvocationGuard
from airflow_invocations.tasks.lifecycle import CancelledByClear, InvocationLifecycle, WorkerLog
from airflow_invocations.tasks.provenance import first_try_of, identity_of, provenance_of
from airflow_invocations.tasks.reconciliation import TaskKey, TaskSnapshot, key_of
from airflow_invocations.tasks.result import INVOCATION_ID_KEY
from airflow_invocations.tasks.submission import InvocationSubmission
from airflow_invocations.triggers import InvocationTrigger, _base
from airflow_invocations.version_compat import AirflowFailException
from airflow_invocations.waiters import WaitOptions

from ...support.task_context import context as task_context
from .model_platform import Client, Invocation, Site

S = InvocationStatus

#: States in which the task needs no invocation any more.
ENDED = frozenset({"success", "failed"})

#: Seconds from SIGTERM to SIGKILL, between a failure and its retry, until Airflow notices a missing worker,
#: and for which a process may go on after its state was lost.
KILL_DELAY = 5.0
RETRY_DELAY = 3.0
HEARTBEAT_TIMEOUT = 12.0


class Silent:
    """A task's log that nobody reads."""

    def _take(self, *_: object) -> None:
        pass

    debug = info = warning = error = _take


SILENT = Silent()


class ApiError(Exception):
    """The API server doesn't answer."""


class Task:
    """The arguments of the operator that the engine reads."""

    action = "a"
    wait = durable = cancel_on_kill = True
    outage_limit = 120.0
    volatile_parameters = ()
    parameters = data_source_id = input_data = upload_destination = None
    compute_requirements = container_parameters = timeout = None


class Airflow:
    """The records of one task instance, and the processes that work for it."""

    def __init__(self, chance: random.Random, *, deferrable: bool, retries: int) -> None:
        self.chance = chance
        self.log: Any = SILENT
        self.deferrable = deferrable
        self.retries = self.max_tries = retries
        self.sites = {
            name: Site(name, chance, self._judge_invoke, self._judge_cancel) for name in ("one", "two")
        }
        self.conn_id = "one"
        self.state: str | None = None
        self.try_number = 0
        self.clear_number = 0
        #: How often the task was cleared: the truth, which the engine has to derive.
        self.incarnation = 0
        self.was_marked = False
        #: The last try that was cleared while a worker ran it. Airflow restarts it as a retry, so the next
        #: try may adopt its invocation, unless the worker has cancelled it.
        self.restarted_try = 0
        #: The try whose worker fails for good, before Airflow has heard of it.
        self.failing_try = 0
        #: Whether the task was ended or cleared when no process of ours learns of it: before a triggerer has
        #: begun, or when the worker's deferral is rejected.
        self.was_unheard = False
        self.is_deleted = False
        self.instance_id = 0
        self.xcoms: dict[str, Any] = {}
        self.api_is_up = self.triggerer_is_up = True
        self.workers: list[Worker] = []
        self.trigger: TriggerHost | None = None
        #: What the worker that runs next resumes with, after a deferral.
        self.resumes: dict[str, Any] | None = None
        self._background: set[asyncio.Task[Any]] = set()
        self.problems: list[str] = []
        self._schedule()

    # -- what is promised --------------------------------------------------------------------------------

    def needs(self, site: Site, one: Invocation) -> bool:
        """Return whether the task waits for an invocation, or a retry will."""
        return (
            not self.is_deleted
            and self.state not in ENDED
            and one.incarnation == self.incarnation
            and site.name == self.conn_id
        )

    def _judge_invoke(self, site: Site, new: Invocation) -> None:
        if new.incarnation != self.incarnation or site.name != self.conn_id:
            return  # by a process that is out of date; reconciliation finds it
        for one in site.invocations.values():
            if one.incarnation == new.incarnation and (one.is_active or one.status is S.Completed):
                self.problems.append(f"{one.invocation_id} is {one.status.name}, and is invoked again")

    def _judge_cancel(self, site: Site, one: Invocation) -> None:
        is_left = one.try_number <= self.restarted_try or one.try_number == self.failing_try
        if self.needs(site, one) and not is_left:
            self.problems.append(f"{one.invocation_id} is cancelled while the task is {self.state}")

    # -- what happens ------------------------------------------------------------------------------------

    def mark(self, state: str) -> None:
        if self.is_deleted or self.state in ENDED or self.try_number == 0:
            return
        self.was_marked = True
        self._leave(state)

    def clear(self) -> None:
        if self.is_deleted or self.try_number == 0:
            return
        self.clear_number += 1
        self.instance_id += 1
        self.was_marked = False
        if self.state == "running":
            self.restarted_try = self.try_number
            self._leave("restarting")
            if not self.workers:
                self._in(HEARTBEAT_TIMEOUT, self._restart)
            return
        self.incarnation += 1
        self.max_tries = self.try_number + self.retries
        self.resumes = None
        self._leave(None)
        self._schedule()

    def delete(self) -> None:
        """Delete the DAG run."""
        self.is_deleted = True
        self._leave("deleted")

    def edit_retries(self) -> None:
        self.retries = 1 + self.retries % 3

    def edit_connection(self) -> None:
        """Edit the DAG so that its next try uses another platform."""
        if self.state not in ("running", "deferred", "up_for_retry", "scheduled", "restarting"):
            self.conn_id = "two" if self.conn_id == "one" else "one"

    def kill_worker(self) -> None:
        """Send SIGKILL to the newest worker."""
        for worker in self.workers[-1:]:
            worker.kill()

    def terminate_worker(self) -> None:
        """Send SIGTERM to the newest worker, as a deployment does."""
        for worker in self.workers[-1:]:
            worker.terminate()

    def freeze_worker(self) -> None:
        """Have the newest worker stand still."""
        for worker in self.workers[-1:]:
            worker.runs.clear()
            self._in(HEARTBEAT_TIMEOUT, partial(self._miss, worker))

    def thaw_workers(self) -> None:
        for worker in [*self.workers]:
            worker.runs.set()
            if not self.is_current(worker):
                worker.end_by_heartbeat()

    def stop_api(self) -> None:
        self.api_is_up = False
        for worker in [*self.workers]:
            self._in(self.chance.uniform(6, 15), partial(self._fail_heartbeats, worker))

    def start_api(self) -> None:
        self.api_is_up = True

    def kill_triggerer(self) -> None:
        self.triggerer_is_up = False
        for task in [*cancels_in_progress()]:
            task.cancel()
        if self.trigger is not None:
            self.trigger.kill()

    def start_triggerer(self) -> None:
        self.triggerer_is_up = True
        if self.state == "deferred" and self.trigger is not None and not self.trigger.is_running:
            self.trigger.start()

    def move_trigger(self) -> None:
        """Hand the trigger to another triggerer; Airflow 3.3 calls `on_kill` then."""
        if self.state == "deferred" and self.trigger is not None and self.trigger.is_running:
            old = self.trigger
            self.trigger = TriggerHost(self, old.arguments)
            self.trigger.start()
            old.stop()

    # -- records -----------------------------------------------------------------------------------------

    def states(self) -> dict[str, dict[str, str | None]]:
        """Return what `get_task_states` returns."""
        if not self.api_is_up:
            raise ApiError("the API server is away")
        return {} if self.is_deleted else {"r": {"ask": self.state}}

    def is_current(self, worker: Worker) -> bool:
        return (
            self.state == "running" and worker.instance_id == self.instance_id and worker in self.workers[-1:]
        )

    def report(self, worker: Worker, state: str) -> None:
        """Record how a worker's task has ended, unless it is not its task any more."""
        if not self.is_current(worker):
            return
        if state == "failed" and worker.may_retry and self.try_number <= self.max_tries:
            self._leave("up_for_retry")
            self._in(RETRY_DELAY, self._schedule)
        else:
            self._leave(state)

    def defer(self, worker: Worker, arguments: dict[str, Any]) -> None:
        if self.is_current(worker):
            self.state = "deferred"
            self.trigger = TriggerHost(self, arguments)
            if self.triggerer_is_up:
                self._in(self.chance.uniform(0, 2), self.trigger.start_if_current)
        else:
            self.was_unheard = True

    def resume(self, trigger: TriggerHost, event: dict[str, Any]) -> None:
        """Have a worker go on after a trigger's event."""
        if self.state == "deferred" and self.trigger is trigger:
            self.trigger = None
            self.resumes = event
            self.state = "scheduled"
            self._schedule()

    def worker_ended(self, worker: Worker) -> None:
        """Notice that a worker's process is gone."""
        was_current = self.is_current(worker)
        self.workers.remove(worker)
        if not self.workers:
            self._restart()
        if was_current:
            self._in(HEARTBEAT_TIMEOUT, partial(self._miss, worker, is_gone=True))

    def _restart(self) -> None:
        """Retry a task that was cleared while a worker ran it, when the worker has ended."""
        if self.state == "restarting":
            self._leave("up_for_retry")
            self._in(RETRY_DELAY, self._schedule)

    def _miss(self, worker: Worker, *, is_gone: bool = False) -> None:
        """Retry or fail the task of a worker that sends no heartbeats."""
        is_silent = is_gone or not worker.runs.is_set()
        if self.state != "running" or worker.instance_id != self.instance_id or not is_silent:
            return
        self.instance_id += 1
        if self.try_number <= self.max_tries:
            self._leave("up_for_retry")
            self._in(RETRY_DELAY, self._schedule)
        else:
            self._leave("failed")

    def _fail_heartbeats(self, worker: Worker) -> None:
        if not self.api_is_up and worker in self.workers:
            worker.terminate()
            self._in(KILL_DELAY, worker.kill)

    def _leave(self, state: str | None) -> None:
        """Change the state; what worked for the old one is told, or learns it by its next heartbeat."""
        old, self.state = self.state, state
        if old == "deferred" and self.trigger is not None:
            trigger, self.trigger = self.trigger, None
            if trigger.is_running:
                self._in(self.chance.uniform(0.5, 2.5), trigger.stop)
            else:
                self.was_unheard = True
        for worker in self.workers:
            self._in(self.chance.uniform(0, 4), worker.end_by_heartbeat)

    def _schedule(self) -> None:
        if self.is_deleted or self.state not in (None, "up_for_retry", "scheduled"):
            return
        self.state = "scheduled"
        self._in(self.chance.choice((0.2, 1.0, 6.0)), self._start_worker)

    def _start_worker(self) -> None:
        if self.state != "scheduled" or self.is_deleted:
            return
        if not self.api_is_up:
            self._in(5.0, self._start_worker)
            return
        self.state = "running"
        if self.resumes is None:
            self.try_number += 1
            self.instance_id += 1
            self.xcoms.clear()
        worker = Worker(self, self.resumes)
        self.resumes = None
        self.workers.append(worker)
        worker.start()

    def _in(self, seconds: float, call: Callable[[], object]) -> None:
        asyncio.get_running_loop().call_later(seconds, call)

    def run(self, work: Awaitable[Any]) -> asyncio.Task[Any]:
        task = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    def end(self) -> None:
        """End every process."""
        for task in [*self._background, *cancels_in_progress()]:
            task.cancel()

    def context(self, worker: Worker) -> dict[str, Any]:
        found = task_context(clear_number=self.clear_number)
        found["ti"].__dict__.update(
            run_id="r",
            try_number=worker.try_number,
            max_tries=self.max_tries,
            id=worker.instance_id,
            get_task_states=lambda **_: self.states(),
        )
        found["task"].retries = self.retries
        return found


def cancels_in_progress() -> set[asyncio.Task[None]]:
    """Return the tasks in which triggers that were stopped decide and cancel."""
    return _base._cancelling


class Worker:
    """A worker's process, which runs the engine as the operator does."""

    def __init__(self, airflow: Airflow, resumes: dict[str, Any] | None) -> None:
        self.airflow = airflow
        self.runs = asyncio.Event()
        self.runs.set()
        self.try_number, self.instance_id = airflow.try_number, airflow.instance_id
        self.incarnation = airflow.incarnation
        self.conn_id = airflow.conn_id
        self.may_retry = True
        self._resumes = resumes
        self._context = airflow.context(self)
        #: What the guard wants done on the platform, which a real one does in its thread.
        self._operations: list[Callable[[Platform], Awaitable[None]]] = []
        self._guard = InvocationGuard(self._context["ti"], airflow.log, cancels=True, is_adopted=True)
        self._is_known = asyncio.Event()
        self._decisions: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._task = self.airflow.run(self._run())
        self._task.add_done_callback(lambda _: self.airflow.worker_ended(self))

    def kill(self) -> None:
        if not self._task.done():
            self._task.cancel()

    def terminate(self) -> None:
        """Receive SIGTERM."""
        if not self._task.done():
            self._decisions.append(self.airflow.run(self._on_term()))

    def end_by_heartbeat(self) -> None:
        """Receive SIGTERM, and SIGKILL soon after, if Airflow answers a heartbeat with 404, 409 or 410."""
        current = self.airflow.is_current(self)
        if not self._task.done() and self.runs.is_set() and not current and self.airflow.api_is_up:
            self.terminate()
            self.airflow._in(KILL_DELAY, self.kill)

    async def connect(self) -> Client:
        return Client(self.airflow.sites[self.conn_id], self.runs, self.incarnation, self.try_number)

    async def _on_term(self) -> None:
        await self.runs.wait()
        if self._guard._has_ended():
            await self._is_known.wait()
            self._guard._cancel()
            await self._do_operations()

    async def _do_operations(self) -> None:
        """Do what the guard's thread does, and log errors as it does."""
        while self._operations and not self._task.done():
            operation = self._operations.pop()
            with suppress(PlatformError, TimeoutError):
                async with await self.connect() as platform:
                    await operation(platform)

    async def _run(self) -> None:
        state = None
        while state is None:
            try:
                state = await self._execute()
            except CancelledByClear:
                self._resumes = None
                self._is_known.clear()
                self._guard.forget()
            except InvocationError as error:
                state = "failed"
                self._is_known.set()
                self.may_retry = not isinstance(error, AirflowFailException)
            except ApiError as error:
                state = "failed"
                if self.try_number > self.airflow.max_tries:
                    self.airflow.failing_try = self.try_number
                self._guard._handle_failure(error)
                self._is_known.set()
                await self._do_operations()
        if self._decisions:  # as the guard does at the end of its block
            await asyncio.wait(self._decisions, timeout=4.0)
        await self.runs.wait()
        if self.airflow.api_is_up and state != "deferred":
            self.airflow.report(self, state)

    async def _execute(self) -> str:
        provenance: Any = provenance_of(self._context)
        waiting = WaitOptions("", poll_interval=15.0, outage_limit=120.0, accepted=True)
        lifecycle = InvocationLifecycle(
            self._connection, self.connect, waiting, self.airflow.log, action="a", stream_logs=False
        )
        if self._resumes is None:
            await lifecycle.submit(submission_of(self._context, provenance, self.airflow.log))
        else:
            lifecycle.attach(await self.connect(), self._resumes["invocation_id"])
        self._guard.guard(lifecycle, self._operations.append)
        self._is_known.set()
        await self.runs.wait()
        if self._resumes is None:
            if not self.airflow.api_is_up:
                raise ApiError("the XCom can't be stored")
            if self.airflow.is_current(self):
                self.airflow.xcoms[INVOCATION_ID_KEY] = lifecycle.invocation_id
            if self.airflow.deferrable:
                arguments = {
                    "conn_id": self.conn_id, "invocation_id": lifecycle.invocation_id, "poll_interval": 15.0,
                    "stream_logs": False, "outage_limit": 120.0,
                }  # fmt: skip
                self.airflow.defer(self, arguments)
                return "deferred"
        await lifecycle.finish(WorkerLog("", self.airflow.log.warning), provenance, may_have_ended=True)
        return "success"

    @property
    def _connection(self) -> str:
        return f"{self.conn_id} {id(self)}"  # each process has its own watcher


class Records:
    """What reconciliation reads: the model's task instance, with all that REST knows of it."""

    def __init__(self, airflow: Airflow) -> None:
        self._airflow = airflow

    def read(self, references: Collection[TaskInstanceReference]) -> dict[TaskKey, TaskSnapshot]:
        one = self._airflow
        if one.is_deleted:
            return {}
        snapshot = TaskSnapshot(one.state or "none", one.try_number, one.max_tries, str(one.instance_id))
        return {key_of(reference): snapshot for reference in references}

    def awaited(self, reference: TaskInstanceReference) -> str | None:
        found: str | None = self._airflow.xcoms.get(INVOCATION_ID_KEY)
        return found


class ModelTrigger(InvocationTrigger):
    """The provider's trigger, on the records of the model."""

    airflow: Airflow
    log = SILENT

    async def _task_states(self, instance: object) -> set[str]:
        return {str(state) for run in self.airflow.states().values() for state in run.values()}

    async def _xcom_id(self, instance: object) -> Any:
        self.airflow.states()
        return self.airflow.xcoms.get(INVOCATION_ID_KEY)


class TriggerHost:
    """One trigger in a triggerer."""

    def __init__(self, airflow: Airflow, arguments: dict[str, Any]) -> None:
        self.airflow = airflow
        self.arguments = arguments
        self._task: asyncio.Task[Any] | None = None
        self._trigger = ModelTrigger(**arguments)
        self._trigger.airflow = airflow
        self._trigger.task_instance = SimpleNamespace(task_id="ask", map_index=-1)  # type: ignore[assignment]

    @property
    def is_running(self) -> bool:
        return self._task is not None and not self._task.done()

    def start_if_current(self) -> None:
        if self.airflow.trigger is self and self.airflow.triggerer_is_up and self._task is None:
            self.start()

    def start(self) -> None:
        self._task = self.airflow.run(self._run())

    def kill(self) -> None:
        if self._task is not None:
            self._task.cancel()
            self._task = None

    def stop(self) -> None:
        """Be stopped by a triggerer, which calls `on_kill`."""
        if self.is_running and self.airflow.triggerer_is_up:
            self.kill()
            self.airflow.run(self._trigger.on_kill())

    async def _run(self) -> None:
        async for event in self._trigger.run():
            if self.airflow.api_is_up:
                self.airflow.resume(self, event.payload)
            else:
                self.airflow._in(20.0, partial(self.airflow.resume, self, event.payload))


def submission_of(context: Any, provenance: Any, log: Any) -> InvocationSubmission:
    """Return the submission of a try, as the operator makes it."""
    return InvocationSubmission.of(
        Task(), "task 'ask'", provenance, identity_of(context), first_try_of(context), log.warning
    )
