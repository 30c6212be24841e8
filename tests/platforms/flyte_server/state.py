"""What a Flyte 2 backend keeps and does: tasks, runs, their events and pods; in memory, one process.

It behaves as the open-source backend does (https://github.com/flyteorg/flyte at 6fadb90d, whose own services
answered the same to the same requests), also where that is nasty; what it does only sometimes is in `Faults`.
"""

from __future__ import annotations

import asyncio
import datetime
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from connectrpc.code import Code
from connectrpc.errors import ConnectError
from flyteidl2.common import identifier_pb2, phase_pb2
from flyteidl2.core import identifier_pb2 as core_identifier_pb2
from flyteidl2.core import interface_pb2, literals_pb2, tasks_pb2, types_pb2
from flyteidl2.logs.dataplane import payload_pb2
from flyteidl2.task import common_pb2, run_pb2, task_definition_pb2
from flyteidl2.workflow import run_definition_pb2
from google.protobuf.timestamp_pb2 import Timestamp

PROJECT, DOMAIN = "fleet", "development"

QUEUED = phase_pb2.ACTION_PHASE_QUEUED
RUNNING = phase_pb2.ACTION_PHASE_RUNNING
SUCCEEDED = phase_pb2.ACTION_PHASE_SUCCEEDED
FAILED = phase_pb2.ACTION_PHASE_FAILED
ABORTED = phase_pb2.ACTION_PHASE_ABORTED
TIMED_OUT = phase_pb2.ACTION_PHASE_TIMED_OUT
ENDS = {SUCCEEDED, FAILED, ABORTED, TIMED_OUT, phase_pb2.ACTION_PHASE_RECOVERED}

#: Kubernetes' rule for the name of a run's resource, and for a label's value.
_RUN_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_LABEL = re.compile(r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?")

#: Seconds until a pod has its image.
_POD_START = 0.05

#: A subscriber that is so many notifications behind gets no more.
_BACKLOG = 100

SimpleType = types_pb2.SimpleType
RunKey = tuple[str, str, str]
TaskKey = tuple[str, str, str, str]
#: What a task's container does: returns its outputs, raises what it fails with.
Body = Callable[["Pod"], Awaitable[Mapping[str, literals_pb2.Literal] | None]]


@dataclass
class Faults:
    """What goes wrong, until it is switched off."""

    #: CreateRun answers 200, and nothing starts: its resource could not be made.
    enqueue_fails: bool = False
    #: The number of CreateRuns whose run is recorded and not enqueued.
    forgotten_creates: int = 0
    #: So many reads of a run fail; the backend calls that not_found.
    failing_reads: int = 0
    #: So many CreateRuns do their work, and the answer is lost.
    lost_creates: int = 0
    #: So many streams of a log break after their first lines.
    breaking_logs: int = 0
    #: Watches stay open and tell nothing any more.
    watches_are_silent: bool = False
    #: The event with a failure's error comes only when `Backend.send_late_events` is called.
    late_events: bool = False
    #: The status of a run says that it was begun 0 times.
    attempts_are_zero: bool = False
    #: A run that is there already is already_exists, as at hosted Flyte.
    says_already_exists: bool = False
    #: Connect's code that every call is answered with.
    answers: Code | None = None
    #: A phase that no enum has, for every run that is asked for.
    unknown_phase: int | None = None


@dataclass
class Event:
    """What the executor has reported of an attempt."""

    attempt: int
    phase: int
    time: Timestamp
    error: run_definition_pb2.ErrorInfo | None = None
    #: What the cluster says of the pod.
    cluster_events: tuple[run_definition_pb2.ClusterEvent, ...] = ()


@dataclass
class Run:
    """A row of the database, its events, and what its pod has written."""

    key: RunKey
    task: task_definition_pb2.TaskDetails
    spec: run_pb2.RunSpec
    inputs: common_pb2.Inputs
    phase: int = QUEUED
    attempts: int = 1
    created: Timestamp = field(default_factory=lambda: now())
    ended: Timestamp | None = None
    abort_reason: str = ""
    events: list[Event] = field(default_factory=list)
    late_events: list[Event] = field(default_factory=list)
    outputs: dict[str, literals_pb2.Literal] = field(default_factory=dict)
    #: By attempt; an attempt without a pod (any more) has no entry.
    logs: dict[int, list[payload_pb2.LogLine]] = field(default_factory=dict)
    #: How often a pod was started for it: more than once is once too often.
    starts: int = 0
    pod: asyncio.Task[None] | None = None


class Pod:
    """What a task's container sees."""

    def __init__(self, backend: Backend, run: Run) -> None:
        self._backend = backend
        self._run = run
        self.environment = {one.key: one.value for one in run.spec.envs.values}

    @property
    def attempt(self) -> int:
        """Which try of it this is, from 1."""
        return self._run.attempts

    @property
    def inputs(self) -> common_pb2.Inputs:
        """All that it was given."""
        return self._run.inputs

    def input(self, name: str) -> literals_pb2.Literal:
        """An input's literal; KeyError: it has none of that name."""
        return {one.name: one.value for one in self._run.inputs.literals}[name]

    def value(self, name: str) -> Any:
        """The value of an input that is a primitive."""
        primitive = self.input(name).scalar.primitive
        return getattr(primitive, primitive.WhichOneof("value"))

    def print(self, text: str) -> None:
        """Write a line."""
        line = payload_pb2.LogLine(timestamp=now(), message=text, originator=payload_pb2.USER)
        self._run.logs[self._run.attempts].append(line)
        self._backend.something_was_written()


class TaskError(Exception):
    """How a container fails; `retry`: the executor begins it anew."""

    def __init__(self, message: str, code: str = "", *, retry: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.retry = retry


class Backend:
    """The state and its rules. To be used in the server's event loop only, but for what says otherwise."""

    def __init__(self) -> None:
        self.faults = Faults()
        self.tasks: dict[TaskKey, task_definition_pb2.TaskDetails] = {}
        self.runs: dict[RunKey, Run] = {}
        #: Of each run whose resource is there: until it is aborted, or collected as garbage.
        self.resources: set[str] = set()
        self.offloaded: dict[str, common_pb2.Inputs] = {}
        self._bodies: dict[TaskKey, Body] = {}
        self._watches: set[asyncio.Queue[Run]] = set()
        self._written = asyncio.Event()
        self._background: set[asyncio.Task[None]] = set()
        self._waiting: list[Run] = []
        self._has_workers = True

    # -- tasks ---------------------------------------------------------------------------------------

    def deploy(
        self,
        name: str,
        body: Body,
        inputs: Mapping[str, Any] | None = None,
        outputs: Mapping[str, Any] | None = None,
        defaults: Mapping[str, literals_pb2.Literal] | None = None,
        version: str = "v1",
        project: str = PROJECT,
    ) -> None:
        """Deploy a task (from any thread); types are SimpleTypes or LiteralTypes."""
        types = {key: _literal_type(kind) for key, kind in (inputs or {}).items()}
        interface = interface_pb2.TypedInterface(
            inputs=_variables(types),
            outputs=_variables({key: _literal_type(kind) for key, kind in (outputs or {}).items()}),
        )
        parameters = [
            common_pb2.NamedParameter(
                name=key,
                parameter=interface_pb2.Parameter(
                    var=interface_pb2.Variable(type=types[key]), default=literal
                ),
            )
            for key, literal in (defaults or {}).items()
        ]
        self.deploy_interface(name, body, interface, parameters, version, project)

    def deploy_interface(
        self,
        name: str,
        body: Body,
        interface: interface_pb2.TypedInterface,
        parameters: Iterable[common_pb2.NamedParameter],
        version: str = "v1",
        project: str = PROJECT,
    ) -> None:
        """The same of an interface that the SDK has made."""
        template = tasks_pb2.TaskTemplate(
            id=core_identifier_pb2.Identifier(project=project, domain=DOMAIN, name=name, version=version),
            type="python",
            interface=interface,
            container=tasks_pb2.Container(image="registry.example/fleet:1"),
        )
        spec = task_definition_pb2.TaskSpec(
            task_template=template, short_name=name.rpartition(".")[2], default_inputs=parameters
        )
        details = task_definition_pb2.TaskDetails(
            task_id=task_definition_pb2.TaskIdentifier(
                project=project, domain=DOMAIN, name=name, version=version
            ),
            metadata=task_definition_pb2.TaskMetadata(short_name=spec.short_name, deployed_at=now()),
            spec=spec,
        )
        key = (project, DOMAIN, name, version)
        self._bodies[key] = body
        self.tasks[key] = details

    def task(self, task: task_definition_pb2.TaskIdentifier) -> task_definition_pb2.TaskDetails:
        """A deployed task."""
        found = self.tasks.get((task.project, task.domain, task.name, task.version))
        if found is None:
            raise ConnectError(Code.NOT_FOUND, f"task not found: {task.project}/{task.domain}/{task.name}")
        return found

    def task_of_a_run(self, task: task_definition_pb2.TaskIdentifier) -> task_definition_pb2.TaskDetails:
        """The task that CreateRun names; its error reaches the caller as it is, without a code."""
        try:
            return self.task(task)
        except ConnectError:
            name = f"{{{task.project} {task.domain} {task.name} {task.version}}}"
            raise ConnectError(Code.UNKNOWN, f"task not found: {name}") from None

    # -- runs ----------------------------------------------------------------------------------------

    def run(self, run_id: identifier_pb2.RunIdentifier) -> Run:
        """A run, as GetRun reads it: whatever goes wrong is not_found."""
        if self.faults.failing_reads > 0:
            self.faults.failing_reads -= 1
            raise ConnectError(Code.NOT_FOUND, "failed to get run: dial tcp: lookup postgres: host not found")
        found = self.runs.get(key_of(run_id))
        if found is None:
            raise ConnectError(Code.NOT_FOUND, f"run not found: {'/'.join(key_of(run_id))}")
        return found

    def create(
        self,
        run_id: identifier_pb2.RunIdentifier,
        task: task_definition_pb2.TaskDetails,
        spec: run_pb2.RunSpec,
        inputs: common_pb2.Inputs,
    ) -> Run:
        """ON CONFLICT DO NOTHING, and then enqueue, whether the run was there or not."""
        if len(run_id.name) > 30 or not _RUN_NAME.fullmatch(run_id.name):
            raise ConnectError(Code.INVALID_ARGUMENT, f"invalid run name {run_id.name!r}")
        if run_id.project not in {project for project, *_ in self.tasks}:
            raise ConnectError(Code.NOT_FOUND, f'project "{run_id.project}" not found')
        key = key_of(run_id)
        run = self.runs.get(key)
        if run is not None and self.faults.says_already_exists:
            raise ConnectError(Code.ALREADY_EXISTS, f"run {run_id.name} already exists")
        if run is None:
            stored = run_pb2.RunSpec()
            stored.CopyFrom(spec)
            stored.raw_data_storage.raw_data_prefix = f"s3://data/{run_id.name}"
            run = self.runs[key] = Run(key, task, stored, inputs)
        # Its inputs are written to the storage before the row is looked at.
        run.inputs = inputs
        self._enqueue(run)
        return run

    def _enqueue(self, run: Run) -> None:
        labels_are_valid = all(
            len(value) <= 63 and _LABEL.fullmatch(value) for value in run.spec.labels.values.values()
        )
        if self.faults.forgotten_creates > 0:
            self.faults.forgotten_creates -= 1
            return
        if self.faults.enqueue_fails or not labels_are_valid or run.key[2] in self.resources:
            return  # "Failed to enqueue root action" goes to the log, the answer is 200
        self.resources.add(run.key[2])
        if self._has_workers:
            self._start(run)
        else:
            self._waiting.append(run)

    def _start(self, run: Run) -> None:
        run.starts += 1
        run.pod = asyncio.get_running_loop().create_task(self._execute(run))

    def stop_workers(self) -> None:
        """Have what is created from now on stay queued (from any thread)."""
        self._has_workers = False

    def start_workers(self) -> None:
        """Start what is queued, and what is created from now on."""
        self._has_workers = True
        waiting, self._waiting = self._waiting, []
        for run in waiting:
            if run.key[2] in self.resources:
                self._start(run)

    async def _execute(self, run: Run) -> None:
        key = (*run.key[:2], run.task.task_id.name, run.task.task_id.version)
        self.report(run, QUEUED)
        while True:
            run.logs[run.attempts] = []
            self.report(run, phase_pb2.ACTION_PHASE_INITIALIZING)
            self.say_of_pod(run, "Pulling", 'Pulling image "registry.example/fleet:1"')
            await asyncio.sleep(_POD_START)
            self.report(run, RUNNING)
            try:
                run.outputs = dict(await self._bodies[key](Pod(self, run)) or {})
            except TaskError as error:
                info = run_definition_pb2.ErrorInfo(
                    message=str(error), code=error.code, kind=run_definition_pb2.ErrorInfo.KIND_USER
                )
                if error.retry:
                    # Begun anew in place: an event of the attempt, and the row is Queued again.
                    run.events.append(Event(run.attempts, FAILED, now(), info))
                    run.attempts += 1
                    self.report(run, QUEUED)
                    continue
                self.report(run, FAILED, info)
            else:
                self.report(run, SUCCEEDED)
            return

    def report(self, run: Run, phase: int, error: run_definition_pb2.ErrorInfo | None = None) -> None:
        """What the executor does with each change: an event, and the row unless that is aborted."""
        event = Event(run.attempts, phase, now(), error)
        late = self.faults.late_events and phase in ENDS
        (run.late_events if late else run.events).append(event)
        if run.phase in (SUCCEEDED, ABORTED):
            return
        run.phase = phase
        run.ended = now() if phase in ENDS else None
        self._notify(run)
        self.something_was_written()

    def say_of_pod(self, run: Run, reason: str, message: str) -> None:
        """What the cluster reports of a run's pod: an event without another phase."""
        told = run_definition_pb2.ClusterEvent(occurred_at=now(), reason=reason, message=message)
        run.events.append(Event(run.attempts, run.phase, now(), cluster_events=(told,)))

    def send_late_events(self) -> None:
        """The events that were late arrive (from any thread)."""
        for run in self.runs.values():
            run.events += run.late_events
            run.late_events = []

    def abort(self, run: Run, reason: str) -> None:
        """The row is ABORTED at once, whatever it was; the pod goes later, and only then comes an event."""
        has_ended = run.phase in ENDS
        run.phase, run.abort_reason, run.ended = ABORTED, reason, now()
        self._notify(run)
        if has_ended:  # its pod is gone, and the attempt stays what it was
            return
        task = asyncio.get_running_loop().create_task(self._reconcile_abort(run))
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _reconcile_abort(self, run: Run) -> None:
        self.resources.discard(run.key[2])
        if run.pod is not None:
            run.pod.cancel()
            await asyncio.wait({run.pod})
        run.logs.clear()
        run.events.append(Event(run.attempts, ABORTED, now()))
        self.something_was_written()

    def collect_garbage(self) -> None:
        """The resources and pods of what has ended go (from any thread)."""
        for run in self.runs.values():
            if run.phase in ENDS:
                self.resources.discard(run.key[2])
                run.logs.clear()

    # -- watching ------------------------------------------------------------------------------------

    def subscribe(self) -> asyncio.Queue[Run]:
        """Be told of each run that changes; for a while, if it is a bad day."""
        watch: asyncio.Queue[Run] = asyncio.Queue(_BACKLOG)
        self._watches.add(watch)
        return watch

    def unsubscribe(self, watch: asyncio.Queue[Run]) -> None:
        """Be told no more."""
        self._watches.discard(watch)

    def _notify(self, run: Run) -> None:
        if self.faults.watches_are_silent:
            return
        for watch in self._watches:
            if not watch.full():
                watch.put_nowait(run)

    def something_was_written(self) -> None:
        """Wake those who follow logs."""
        self._written.set()
        self._written = asyncio.Event()

    async def next_writing(self) -> None:
        """Wait until something was written, or has ended."""
        await self._written.wait()

    # -- as messages ---------------------------------------------------------------------------------

    def status_of(self, run: Run) -> run_definition_pb2.ActionStatus:
        """A run's ActionStatus."""
        status = run_definition_pb2.ActionStatus(
            phase=run.phase if self.faults.unknown_phase is None else self.faults.unknown_phase,
            start_time=run.created,
            attempts=0 if self.faults.attempts_are_zero else run.attempts,
        )
        if run.ended is not None:
            status.end_time.CopyFrom(run.ended)
            status.duration_ms = (run.ended.ToNanoseconds() - run.created.ToNanoseconds()) // 1_000_000
        return status

    def action_of(self, run: Run) -> run_definition_pb2.Action:
        """A run's root action, as lists and watches have it: without its error, without labels."""
        task = run_definition_pb2.TaskActionMetadata(
            id=run.task.task_id, task_type="python", short_name=run.task.spec.short_name
        )
        return run_definition_pb2.Action(
            id=action_id_of(run),
            metadata=run_definition_pb2.ActionMetadata(
                action_type=run_definition_pb2.ACTION_TYPE_TASK,
                task=task,
                funtion_name=run.task.spec.short_name,  # spelled so
            ),
            status=self.status_of(run),
        )

    def details_of(self, run: Run) -> run_definition_pb2.ActionDetails:
        """A run's root action with its attempts, as far as their events have arrived."""
        action = self.action_of(run)
        details = run_definition_pb2.ActionDetails(
            id=action.id, metadata=action.metadata, status=action.status, task=run.task.spec
        )
        for number in sorted({event.attempt for event in run.events}):
            details.attempts.append(_attempt(run, number, [e for e in run.events if e.attempt == number]))
        if run.phase == ABORTED:
            details.abort_info.reason = run.abort_reason
        elif run.phase == FAILED and details.attempts:
            last = details.attempts[-1]
            if last.attempt == run.attempts and last.HasField("error_info"):
                details.error_info.CopyFrom(last.error_info)
        return details


def _attempt(run: Run, number: int, events: list[Event]) -> run_definition_pb2.ActionAttempt:
    """The events of one attempt, merged."""
    phases = [event for event in events if not event.cluster_events]
    last = phases[-1]
    attempt = run_definition_pb2.ActionAttempt(
        attempt=number,
        phase=last.phase,
        start_time=phases[0].time,
        end_time=last.time if last.phase in ENDS else None,
        cluster="fleet-cluster",
        cluster_events=[told for event in events for told in event.cluster_events],
        logs_available=any(event.phase == RUNNING for event in phases),
    )
    pod = f"{run.key[2]}-a0-{number - 1}"
    attempt.log_context.primary_pod_name = pod
    attempt.log_info.add(uri=f"https://logs.example/{pod}", name="Kubernetes Logs")
    if last.phase == SUCCEEDED:
        attempt.outputs.output_uri = f"s3://data/{run.key[2]}/outputs.pb"
    if last.error is not None:
        attempt.error_info.CopyFrom(last.error)
    ends = [event.time for event in phases[1:]] + [attempt.end_time if last.phase in ENDS else None]
    for event, end in zip(phases, ends, strict=True):
        attempt.phase_transitions.append(
            run_definition_pb2.PhaseTransition(phase=event.phase, start_time=event.time, end_time=end)
        )
    return attempt


def now() -> Timestamp:
    """This moment."""
    timestamp = Timestamp()
    timestamp.FromDatetime(datetime.datetime.now(datetime.UTC))
    return timestamp


def key_of(run_id: identifier_pb2.RunIdentifier) -> RunKey:
    """A run's key in the database: the organisation isn't part of it."""
    return run_id.project, run_id.domain, run_id.name


def action_id_of(run: Run) -> identifier_pb2.ActionIdentifier:
    """The name of a run's root action."""
    project, domain, name = run.key
    return identifier_pb2.ActionIdentifier(
        run=identifier_pb2.RunIdentifier(project=project, domain=domain, name=name), name="a0"
    )


def literal(value: object) -> literals_pb2.Literal:
    """A Literal of a text, a number or a truth value; of a list of such."""
    if isinstance(value, list):
        collection = literals_pb2.LiteralCollection(literals=[literal(one) for one in value])
        return literals_pb2.Literal(collection=collection)
    kinds: dict[type, str] = {bool: "boolean", int: "integer", float: "float_value", str: "string_value"}
    primitive = literals_pb2.Primitive(**{kinds[type(value)]: value})
    return literals_pb2.Literal(scalar=literals_pb2.Scalar(primitive=primitive))


def _literal_type(kind: Any) -> types_pb2.LiteralType:
    return kind if isinstance(kind, types_pb2.LiteralType) else types_pb2.LiteralType(simple=kind)


def _variables(types: Mapping[str, types_pb2.LiteralType]) -> interface_pb2.VariableMap:
    entries = [
        interface_pb2.VariableEntry(key=name, value=interface_pb2.Variable(type=kind))
        for name, kind in types.items()
    ]
    return interface_pb2.VariableMap(variables=entries)
