"""The invocations of the repository: reads and writes, status and ownership, and what a runner does."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pydantic_core
import sqlalchemy as sa
from sqlalchemy.dialects import sqlite

from ...models import (
    ActionProvenance,
    ActionRecord,
    ActionStats,
    ComputeRequirements,
    ContainerParameters,
    DataSource,
    ExecutableProvenance,
    InvocationProvenance,
    InvocationRecord,
    InvocationRequest,
    InvocationStatus,
    LogsLocation,
    Page,
    QuerySpecification,
    SourceProvenance,
    StatusRecord,
)
from ...models.text import counted
from ...runtime.secrets import is_secret_uri, parse_secret_uri
from ..api.errors import ConditionError, InvalidRequestError
from ..execution.overrides import OverrideCheck, require_as_registered
from ..execution.process_limits import MAX_TOTAL, size_of_all
from ..query.statements import Queryable, next_token, page_of
from ..settings import DEFAULT_TIMEOUT
from ..timestamps import moment, now, timestamp
from .actions import effective_action
from .datasets import require_inputs
from .repeats import note_first_request, refuse_another_request
from .tables import FIRST_END, events, invocations, log_locations
from .transitions import (
    INVOCATION_ID,
    CheckedInvocation,
    Lives,
    Subject,
    find_invocation,
    require_invocation,
    update_invocation,
)

#: An invocation that was lost with its runner so often is Deadly.
MAX_LOSSES = 3

#: What the id of every invocation begins with.
ID_PREFIX = "iv_"

#: What owners that are runners begin with; whoever else owns an invocation moves it over the API.
RUNNER_PREFIX = "runner-"

# What every invocation takes is built once: building a statement takes longer than running it.
_BY_IDEMPOTENCY_ID = sa.select(invocations).where(
    invocations.c.org_id == sa.bindparam("org"), invocations.c.idempotency_id == sa.bindparam("once")
)
_INSERT = invocations.insert()
_OLDEST_WAITING = (
    sa.select(invocations)
    .where(
        invocations.c.last_status == InvocationStatus.Queued.value,
        invocations.c.invocation_id.not_in(sa.bindparam("busy", expanding=True)),
    )
    .order_by(invocations.c.number)
    .limit(1)
)
_STEPS = (
    sa.select(
        events.c.invocation_id, events.c.status, events.c.detail, events.c.exit_code, events.c.timestamp
    )
    # One text with all ids: with a parameter each the statement would be another one for each number of them.
    .where(
        events.c.invocation_id.in_(sa.select(sa.func.json_each(sa.bindparam("ids")).table_valued("value")))
    )
    .order_by(events.c.number)
)
_KNOWN = sa.select(invocations.c.invocation_id).where(
    invocations.c.invocation_id.in_(
        sa.select(sa.func.json_each(sa.bindparam("ids")).table_valued("value").c.value)
    ),
    invocations.c.org_id == sa.bindparam("org"),
)
#: What of an invocation's row a page shows, or its token needs.
_SHOWN = (
    invocations.c.invocation_id,
    invocations.c.number,
    invocations.c.created,
    invocations.c.last_heartbeat,
    invocations.c.last_status,
    invocations.c.record,
)

_ENDED_BADLY = (InvocationStatus.Cancelled, InvocationStatus.Failed, InvocationStatus.Deadly)
NONTERMINAL = [status.value for status in InvocationStatus if not status.is_terminal]
_CLAIMED = [status for status in NONTERMINAL if status != InvocationStatus.Queued]

_INVOCATIONS = Queryable(
    table=invocations,
    columns={
        "invocation_id": invocations.c.invocation_id,
        "org_id": invocations.c.org_id,
        "idempotency_id": invocations.c.idempotency_id,
        "data_source_id": invocations.c.data_source_id,
        "created": invocations.c.created,
        "last_status": invocations.c.last_status,
        "last_heartbeat": invocations.c.last_heartbeat,
        "provenance.action.name": invocations.c.action_name,
        "provenance.action.digest": invocations.c.action_digest,
        "provenance.source.source_type": invocations.c.source_type,
        "provenance.source.source_id": invocations.c.source_id,
        "data_source_type": sa.func.json_extract(
            invocations.c.record, "$.data_source.data_source_type", type_=sa.Text
        ),
    },
    times=frozenset({"created", "last_heartbeat"}),
    documents=frozenset(
        {
            "compute_requirements",
            "container_parameters",
            "data_source",
            "input_data",
            "parameter_values",
            "provenance",
            "rich_input_data",
            "timeout",
            "upload_destination",
        }
    ),
    indexed_below={"last_status": FIRST_END},
)


@dataclass(frozen=True, slots=True)
class LeftOver:
    """An invocation that a runner of an earlier life had claimed, and the process group it may have left."""

    invocation_id: str
    owner: str
    process_group: int | None
    process_began: float | None


class Invocations(Lives):
    """Reads and writes of invocations."""

    def invoke(
        self,
        name: str,
        request: InvocationRequest,
        org_id: str,
        user: str,
        digest: str | None = None,
        check_overrides: OverrideCheck = require_as_registered,
    ) -> InvocationRecord:
        """Store a new invocation as Queued; the one that has its `idempotency_id` already, if there is one.

        Raises:
            NotFoundError: no such action.
            InvalidRequestError: a required parameter is missing, its input or destination can't be had, or
                this machine can't run the action.
            ForbiddenError: `check_overrides` refuses what it changes of its action.
            UnsupportedError: it wants topics or sessions.
            ConflictError: the `idempotency_id` belongs to an invocation with a different request.
        """
        with self._write() as connection:
            if (first := _first_of(connection, name, request, org_id)) is not None:
                return first
            action = effective_action(connection, org_id, name, digest)
            registered = action.container_parameters or ContainerParameters()
            check_overrides(registered, request.container_parameter_overrides)
            require_inputs(connection, request, org_id)
            row, record = _new_invocation(action, request, org_id, user)
            parent = _parent_of(connection, row["source_id"], org_id)
            row["parent_id"] = None if parent is None else parent.invocation_id
            row["root_id"] = record.invocation_id if parent is None else parent.root_id
            created = row["created"] = now()
            connection.execute(_INSERT, row)
            note_first_request(connection, record.invocation_id, request)
            subject = Subject(record.invocation_id, org_id, name, row["root_id"])
            self._add_event(connection, subject, InvocationStatus.Queued, None, created, 1, previous=None)
        status = StatusRecord(status=InvocationStatus.Queued, detail=None, timestamp=moment(created))
        return record.model_copy(update={"created": moment(created), "status": [status]})

    def get_invocation(self, invocation_id: str, org_id: str | None = None) -> InvocationRecord:
        """An invocation with its whole history. Raises NotFoundError."""
        with self._read() as connection:
            return self._record(connection, invocation_id, org_id)

    def check_invocation(self, invocation_id: str, org_id: str) -> CheckedInvocation:
        """Check that an organisation has an invocation; its history isn't read. Raises NotFoundError."""
        with self._read() as connection:
            require_invocation(connection, invocation_id, org_id)
        return CheckedInvocation(invocation_id, org_id)

    def check_invocations(self, invocation_ids: Collection[str], org_id: str) -> dict[str, CheckedInvocation]:
        """Return those of some invocations that an organisation has, by id; any other id is left out."""
        wanted = [each for each in invocation_ids if INVOCATION_ID.fullmatch(each)]
        if not wanted:
            return {}
        values = {"org": org_id, "ids": pydantic_core.to_json(wanted).decode()}
        with self._read() as connection:
            found = connection.execute(_KNOWN, values).scalars().all()
        return {each: CheckedInvocation(each, org_id) for each in found}

    def query_invocations(self, spec: QuerySpecification, org_id: str) -> Page[InvocationRecord]:
        """A page of invocations. Raises InvalidRequestError."""
        items, following = self.invocation_documents(spec, org_id)
        return Page(items=[InvocationRecord.model_validate_json(one) for one in items], next_token=following)

    def invocation_documents(self, spec: QuerySpecification, org_id: str) -> tuple[list[str], str | None]:
        """The same as JSON, and the next page's token: reading models would take most of the time.

        Raises:
            InvalidRequestError: the query makes no sense.
        """
        # Most rows are of one organisation, and SQLite would take an index over it for a good one.
        theirs = sa.func.likely(invocations.c.org_id == org_id)
        statement, sort_by = page_of(spec, _INVOCATIONS, theirs)
        shown: sa.Select[Any] = statement.with_only_columns(*_SHOWN, statement.selected_columns.sort_key)
        with self._read_bounded() as connection:
            rows = connection.execute(shown).all()
            items = _written(connection, rows[: spec.limit])
        return items, next_token(spec, sort_by, rows)

    def ended_before(self, invocation_ids: Collection[str], moment: int) -> list[str]:
        """Those of some invocations that had ended by a time (microseconds since 1970)."""
        last = sa.select(sa.func.max(events.c.timestamp)).where(
            events.c.invocation_id == invocations.c.invocation_id
        )
        ended = sa.select(invocations.c.invocation_id).where(
            invocations.c.invocation_id.in_(invocation_ids),
            invocations.c.last_status >= InvocationStatus.Completed.value,
            last.scalar_subquery() < moment,
        )
        with self._read() as connection:
            return list(connection.execute(ended).scalars())

    # -- invocations: status and ownership -----------------------------------------------------------

    def set_status(
        self,
        invocation_id: str,
        status: InvocationStatus,
        detail: str | None,
        mover: str,
        org_id: str,
        unless: Collection[InvocationStatus] = (),
    ) -> None:
        """Move an invocation on from outside: `mover` isn't one of this server's runners.

        Raises:
            NotFoundError: no such invocation.
            InvalidStateTransitionError: the status may not follow the current one.
            ConditionError: another runner owns the invocation, or its status is one of `unless`.
        """
        with self._write() as connection:
            row = require_invocation(connection, invocation_id, org_id)
            current = InvocationStatus(row.last_status)
            if current in unless:
                raise ConditionError(f"{invocation_id} is {current}, and a runner is there to run it")
            self._move(connection, row, status, detail, mover)

    # -- invocations: what a runner does -------------------------------------------------------------

    def advance(
        self,
        invocation_id: str,
        status: InvocationStatus,
        detail: str | None,
        runner: str,
        exit_code: int | None = None,
    ) -> None:
        """Move an invocation on that `runner` owns.

        :param exit_code: what the action's process ended with, if that is how the invocation ended.

        Raises:
            InvalidStateTransitionError: the status may not follow the current one.
            ConditionError: `runner` doesn't own it (any more); its verdict doesn't count.
        """
        with self._write() as connection:
            row = _require_owned(connection, invocation_id, runner)
            self._move(connection, row, status, detail, runner, exit_code=exit_code)

    def claim(self, runner: str, busy: Collection[str] = ()) -> InvocationRecord | None:
        """Give the oldest Queued invocation to `runner`; None if nothing waits.

        It is Scheduled, and Downloading at once: the runner begins with the workspace without another commit.
        One of the `busy` ones waits on: its runner hasn't ended an earlier attempt at it yet.
        """
        with self._write() as connection:
            row = connection.execute(_OLDEST_WAITING, {"busy": list(busy)}).first()
            if row is None:
                return None
            self._move(connection, row, InvocationStatus.Scheduled, None, runner)
            row = require_invocation(connection, row.invocation_id)
            self._move(connection, row, InvocationStatus.Downloading, None, runner)
            return self._record(connection, row.invocation_id)

    def set_processing(self, invocation_id: str, runner: str, group: int, began: float | None) -> None:
        """Processing: remember the process group that does it, so that a later life can end it.

        Raises:
            InvalidStateTransitionError: it may not follow the current status.
            ConditionError: `runner` doesn't own the invocation (any more).
        """
        with self._write() as connection:
            row = _require_owned(connection, invocation_id, runner)
            self._move(connection, row, InvocationStatus.Processing, None, runner)
            update_invocation(connection, invocation_id, {"process_group": group, "process_began": began})

    def heartbeat(self, owner: str) -> None:
        """Say that `owner` is alive, for all that it owns."""
        with self._write() as connection:
            mine = invocations.update().where(invocations.c.owner == owner)
            connection.execute(mine.values(last_heartbeat=now()))

    def left_over(self, living: Collection[str] = (), dead_since: int | None = None) -> list[LeftOver]:
        """What is claimed by a runner that isn't one of the `living` ones, oldest first.

        With `dead_since` (microseconds since 1970) only what had its last sign of life before that.
        """
        lost = (
            invocations.c.last_status.in_(_CLAIMED)
            & invocations.c.owner.startswith(RUNNER_PREFIX, autoescape=True)
            & invocations.c.owner.not_in(living)
        )
        if dead_since is not None:
            lost &= invocations.c.last_heartbeat < dead_since
        return self._claimed(lost)

    def owned_by(self, runner: str) -> list[LeftOver]:
        """What a runner has claimed, oldest first."""
        return self._claimed(invocations.c.last_status.in_(_CLAIMED) & (invocations.c.owner == runner))

    def _claimed(self, wanted: sa.ColumnElement[bool]) -> list[LeftOver]:
        statement = sa.select(invocations).where(wanted).order_by(invocations.c.number)
        with self._read() as connection:
            return [
                LeftOver(row.invocation_id, row.owner, row.process_group, row.process_began)
                for row in connection.execute(statement)
            ]

    def requeue(self, invocation_id: str, runner: str, detail: str | None, *, lost: bool) -> InvocationStatus:
        """Take an invocation from its runner so that it runs again: Failed, then Queued.

        `lost` tells a crash from a clean stop: the third loss is Deadly. One that is to be cancelled is
        Cancelled instead. Returns the status it then has.

        Raises:
            ConditionError: `runner` doesn't own it (any more); what has ended doesn't run again.
        """
        with self._write() as connection:
            row = _require_owned(connection, invocation_id, runner)
            if row.abort_reason is not None:
                self._move(connection, row, InvocationStatus.Cancelled, row.abort_reason)
                return InvocationStatus.Cancelled
            losses = row.losses + lost
            update_invocation(connection, invocation_id, {"losses": losses})
            self._move(connection, row, InvocationStatus.Failed, detail)
            row = require_invocation(connection, invocation_id)
            if losses >= MAX_LOSSES:
                self._move(
                    connection, row, InvocationStatus.Deadly, f"lost {counted(losses, 'time')}: {detail}"
                )
                return InvocationStatus.Deadly
            self._move(connection, row, InvocationStatus.Queued, detail, attempt=row.attempt + 1)
            return InvocationStatus.Queued

    # -- invocations: what is known of many ----------------------------------------------------------

    def tree_of(self, root_id: str, org_id: str) -> list[InvocationRecord]:
        """An invocation and all that it has started, at any depth (ListActions in Flyte 2's ActionRepo)."""
        theirs = sa.select(invocations).where(
            invocations.c.root_id == root_id, invocations.c.org_id == org_id
        )
        with self._read() as connection:
            rows = connection.execute(theirs.order_by(invocations.c.number)).all()
            written = _written(connection, rows)
        return [InvocationRecord.model_validate_json(one) for one in written]

    def count_by_status(self) -> dict[InvocationStatus, int]:
        """How many invocations are in each status that any is in."""
        counted = sa.select(invocations.c.last_status, sa.func.count()).group_by(invocations.c.last_status)
        with self._read() as connection:
            return {InvocationStatus(status): count for status, count in connection.execute(counted)}

    def stats(self, org_id: str, start: int, end: int) -> list[ActionStats]:
        """By action, how the invocations created from `start` up to before `end` (microseconds) stand."""
        ended_badly = [status.value for status in _ENDED_BADLY]

        def number_of(statuses: Collection[int]) -> sa.ColumnElement[int]:
            return sa.func.sum(sa.case((invocations.c.last_status.in_(statuses), 1), else_=0))

        counted = (
            sa.select(
                invocations.c.action_name,
                number_of([InvocationStatus.Completed.value]).label("completed"),
                number_of(ended_badly).label("failed"),
                number_of(NONTERMINAL).label("queued"),
            )
            .where(invocations.c.org_id == org_id)
            .where(invocations.c.created >= start, invocations.c.created < end)
            .group_by(invocations.c.action_name)
            .order_by(invocations.c.action_name)
        )
        with self._read() as connection:
            return [
                ActionStats(
                    action_name=row.action_name,
                    action_org_id=org_id,
                    completed_count=row.completed,
                    fail_count=row.failed,
                    queued_count=row.queued,
                )
                for row in connection.execute(counted)
            ]

    # -- invocations: what platforms remember beside -------------------------------------------------

    def set_image_digest(self, invocation_id: str, digest: str, org_id: str) -> InvocationRecord:
        """Remember which image was pulled. Raises NotFoundError."""
        with self._write() as connection:
            row = require_invocation(connection, invocation_id, org_id)
            record = pydantic_core.from_json(row.record)
            record["provenance"]["executable"]["container_image_digest"] = digest
            update_invocation(connection, invocation_id, {"record": pydantic_core.to_json(record).decode()})
            return self._record(connection, invocation_id)

    def set_logs_location(self, invocation_id: str, location: LogsLocation, org_id: str) -> InvocationRecord:
        """Remember where the log is kept; the API never answers it, and this server keeps its own."""
        with self._write() as connection:
            require_invocation(connection, invocation_id, org_id)
            said = {"location": location.model_dump()}
            noted = sqlite.insert(log_locations).values(invocation_id=invocation_id, **said)
            connection.execute(noted.on_conflict_do_update(index_elements=["invocation_id"], set_=said))
            return self._record(connection, invocation_id)

    def _record(
        self, connection: sa.Connection, invocation_id: str, org_id: str | None = None
    ) -> InvocationRecord:
        return _invocation_record(connection, require_invocation(connection, invocation_id, org_id))


def _require_owned(connection: sa.Connection, invocation_id: str, runner: str) -> sa.Row[Any]:
    row = require_invocation(connection, invocation_id)
    if row.owner != runner:
        raise ConditionError(f"{invocation_id} belongs to {row.owner or 'nobody'}, not to {runner}")
    return row


def _first_of(
    connection: sa.Connection, name: str, request: InvocationRequest, org_id: str
) -> InvocationRecord | None:
    """The one that has the request's idempotency id already.

    Raises:
        ConflictError: it was asked for something else.
    """
    if request.idempotency_id is None:
        return None
    first = connection.execute(_BY_IDEMPOTENCY_ID, {"org": org_id, "once": request.idempotency_id}).first()
    if first is None:
        return None
    refuse_another_request(connection, first, name, request)
    return _invocation_record(connection, first)


def _parent_of(connection: sa.Connection, source_id: str, org_id: str) -> sa.Row[Any] | None:
    """The invocation that a source id names, if it names one: then that one started this one."""
    if not source_id.startswith(ID_PREFIX):
        return None
    return find_invocation(connection, source_id, org_id)


def _new_invocation(
    action: ActionRecord, request: InvocationRequest, org_id: str, user: str
) -> tuple[dict[str, Any], InvocationRecord]:
    """A new invocation, as a row and as it is answered. Raises InvalidRequestError: it can't run here."""
    given = request.parameter_values or {}
    if missing := action.missing_parameters(given):
        raise InvalidRequestError(
            f"action {action.name!r} needs parameter {', '.join(map(repr, missing))}; "
            f"it declares: {action.declared_parameters}"
        )
    container = (action.container_parameters or ContainerParameters()).overridden_by(
        request.container_parameter_overrides
    )
    _require_runnable(action, container)
    defaults = {p.name: p.default for p in action.parameters if p.default is not None}
    _require_own_secrets({**defaults, **given}, org_id)
    record = InvocationRecord(
        created=moment(0),
        data_source=DataSource(
            data_source_type=request.data_source_type, data_source_id=request.data_source_id
        ),
        input_data=request.input_data,
        rich_input_data=request.rich_input_data,
        upload_destination=request.upload_destination,
        invocation_id=f"{ID_PREFIX}{secrets.token_hex(8)}",
        idempotency_id=request.idempotency_id,
        compute_requirements=request.compute_requirement_overrides
        or action.compute_requirements
        or ComputeRequirements(),
        container_parameters=container,
        last_status=InvocationStatus.Queued,
        org_id=org_id,
        parameter_values={**defaults, **given},
        provenance=InvocationProvenance(
            action=ActionProvenance(name=action.name, org_id=org_id, digest=action.digest),
            executable=ExecutableProvenance(container_image_uri=action.uri),
            source=SourceProvenance(
                source_type=request.invocation_source, source_id=request.invocation_source_id or user
            ),
        ),
        timeout=request.timeout or action.timeout or DEFAULT_TIMEOUT,
    )
    changing = {"created", "last_heartbeat", "last_status", "status", "duration"}
    row = {
        "invocation_id": record.invocation_id,
        "org_id": org_id,
        "idempotency_id": record.idempotency_id,
        "action_name": action.name,
        "action_digest": action.digest,
        "source_type": record.provenance.source.source_type.value,
        "source_id": record.provenance.source.source_id,
        "data_source_id": record.data_source.data_source_id,
        "last_status": InvocationStatus.Queued.value,
        "record": record.model_dump_json(exclude=changing),
    }
    return row, record


def _require_own_secrets(parameters: Mapping[str, Any], org_id: str) -> None:
    for name, value in parameters.items():
        if not isinstance(value, str) or not is_secret_uri(value):
            continue
        try:
            named = parse_secret_uri(value).org_id
        except ValueError as error:
            raise InvalidRequestError(f"parameter {name!r}: {error}") from None
        if named not in (None, org_id):
            raise InvalidRequestError(
                f"parameter {name!r} names a secret of {named!r}; an invocation can read only secrets "
                f"of its own organisation, {org_id!r}: leave '@{named}' out"
            )


def _require_runnable(action: ActionRecord, container: ContainerParameters) -> None:
    if action.uri:
        raise InvalidRequestError(
            f"action {action.name!r} needs the container image {action.uri!r}, and this server runs no "
            "containers: it runs container_parameters.command as a process on this machine. Leave the image "
            "(uri) out of the action, or use a connection to a platform that runs containers"
        )
    if not (container.entry_point or container.command):
        raise InvalidRequestError(
            f"action {action.name!r} has nothing to run: set container_parameters.command or .entry_point"
        )
    command = [*(container.entry_point or []), *(container.command or [])]
    if (size := size_of_all(command, container.env_vars or {})) > MAX_TOTAL:
        raise InvalidRequestError(
            f"action {action.name!r}: command and env_vars have {size:,} bytes together; allowed: "
            f"{MAX_TOTAL:,}"
        )


def _invocation_record(connection: sa.Connection, row: sa.Row[Any]) -> InvocationRecord:
    (written,) = _written(connection, [row])
    return InvocationRecord.model_validate_json(written)


def _written(connection: sa.Connection, rows: Sequence[sa.Row[Any]]) -> list[str]:
    """Invocations as JSON, in the order of their rows; each with the steps of its life, oldest first."""
    steps: dict[str, list[str]] = {row.invocation_id: [] for row in rows}
    changed: dict[str, int] = {}
    started: dict[str, int] = {}
    ids = pydantic_core.to_json(list(steps)).decode()
    for invocation_id, status, detail, code, at in connection.execute(_STEPS, {"ids": ids}).all():
        said = "null" if detail is None else pydantic_core.to_json(detail).decode()
        exit_code = "" if code is None else f'"exit_code":{code},'
        steps[invocation_id].append(
            f'{{"status":{status},"detail":{said},{exit_code}"timestamp":"{timestamp(at)}"}}'
        )
        changed[invocation_id] = at
        if status == InvocationStatus.Queued:  # the next attempt begins
            started.pop(invocation_id, None)
        elif status == InvocationStatus.Processing:
            started.setdefault(invocation_id, at)
    present = now()
    documents: list[str] = []
    for row in rows:
        has_ended = InvocationStatus(row.last_status).is_terminal
        end = changed[row.invocation_id] if has_ended else present
        ran = end - started.get(row.invocation_id, end)
        documents.append(_document(row, steps[row.invocation_id], ran))
    return documents


def _document(row: sa.Row[Any], steps: Sequence[str], ran: int) -> str:
    """An invocation with all that changes of it, as an InvocationRecord is written.

    :param ran: microseconds from its last attempt's start to its end, or to now.
    """
    heartbeat = "null" if row.last_heartbeat is None else f'"{timestamp(row.last_heartbeat)}"'
    duration = pydantic_core.to_json(timedelta(microseconds=ran)).decode()
    # The text of what never changes is an object, to which the rest is appended.
    return (
        f'{row.record[:-1]},"created":"{timestamp(row.created)}","last_heartbeat":{heartbeat},'
        f'"last_status":{row.last_status},"status":[{",".join(steps)}],"duration":{duration}}}'
    )
