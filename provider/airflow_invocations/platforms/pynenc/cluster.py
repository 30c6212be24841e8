"""What a caller asks of a pynenc cluster, blocking, in one thread; imported when it is needed."""

from __future__ import annotations

import datetime
import inspect
import logging
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from typing import Any

from pynenc import context
from pynenc.call import Call
from pynenc.conf.config_task import ConcurrencyControlType
from pynenc.exceptions import InvocationNotFoundError, InvocationStatusError
from pynenc.invocation.dist_invocation import DistributedInvocation
from pynenc.invocation.status import InvocationStatus as Status
from pynenc.invocation.status import InvocationStatusRecord
from pynenc.models.call_dto import CallDTO
from pynenc.models.invocation_dto import InvocationDTO
from pynenc.runner.runner_context import RunnerContext
from pynenc.state_backend.base_state_backend import InvocationHistory
from pynenc.task import Task
from pynenc.workflow.workflow_identity import WorkflowIdentity

from ...models import (
    ActionProvenance,
    ActionRecord,
    ComputeRequirements,
    ContainerParameters,
    DataSource,
    ExecutableProvenance,
    InvocationEvent,
    InvocationProvenance,
    InvocationRecord,
    InvocationRequest,
    InvocationSource,
    InvocationStatus,
    OpenActionRecord,
    SourceFilter,
    SourceProvenance,
    StatusRecord,
    StatusSnapshot,
    UnreadableItem,
    cursor_at,
)
from ...models.invocation import elapsed
from ...models.text import counted
from ..errors import (
    CannotStopError,
    ConflictError,
    InvalidRequestError,
    NotFoundError,
    PermanentError,
    UnsupportedError,
)
from ..polling import ListedInvocation
from .app import load_app, load_task
from .platform import STATUSES, PynencSettings, Stop
from .serialization import JSON_SERIALIZERS, message_in, plain
from .signature import misfits, parameters_of

#: What turns an idempotency id into an invocation's id; changes when that does.
_NAMESPACE = uuid.UUID("0d3f3d0b-6a52-5b0c-9a1c-2f6d5f3b8c11")

#: Seconds after which what is still registered is queued once more, if it is asked for again: whoever
#: registered it may have died before it was queued. Runners drop a message too many.
_LOST_MESSAGE = 10.0

#: Seconds for which whoever registers an invocation, or queues it again, has that to itself: on Redis
#: neither is atomic, so that two at once could have it run twice. Who died meanwhile is replaced after it.
CLAIM = 30

#: Lines of the history that are read at a time, beside which nothing else is done.
ROWS = 500

#: Invocations whose task is remembered.
_TASKS_KEPT = 20_000

#: How the names of pynenc's own tasks begin, which every app has.
_OWN_TASKS = "pynenc.core_tasks."

#: The key in an invocation's workflow data under which its code finds that it was asked to stop.
CANCEL_KEY = "cancel"

#: How those who ask, and those who cancel, sign in an invocation's history: with these classes.
_ASKS = {source: f"Airflow{source}" for source in InvocationSource}
_CANCELS = "AirflowCancel"

_S = InvocationStatus
_UNKNOWN = InvocationStatus(-1)

_log = logging.getLogger(__name__)


class Cluster:
    """An app's backend, as somebody who only calls sees it.

    :param settings: which app, and where.
    """

    def __init__(self, settings: PynencSettings) -> None:
        self._where = settings.where
        self._app = load_app(settings)
        #: The tasks of invocations that were met in the history lately.
        self._tasks: dict[str, str] = {}

    # -- what can be invoked -------------------------------------------------------------------------

    def check(self) -> str:
        """A sentence about the backend and who runs tasks there."""
        queued = self._app.broker.count_invocations()
        runners = len(self._app.orchestrator.get_active_runners())
        alive = (
            f"alive: {counted(runners, 'runner')}"
            if runners
            else "no runner is alive, so nothing would be run"
        )
        return (
            f"{self._where}, by pynenc {version('pynenc')}: {alive}; queued: {counted(queued, 'invocation')}"
        )

    def action(self, name: str) -> ActionRecord:
        """A task and its signature."""
        task = load_task(self._app, name)
        says = inspect.getdoc(task.func)
        # Open: what it doesn't take is told by `misfits`, together with all else that is wrong.
        return OpenActionRecord(
            created=_LONG_AGO,
            created_by="",
            modified=_LONG_AGO,
            modified_by="",
            name=name,
            org_id=self._app.app_id,
            description=says,
            short_description=says.splitlines()[0][:140] if says else None,
            parameters=parameters_of(task.func),
        )

    # -- invoking ------------------------------------------------------------------------------------

    def invoke(self, name: str, request: InvocationRequest) -> InvocationRecord | None:
        """Register an invocation and queue it, unless it is there already.

        None: somebody else is just registering it.
        """
        task = load_task(self._app, name)
        given = request.parameter_values or {}
        if problems := misfits(task.func, given):
            raise InvalidRequestError(
                f"task {name!r} was not invoked: {'; '.join(problems)}; it declares: "
                f"{self.action(name).declared_parameters or 'no parameters'}"
            )
        once = request.idempotency_id
        invocation_id = invocation_id_of(once) if once is not None else str(uuid.uuid4())
        current = self._registered(invocation_id)
        if current is None:
            if not self._claims("registers", invocation_id):
                return None
            # Who had the claim before this one may have registered it since it was looked for.
            current = self._registered(invocation_id)
        if current is None:
            self._register(task, invocation_id, given, _source_of(request))
        else:
            self._adopt(name, invocation_id, current)
        return self.record(invocation_id).model_copy(update={"idempotency_id": once})

    def _register(
        self, task: Task, invocation_id: str, given: Mapping[str, Any], source: SourceProvenance | None
    ) -> None:
        """Store an invocation and queue it. Who does the same at the same time stores the same once."""
        try:
            call = Call(task, task.args(**given))
        except TypeError as error:
            raise InvalidRequestError(f"task {task.task_id.key!r} was not invoked: {error}") from None
        invocation = DistributedInvocation.from_dto(
            InvocationDTO(
                invocation_id=invocation_id,
                call_id=call.call_id,
                workflow=_workflow(invocation_id, task) if task.is_workflow_root_task else None,
                parent_invocation_id=None,
                parent_event_id=source.source_id if source else None,
            ),
            call,
        )
        with self._signed(source):
            self._app.orchestrator.register_new_invocations([invocation])
        if not self._app.orchestrator.get_active_runners():
            _log.warning("%s: no runner is alive, invocation %s waits for one", self._where, invocation_id)
        if task.conf.running_concurrency != ConcurrencyControlType.DISABLED:
            self._app.orchestrator.index_arguments_for_concurrency_control(invocation)

    def _adopt(self, name: str, invocation_id: str, current: InvocationStatusRecord) -> None:
        """Go on with an invocation that is there, and queue it again if that may have failed."""
        theirs = self._stored(invocation_id)[1].call_id.task_id.key
        if theirs != name:
            raise ConflictError(f"{invocation_id} is an invocation of task {theirs!r}, not of {name!r}")
        self._queue_if_lost(invocation_id, current)

    def queue_again(self, ids: Sequence[str]) -> None:
        """Queue those of these invocations again that no runner has taken yet."""
        for invocation_id in ids:
            if (current := self._registered(invocation_id)) is not None:
                self._queue_if_lost(invocation_id, current)

    def _queue_if_lost(self, invocation_id: str, current: InvocationStatusRecord) -> None:
        age = datetime.datetime.now(datetime.UTC) - current.timestamp
        is_late = current.status is Status.REGISTERED and age.total_seconds() > _LOST_MESSAGE
        if is_late and self._claims("queues", invocation_id):
            self._app.broker.route_invocation(invocation_id)
            _log.info("%s: queued invocation %s again, which no runner has taken", self._where, invocation_id)

    def _registered(self, invocation_id: str) -> InvocationStatusRecord | None:
        """The status that the orchestrator has; None: it knows no such invocation (any more)."""
        try:
            return self._app.orchestrator.get_invocation_status_record(invocation_id)
        except KeyError:
            return None

    def _claims(self, what: str, invocation_id: str) -> bool:
        """Whether this caller alone may do that for a while; every backend has it for runs of triggers."""
        return bool(self._app.trigger.claim_trigger_run(f"airflow-{what}-{invocation_id}", CLAIM))

    @contextmanager
    def _signed(self, source: SourceProvenance | None) -> Iterator[None]:
        """Have what is registered meanwhile say who asked."""
        if source is None:
            yield
            return
        asks = RunnerContext(_ASKS[source.source_type], source.source_id)
        context.set_runner_context(self._app.app_id, asks)
        try:
            yield
        finally:
            context.clear_runner_context(self._app.app_id)

    # -- looking -------------------------------------------------------------------------------------

    def record(self, invocation_id: str) -> InvocationRecord:
        """All that is known of an invocation."""
        history = self._app.state_backend.get_history(invocation_id)
        current = self._current(invocation_id, history)
        stored, call = self._stored(invocation_id)
        steps = self._steps(invocation_id, history, current)
        return InvocationRecord(
            created=steps[0].timestamp,
            data_source=DataSource(),
            invocation_id=invocation_id,
            compute_requirements=ComputeRequirements(),
            container_parameters=ContainerParameters(),
            last_status=steps[-1].status,
            org_id=self._app.app_id,
            parameter_values=self._parameters(call),
            provenance=InvocationProvenance(
                action=ActionProvenance(name=call.call_id.task_id.key, org_id=self._app.app_id),
                executable=ExecutableProvenance(),
                source=self._source(stored, history),
            ),
            status=steps,
            duration=elapsed(steps, datetime.datetime.now(datetime.UTC)),
            timeout=0,
        )

    def records(self, ids: Sequence[str]) -> list[InvocationRecord | UnreadableItem]:
        """The records of some invocations; those that aren't known are left out."""
        found: list[InvocationRecord | UnreadableItem] = []
        for one in ids:
            try:
                found.append(self.record(one))
            except NotFoundError:
                continue
            except (KeyError, TypeError, ValueError) as error:
                # Whatever somebody else has written there.
                found.append(UnreadableItem(f"{one}: {type(error).__name__}: {error}"))
        return found

    def statuses(self, ids: Sequence[str]) -> list[StatusSnapshot]:
        """The status of each that is known: one question for each kind, then one for each that moved."""
        found = {snapshot.invocation_id: snapshot for snapshot in self.ended(ids)}
        for kind, words in _BY_KIND.items():
            if not kind.is_terminal:
                remaining = [one for one in ids if one not in found]
                for one in self._app.orchestrator.filter_by_status(remaining, words) if remaining else ():
                    found[one] = StatusSnapshot(one, kind)
        for one in ids:
            if one not in found and (status := self._status(one)) is not None:
                found[one] = StatusSnapshot(one, status)
        return list(found.values())

    def statuses_by_key(self, keys: Sequence[str]) -> list[StatusSnapshot]:
        """The same, by idempotency ids."""
        return self.statuses([invocation_id_of(key) for key in keys])

    def ended(self, ids: Sequence[str]) -> list[StatusSnapshot]:
        """Those that have ended."""
        if not ids:
            return []
        found: dict[str, InvocationStatus] = {}
        for kind, words in _BY_KIND.items():
            if kind.is_terminal:
                found |= dict.fromkeys(self._app.orchestrator.filter_by_status(list(ids), words), kind)
        cancelled = self._cancelled([one for one, kind in found.items() if kind is _S.Failed])
        return [StatusSnapshot(one, _S.Cancelled if one in cancelled else found[one]) for one in found]

    def asked_by(self, wanted: SourceFilter) -> list[InvocationRecord]:
        """Return what these task instances have asked for, newest first."""
        backend = self._app.state_backend
        sources = {
            one.runner_id
            for prefix in wanted.prefixes
            for one in backend.get_matching_runner_contexts(prefix)
        }
        ids = {
            one
            for source in sources
            if wanted.matches(source)
            for one in backend.get_invocations_by_parent_event(source)
        }
        records = [self.record(one) for one in ids]
        return sorted(records, key=lambda record: record.created, reverse=True)

    def outputs(self, invocation_id: str) -> Any:
        """What a task has returned."""
        try:
            stored = self._app.state_backend._get_result(invocation_id)
        except KeyError:
            raise NotFoundError(f"{self._where} keeps no result of {invocation_id}") from None
        try:
            return plain(self._text(stored))
        except UnsupportedError as error:
            raise UnsupportedError(
                f"what {invocation_id} returned can't be shown: {error}; have the task return JSON types"
            ) from None

    def _current(self, invocation_id: str, history: Sequence[Any]) -> InvocationStatusRecord:
        """The status that counts. Of what was purged from there, its end, if the history has one."""
        if (current := self._registered(invocation_id)) is not None:
            return current
        for row in history:
            if row.status_record.status.is_final():
                return row.status_record
        raise NotFoundError(f"{self._where} knows no invocation {invocation_id}")

    def _status(self, invocation_id: str) -> InvocationStatus | None:
        try:
            return self.record(invocation_id).last_status
        except NotFoundError:
            return None

    def _stored(self, invocation_id: str) -> tuple[InvocationDTO, CallDTO]:
        """What was asked for. Unlike `get_invocation` this needs nothing of the task's own code."""
        stored: tuple[InvocationDTO, CallDTO] | None = None
        with suppress(InvocationNotFoundError):
            stored = self._app.state_backend._get_invocation(invocation_id)
        if stored is None:
            raise NotFoundError(f"{self._where} doesn't say what invocation {invocation_id} is of")
        return stored

    def _steps(
        self, invocation_id: str, history: Sequence[Any], current: InvocationStatusRecord
    ) -> list[StatusRecord]:
        """The history up to the status that counts; what was asked for twice is written down later too."""
        past = [row.status_record for row in history if row.status_record.timestamp < current.timestamp]
        past.sort(key=lambda record: record.timestamp)
        steps: list[StatusRecord] = []
        for record in [*past, current]:
            word = record.status.value
            # Nothing follows itself, and nothing is registered twice, but for those who asked at once.
            if steps and word in (steps[-1].platform_status, Status.REGISTERED.value):
                continue
            status = STATUSES.get(word, _UNKNOWN)
            steps.append(StatusRecord(status=status, timestamp=record.timestamp, platform_status=word))
        end = steps[-1]
        if end.status is _S.Failed:
            end.detail = self._why(invocation_id, current.status)
            if self._cancelled([invocation_id]):
                end.status = _S.Cancelled
        return steps

    def _why(self, invocation_id: str, status: Status) -> str | None:
        if status is Status.CONCURRENCY_CONTROLLED_FINAL:
            return "its concurrency control didn't let it run"
        try:
            return message_in(self._app.state_backend._get_exception(invocation_id), self._text)
        except KeyError:
            return None

    def _source(self, stored: InvocationDTO, history: Sequence[Any]) -> SourceProvenance:
        """Who asked first: who signed the first line; without one, what was stored with the request."""
        lines = (row for row in history if row.status_record.status is Status.REGISTERED)
        signed = (row.runner_context_id for row in lines)
        asked = next(signed, None) or stored.parent_event_id or ""
        for signature in self._app.state_backend.get_runner_contexts([asked]) if asked else ():
            for source, cls in _ASKS.items():
                if signature.runner_cls == cls:
                    return SourceProvenance(source_type=source, source_id=asked)
        return SourceProvenance(source_type=InvocationSource.Manual, source_id=asked)

    def _parameters(self, call: CallDTO) -> dict[str, Any]:
        """The arguments that are JSON."""
        found = {}
        for name, stored in call.serialized_arguments.items():
            with suppress(UnsupportedError, KeyError):
                found[name] = plain(self._text(stored))
        return found

    def _text(self, stored: str) -> str:
        """A stored value's text, wherever it is kept."""
        if self._app.conf.serializer_cls not in JSON_SERIALIZERS:
            raise UnsupportedError(f"the app's serializer is {self._app.conf.serializer_cls}, not JSON")
        store = self._app.client_data_store
        return str(store._retrieve(stored)) if store.is_reference(stored) else stored

    # -- what happens to anybody's invocations -------------------------------------------------------

    def changes(
        self, action: str | None, since: datetime.datetime
    ) -> tuple[list[ListedInvocation], datetime.datetime | None]:
        """What has changed since then: each invocation with its end, or with its last status.

        Only a page of the history is read; where the next one begins, None: that was the last.
        """
        rows, following = self._rows(since, _LATEST)
        last: dict[str, tuple[InvocationStatusRecord, datetime.datetime]] = {}
        for row in rows:
            # An end is the end, though whoever wrote it down has a slower clock than the others.
            if row.invocation_id not in last or not last[row.invocation_id][0].status.is_final():
                last[row.invocation_id] = (row.status_record, row.timestamp)
        return self._listed(action, last), following

    def newest(
        self, action: str, since: datetime.datetime, until: datetime.datetime
    ) -> tuple[str | None, datetime.datetime | None]:
        """The invocation of a task that was registered last between two times.

        Only a page of the history is read; where the next one begins, None: that was the last.
        """
        rows, following = self._rows(since, until)
        registered = (
            row.invocation_id
            for row in reversed(rows)
            if row.status_record.status is Status.REGISTERED and row.status_record.timestamp >= since
        )
        return next((one for one in registered if self._task(one) == action), None), following

    def final(self, ids: Sequence[str]) -> list[str]:
        """Those that have ended, whatever the history says."""
        return list(self._app.orchestrator.filter_final(list(ids)))

    def listed(self, ids: Sequence[str]) -> list[ListedInvocation]:
        """Invocations with the statuses that they have."""
        records = {one: record for one in ids if (record := self._registered(one)) is not None}
        return self._listed(None, {one: (record, record.timestamp) for one, record in records.items()})

    def _listed(
        self, action: str | None, last: Mapping[str, tuple[InvocationStatusRecord, datetime.datetime]]
    ) -> list[ListedInvocation]:
        """Those of these that are the wanted action's, and none of pynenc's own."""
        kinds = {one: STATUSES.get(record.status.value, _UNKNOWN) for one, (record, _) in last.items()}
        cancelled = self._cancelled([one for one, kind in kinds.items() if kind is _S.Failed])
        listed: list[ListedInvocation] = []
        for one, (record, moment) in last.items():
            name = self._task(one)
            if name is None or name.startswith(_OWN_TASKS) or action not in (None, name):
                continue
            kind = _S.Cancelled if one in cancelled else kinds[one]
            at = record.timestamp
            listed.append(ListedInvocation(one, moment, InvocationEvent(one, kind, name, at, cursor_at(at))))
        return listed

    def _rows(
        self, since: datetime.datetime, until: datetime.datetime
    ) -> tuple[list[InvocationHistory], datetime.datetime | None]:
        """The first lines of everybody's history in a range of time, oldest first.

        Where the next ones begin, with some of these among them; None: these are all.
        """
        rows: list[InvocationHistory] = []
        for page in self._app.state_backend.iter_history_in_timerange(since, until, ROWS):
            rows += page
            if len(page) == ROWS and rows[-1].timestamp > since:
                return rows, rows[-1].timestamp
        return rows, None

    def _task(self, invocation_id: str) -> str | None:
        """The name of an invocation's task, which is asked for once; None: nothing says."""
        name = self._tasks.get(invocation_id)
        if name is None:
            with suppress(NotFoundError):
                name = self._tasks[invocation_id] = self._stored(invocation_id)[1].call_id.task_id.key
            if len(self._tasks) > _TASKS_KEPT:
                del self._tasks[next(iter(self._tasks))]
        return name

    # -- stopping ------------------------------------------------------------------------------------

    def ask_to_stop(self, invocation_id: str) -> None:
        """Leave word for the task's code, and for whoever reads how it ended; not if it has ended."""
        if self._current(invocation_id, self._app.state_backend.get_history(invocation_id)).status.is_final():
            return
        self._app.state_backend.store_runner_context(_canceller(invocation_id))
        task_id = self._stored(invocation_id)[1].call_id.task_id
        identity = WorkflowIdentity(invocation_id, task_id, None)
        self._app.state_backend.set_workflow_data(identity, CANCEL_KEY, True)

    def stop(self, invocation_id: str) -> Stop:
        """Stop an invocation if it hasn't started."""
        current = self._registered(invocation_id)
        if current is None or current.status.is_final():
            return Stop.Ended
        me = _canceller(invocation_id)
        if current.status.is_available_for_run() or current.runner_id == me.runner_id:
            return Stop.Ended if self._end(invocation_id, me, current.status) else Stop.InBetween
        return Stop.Runs if current.status in (Status.RUNNING, Status.PAUSED) else Stop.InBetween

    def why_it_runs_on(self, invocation_id: str) -> str:
        """What was asked of an invocation that can't be stopped, and where it runs."""
        current = self._registered(invocation_id)
        owner = current.runner_id if current else None
        at = self._app.state_backend.get_runner_contexts([owner]) if owner else []
        where = f" in {at[0].runner_cls} {owner} on {at[0].hostname}, process {at[0].pid}" if at else ""
        return (
            f"invocation {invocation_id} runs and can't be stopped from outside: it was asked to, through "
            f"{CANCEL_KEY!r} in its workflow data, and goes on{where} unless its code looks there"
        )

    def _end(self, invocation_id: str, me: RunnerContext, status: Status) -> bool:
        """Claim an invocation as a runner would, or go on where an earlier cancel broke off, and end it.

        Returns whether that worked; somebody else may have been quicker.

        Raises:
            CannotStopError: this needs the task's own code, which can't be imported here.
        """
        try:
            load_task(self._app, self._stored(invocation_id)[1].call_id.task_id.key)
        except PermanentError as error:
            raise CannotStopError(f"invocation {invocation_id} can't be stopped from here: {error}") from None
        orchestrator = self._app.orchestrator
        try:
            if status not in (Status.PENDING, Status.RUNNING):
                orchestrator.set_invocation_status(invocation_id, Status.PENDING, me)
                if orchestrator.get_invocation_status_record(invocation_id).runner_id != me.runner_id:
                    return False  # Redis lets two claim at once, and the later one has it
            if status is not Status.RUNNING:
                orchestrator.set_invocation_status(invocation_id, Status.RUNNING, me)
            # Of a type that everybody has: whoever waits for the result in the cluster is raised this.
            why = RuntimeError("cancelled before it started")
            orchestrator.set_invocation_exception(
                self._app.state_backend.get_invocation(invocation_id), why, me
            )
        except InvocationStatusError:
            return False
        return True

    def _cancelled(self, ids: Sequence[str]) -> set[str]:
        """Which of these were to be cancelled."""
        if not ids:
            return set()
        signed = {_canceller(one).runner_id: one for one in ids}
        return {signed[one.runner_id] for one in self._app.state_backend.get_runner_contexts(list(signed))}


def invocation_id_of(idempotency_id: str) -> str:
    """The id of the invocation that an idempotency id stands for."""
    return str(uuid.uuid5(_NAMESPACE, idempotency_id))


def _canceller(invocation_id: str) -> RunnerContext:
    """Who cancels an invocation: the same each time, so that a cancel that broke off can be gone on with."""
    return RunnerContext(_CANCELS, f"airflow-cancel-{invocation_id}")


def _source_of(request: InvocationRequest) -> SourceProvenance | None:
    if request.asked_by is not None:
        return request.asked_by.source
    if request.invocation_source_id is None:
        return None
    return SourceProvenance(source_type=request.invocation_source, source_id=request.invocation_source_id)


def _workflow(invocation_id: str, task: Task) -> WorkflowIdentity:
    return WorkflowIdentity.new_workflow(invocation_id=invocation_id, task_id=task.task_id)


def _by_kind() -> dict[InvocationStatus, frozenset[Status]]:
    kinds: dict[InvocationStatus, set[Status]] = {}
    for word, kind in STATUSES.items():
        kinds.setdefault(kind, set()).add(Status(word))
    return {kind: frozenset(words) for kind, words in kinds.items()}


#: pynenc's statuses by what they mean, in the order of a life.
_BY_KIND = _by_kind()

#: Later than anything in the history, whatever the clocks say.
_LATEST = datetime.datetime.max.replace(tzinfo=datetime.UTC)

#: When an action was made: pynenc doesn't know.
_LONG_AGO = datetime.datetime.fromtimestamp(0, datetime.UTC)
