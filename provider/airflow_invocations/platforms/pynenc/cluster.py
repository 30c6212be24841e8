"""What a caller does with a pynenc app, blocking and in one thread; imported when it is needed."""

from __future__ import annotations

import datetime
import inspect
import logging
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

from pynenc import context
from pynenc.call import Call
from pynenc.conf.config_task import ConcurrencyControlType
from pynenc.exceptions import InvocationStatusError
from pynenc.invocation.dist_invocation import DistributedInvocation
from pynenc.invocation.status import InvocationStatus as Status
from pynenc.invocation.status import InvocationStatusRecord
from pynenc.models.invocation_dto import InvocationDTO
from pynenc.runner.runner_context import RunnerContext
from pynenc.task import Task
from pynenc.workflow.workflow_identity import WorkflowIdentity

from ...models import (
    ActionRecord,
    InvocationRecord,
    InvocationRequest,
    OpenActionRecord,
    SourceProvenance,
    StatusSnapshot,
)
from ...models.text import counted
from ..errors import CannotStopError, ConflictError, InvalidRequestError, PermanentError
from .app import load_app, load_task
from .history import History
from .records import STARTED_BY, RecordReader, canceller
from .settings import PynencSettings, Stop
from .signature import parameters_of, signature_errors

#: The namespace of invocation ids, which are derived from idempotency ids.
_NAMESPACE = uuid.UUID("0d3f3d0b-6a52-5b0c-9a1c-2f6d5f3b8c11")

#: Seconds after which an invocation that is still registered is queued again: its caller may have died before
#: it was queued. Runners ignore a second message.
_LOST_MESSAGE = 10.0

#: Seconds for which only one caller may register an invocation, or queue it again. On Redis neither is
#: atomic, and two callers could run it twice. If the caller dies, another one continues after this time.
CLAIM = 30

#: The key in an invocation's workflow data under which its code finds that it was asked to stop.
CANCEL_KEY = "cancel"

#: When an action was created: pynenc doesn't know.
_LONG_AGO = datetime.datetime.fromtimestamp(0, datetime.UTC)

_log = logging.getLogger(__name__)


class Cluster:
    """An app's backend, for a caller that runs no tasks.

    :param settings: the app and its backend.
    """

    def __init__(self, settings: PynencSettings) -> None:
        self._where = settings.where
        self._app = load_app(settings)
        self.reader = RecordReader(self._app, self._where)
        self.history = History(self._app, self.reader)

    def check(self) -> str:
        """Return a sentence about the backend, its runners and its queue."""
        queued = self._app.broker.count_invocations()
        runners = len(self._app.orchestrator.get_active_runners())
        alive = (
            f"alive: {counted(runners, 'runner')}" if runners else "no runner is alive, so nothing would run"
        )
        return (
            f"{self._where}, by pynenc {version('pynenc')}: {alive}; queued: {counted(queued, 'invocation')}"
        )

    def action(self, name: str) -> ActionRecord:
        """Return a task with the parameters of its signature."""
        task = load_task(self._app, name)
        doc = inspect.getdoc(task.func)
        # Open, because `signature_errors` reports unknown parameters, together with all other problems.
        return OpenActionRecord(
            created=_LONG_AGO,
            created_by="",
            modified=_LONG_AGO,
            modified_by="",
            name=name,
            org_id=self._app.app_id,
            description=doc,
            short_description=doc.splitlines()[0][:140] if doc else None,
            parameters=parameters_of(task.func),
        )

    def invoke(self, name: str, request: InvocationRequest) -> InvocationRecord | None:
        """Register and queue an invocation, unless it exists; return its record.

        None: another caller is registering it.
        """
        task = load_task(self._app, name)
        given = request.parameter_values or {}
        if problems := signature_errors(task.func, given):
            raise InvalidRequestError(
                f"task {name!r} was not invoked: {'; '.join(problems)}; it declares: "
                f"{self.action(name).declared_parameters or 'no parameters'}"
            )
        once = request.idempotency_id
        invocation_id = invocation_id_of(once) if once is not None else str(uuid.uuid4())
        current = self.reader.registered(invocation_id)
        if current is None:
            if not self._claims("registers", invocation_id):
                return None
            # The previous claim's owner may have registered it after the first check.
            current = self.reader.registered(invocation_id)
        if current is None:
            self._register(task, invocation_id, given, _source_of(request))
        else:
            self._adopt(name, invocation_id, current)
        return self.reader.record(invocation_id).model_copy(update={"idempotency_id": once})

    def _register(
        self, task: Task, invocation_id: str, given: Mapping[str, Any], source: SourceProvenance | None
    ) -> None:
        """Store and queue an invocation. Two callers at the same time store the same one."""
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
            _log.warning("%s: no runner is alive; invocation %s waits for one", self._where, invocation_id)
        if task.conf.running_concurrency != ConcurrencyControlType.DISABLED:
            self._app.orchestrator.index_arguments_for_concurrency_control(invocation)

    def _adopt(self, name: str, invocation_id: str, current: InvocationStatusRecord) -> None:
        """Adopt an existing invocation, and queue it again if that may have failed."""
        present = self.reader.stored(invocation_id)[1].call_id.task_id.key
        if present != name:
            raise ConflictError(f"{invocation_id} is an invocation of task {present!r}, not of {name!r}")
        self._queue_if_lost(invocation_id, current)

    def queue_again(self, ids: Sequence[str]) -> None:
        """Queue invocations again that no runner has taken."""
        for invocation_id in ids:
            if (current := self.reader.registered(invocation_id)) is not None:
                self._queue_if_lost(invocation_id, current)

    def _queue_if_lost(self, invocation_id: str, current: InvocationStatusRecord) -> None:
        age = datetime.datetime.now(datetime.UTC) - current.timestamp
        is_late = current.status is Status.REGISTERED and age.total_seconds() > _LOST_MESSAGE
        if is_late and self._claims("queues", invocation_id):
            self._app.broker.route_invocation(invocation_id)
            _log.info("%s: queued invocation %s again, because no runner took it", self._where, invocation_id)

    def statuses_by_key(self, keys: Sequence[str]) -> list[StatusSnapshot]:
        """Return the statuses of the invocations of idempotency ids."""
        return self.reader.statuses([invocation_id_of(key) for key in keys])

    def _claims(self, what: str, invocation_id: str) -> bool:
        """Claim a step for CLAIM seconds, as pynenc's triggers do; return whether that worked."""
        return bool(self._app.trigger.claim_trigger_run(f"airflow-{what}-{invocation_id}", CLAIM))

    @contextmanager
    def _signed(self, source: SourceProvenance | None) -> Iterator[None]:
        """Sign what is registered meanwhile with its source."""
        if source is None:
            yield
            return
        signature = RunnerContext(STARTED_BY[source.source_type], source.source_id)
        context.set_runner_context(self._app.app_id, signature)
        try:
            yield
        finally:
            context.clear_runner_context(self._app.app_id)

    def request_stop(self, invocation_id: str) -> None:
        """Record that an invocation is to stop, for its code and for later readers, unless it is terminal."""
        if self.reader.current(
            invocation_id, self._app.state_backend.get_history(invocation_id)
        ).status.is_final():
            return
        self._app.state_backend.store_runner_context(canceller(invocation_id))
        task_id = self.reader.stored(invocation_id)[1].call_id.task_id
        identity = WorkflowIdentity(invocation_id, task_id, None)
        self._app.state_backend.set_workflow_data(identity, CANCEL_KEY, True)

    def stop(self, invocation_id: str) -> Stop:
        """Stop an invocation that hasn't started."""
        current = self.reader.registered(invocation_id)
        if current is None or current.status.is_final():
            return Stop.Ended
        me = canceller(invocation_id)
        if current.status.is_available_for_run() or current.runner_id == me.runner_id:
            return Stop.Ended if self._end(invocation_id, me, current.status) else Stop.InBetween
        return Stop.Runs if current.status in (Status.RUNNING, Status.PAUSED) else Stop.InBetween

    def why_still_running(self, invocation_id: str) -> str:
        """Return why an invocation can't be stopped, and where it runs."""
        current = self.reader.registered(invocation_id)
        owner = current.runner_id if current else None
        at = self._app.state_backend.get_runner_contexts([owner]) if owner else []
        where = f" in {at[0].runner_cls} {owner} on {at[0].hostname}, process {at[0].pid}" if at else ""
        return (
            f"invocation {invocation_id} is running and can't be stopped from outside. It was asked to stop "
            f"through {CANCEL_KEY!r} in its workflow data, and keeps running{where} unless its code reads it"
        )

    def _end(self, invocation_id: str, me: RunnerContext, status: Status) -> bool:
        """Claim an invocation as a runner does, or resume an earlier cancel, and end it.

        Return whether it ended; a runner may have been faster.

        :raises CannotStopError: the task's code, which this needs, can't be imported here.
        """
        try:
            load_task(self._app, self.reader.stored(invocation_id)[1].call_id.task_id.key)
        except PermanentError as error:
            raise CannotStopError(f"invocation {invocation_id} can't be stopped from here: {error}") from None
        orchestrator = self._app.orchestrator
        try:
            if status not in (Status.PENDING, Status.RUNNING):
                orchestrator.set_invocation_status(invocation_id, Status.PENDING, me)
                if orchestrator.get_invocation_status_record(invocation_id).runner_id != me.runner_id:
                    return False  # on Redis two can claim, and the later one owns it
            if status is not Status.RUNNING:
                orchestrator.set_invocation_status(invocation_id, Status.RUNNING, me)
            # A builtin exception, because it is raised where a task waits for the result.
            why = RuntimeError("cancelled before it started")
            orchestrator.set_invocation_exception(
                self._app.state_backend.get_invocation(invocation_id), why, me
            )
        except InvocationStatusError:
            return False
        return True


def invocation_id_of(idempotency_id: str) -> str:
    """Return the id of the invocation of an idempotency id."""
    return str(uuid.uuid5(_NAMESPACE, idempotency_id))


def _source_of(request: InvocationRequest) -> SourceProvenance | None:
    if request.provenance is not None:
        return request.provenance.source
    if request.invocation_source_id is None:
        return None
    return SourceProvenance(source_type=request.invocation_source, source_id=request.invocation_source_id)


def _workflow(invocation_id: str, task: Task) -> WorkflowIdentity:
    return WorkflowIdentity.new_workflow(invocation_id=invocation_id, task_id=task.task_id)
