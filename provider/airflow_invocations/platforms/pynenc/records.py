"""Read invocations from a pynenc backend; nothing that a task stored is executed."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from pynenc import Pynenc
from pynenc.exceptions import InvocationNotFoundError
from pynenc.invocation.status import InvocationStatus as Status
from pynenc.invocation.status import InvocationStatusRecord
from pynenc.models.call_dto import CallDTO
from pynenc.models.invocation_dto import InvocationDTO
from pynenc.runner.runner_context import RunnerContext

from ...models import (
    SOURCE_ID_BEGIN,
    ActionProvenance,
    ComputeRequirements,
    ContainerParameters,
    DataSource,
    ExecutableProvenance,
    InvocationProvenance,
    InvocationRecord,
    InvocationSource,
    InvocationStatus,
    SourceFilter,
    SourceProvenance,
    StatusRecord,
    StatusSnapshot,
    UnreadableItem,
)
from ...models.invocation import elapsed
from ..errors import NotFoundError, UnsupportedError
from .serialization import JSON_SERIALIZERS, message_in, plain
from .settings import STATUSES

#: The classes of runner contexts in an invocation's history: of what started it, and of a cancel.
STARTED_BY = {source: f"Airflow{source}" for source in InvocationSource}
_CANCELLED_BY = "AirflowCancel"

_S = InvocationStatus

#: The status of an unknown status of pynenc.
UNKNOWN = InvocationStatus(-1)


class RecordReader:
    """Reads invocations.

    :param app: the app whose backend is read.
    :param where: the app and its backend, for messages.
    """

    def __init__(self, app: Pynenc, where: str) -> None:
        self._app = app
        self._where = where

    def record(self, invocation_id: str) -> InvocationRecord:
        """Return an invocation's record. Raises NotFoundError if there is none."""
        history = self._app.state_backend.get_history(invocation_id)
        current = self.current(invocation_id, history)
        stored, call = self.stored(invocation_id)
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
        """Return the records of some invocations; unknown ids are left out."""
        found: list[InvocationRecord | UnreadableItem] = []
        for one in ids:
            try:
                found.append(self.record(one))
            except NotFoundError:
                continue
            except (KeyError, TypeError, ValueError) as error:
                # Another program wrote this.
                found.append(UnreadableItem(f"{one}: {type(error).__name__}: {error}"))
        return found

    def statuses(self, ids: Sequence[str]) -> list[StatusSnapshot]:
        """Return the statuses of known invocations: a query per status, then one for each that moved."""
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

    def ended(self, ids: Sequence[str]) -> list[StatusSnapshot]:
        """Return the statuses of the terminal ones."""
        if not ids:
            return []
        found: dict[str, InvocationStatus] = {}
        for kind, words in _BY_KIND.items():
            if kind.is_terminal:
                found |= dict.fromkeys(self._app.orchestrator.filter_by_status(list(ids), words), kind)
        cancelled = self.cancelled([one for one, kind in found.items() if kind is _S.Failed])
        return [StatusSnapshot(one, _S.Cancelled if one in cancelled else found[one]) for one in found]

    def find(self, wanted: SourceFilter) -> list[InvocationRecord]:
        """Return the invocations of these task instances, newest first."""
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

    def find_active(self, limit: int) -> list[InvocationRecord]:
        """Return the active invocations that tasks of any Airflow have started."""
        backend = self._app.state_backend
        ids = {
            one
            for source in {one.runner_id for one in backend.get_matching_runner_contexts(SOURCE_ID_BEGIN)}
            for one in backend.get_invocations_by_parent_event(source)
        }
        active = [one.invocation_id for one in self.statuses(sorted(ids)) if not one.status.is_terminal]
        return [self.record(one) for one in active[:limit]]

    def outputs(self, invocation_id: str) -> Any:
        """Return the result of a completed task. Raises UnsupportedError unless it is JSON."""
        try:
            stored = self._app.state_backend._get_result(invocation_id)
        except KeyError:
            raise NotFoundError(f"{self._where} has no result of {invocation_id}") from None
        try:
            return plain(self._text(stored))
        except UnsupportedError as error:
            raise UnsupportedError(
                f"the result of {invocation_id} can't be shown: {error}; return JSON types from the task"
            ) from None

    def current(self, invocation_id: str, history: Sequence[Any]) -> InvocationStatusRecord:
        """Return an invocation's status. If the orchestrator has purged it, the terminal one of the history.

        :raises NotFoundError: there is none.
        """
        if (current := self.registered(invocation_id)) is not None:
            return current
        for row in history:
            if row.status_record.status.is_final():
                return row.status_record
        raise NotFoundError(f"{self._where} has no invocation {invocation_id}")

    def _status(self, invocation_id: str) -> InvocationStatus | None:
        try:
            return self.record(invocation_id).last_status
        except NotFoundError:
            return None

    def stored(self, invocation_id: str) -> tuple[InvocationDTO, CallDTO]:
        """Return an invocation and its call. Unlike `get_invocation` this doesn't import the task."""
        stored: tuple[InvocationDTO, CallDTO] | None = None
        with suppress(InvocationNotFoundError):
            stored = self._app.state_backend._get_invocation(invocation_id)
        if stored is None:
            raise NotFoundError(f"{self._where} does not name the task of invocation {invocation_id}")
        return stored

    def _steps(
        self, invocation_id: str, history: Sequence[Any], current: InvocationStatusRecord
    ) -> list[StatusRecord]:
        """Return the history up to the present status; a later entry comes from a repeated request."""
        past = [row.status_record for row in history if row.status_record.timestamp < current.timestamp]
        past.sort(key=lambda record: record.timestamp)
        steps: list[StatusRecord] = []
        for record in [*past, current]:
            word = record.status.value
            # A repeated status, or a second registration, comes from two callers at the same time.
            if steps and word in (steps[-1].platform_status, Status.REGISTERED.value):
                continue
            status = STATUSES.get(word, UNKNOWN)
            steps.append(StatusRecord(status=status, timestamp=record.timestamp, platform_status=word))
        end = steps[-1]
        if end.status is _S.Failed:
            end.detail = self._why(invocation_id, current.status)
            if self.cancelled([invocation_id]):
                end.status = _S.Cancelled
        return steps

    def _why(self, invocation_id: str, status: Status) -> str | None:
        if status is Status.CONCURRENCY_CONTROLLED_FINAL:
            return "its concurrency control did not allow it to run"
        try:
            return message_in(self._app.state_backend._get_exception(invocation_id), self._text)
        except KeyError:
            return None

    def _source(self, stored: InvocationDTO, history: Sequence[Any]) -> SourceProvenance:
        """Return the source: the runner context of the first entry, else the parent event of the request."""
        lines = (row for row in history if row.status_record.status is Status.REGISTERED)
        signed = (row.runner_context_id for row in lines)
        asked = next(signed, None) or stored.parent_event_id or ""
        for signature in self._app.state_backend.get_runner_contexts([asked]) if asked else ():
            for source, cls in STARTED_BY.items():
                if signature.runner_cls == cls:
                    return SourceProvenance(source_type=source, source_id=asked)
        return SourceProvenance(source_type=InvocationSource.Manual, source_id=asked)

    def _parameters(self, call: CallDTO) -> dict[str, Any]:
        """Return the arguments that are JSON."""
        found = {}
        for name, stored in call.serialized_arguments.items():
            with suppress(UnsupportedError, KeyError):
                found[name] = plain(self._text(stored))
        return found

    def _text(self, stored: str) -> str:
        """Return a stored value's text, which may be in the client data store."""
        if self._app.conf.serializer_cls not in JSON_SERIALIZERS:
            raise UnsupportedError(f"the app's serializer is {self._app.conf.serializer_cls}, not JSON")
        store = self._app.client_data_store
        return str(store._retrieve(stored)) if store.is_reference(stored) else stored

    def registered(self, invocation_id: str) -> InvocationStatusRecord | None:
        """Return the orchestrator's status of an invocation; None if it has none."""
        try:
            return self._app.orchestrator.get_invocation_status_record(invocation_id)
        except KeyError:
            return None

    def cancelled(self, ids: Sequence[str]) -> set[str]:
        """Return the invocations whose cancellation was requested."""
        if not ids:
            return set()
        signed = {canceller(one).runner_id: one for one in ids}
        return {signed[one.runner_id] for one in self._app.state_backend.get_runner_contexts(list(signed))}


def canceller(invocation_id: str) -> RunnerContext:
    """Return the runner context of an invocation's cancel: always the same, so that a cancel can resume."""
    return RunnerContext(_CANCELLED_BY, f"airflow-cancel-{invocation_id}")


def _by_kind() -> dict[InvocationStatus, frozenset[Status]]:
    kinds: dict[InvocationStatus, set[Status]] = {}
    for word, kind in STATUSES.items():
        kinds.setdefault(kind, set()).add(Status(word))
    return {kind: frozenset(words) for kind, words in kinds.items()}


#: pynenc's statuses by the invocation API's, in the order of an invocation's life.
_BY_KIND = _by_kind()
