"""The repository: actions, invocations and the events of their lives, in SQLite.

Every method is one transaction, written to disk (fsync) before it returns. Methods are synchronous and may
be called from any thread; writers wait for one another.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from ..model import (
    DEFINITIONS,
    ActionProvenance,
    ActionRecord,
    ActionReference,
    ComputeRequirements,
    ContainerParameters,
    CreateActionRequest,
    DataSource,
    ExecutableProvenance,
    InvalidTransition,
    InvocationProvenance,
    InvocationRecord,
    InvocationRequest,
    InvocationStatus,
    NotOwned,
    OwnedStatus,
    Page,
    QuerySpecification,
    SourceProvenance,
    StatusRecord,
    status_record_transition,
)
from .errors import (
    ConditionError,
    ConflictError,
    InvalidRequestError,
    InvalidStateTransitionError,
    NotFoundError,
    UnsupportedError,
)
from .query import Queryable, page_of, page_token
from .settings import DEFAULT_TIMEOUT
from .tables import actions, events, invocations, metadata
from .times import microseconds, moment, now

#: The organisation and the user of a service that has one of each.
LOCAL_ORG = "og_local"
LOCAL_USER = "local"

#: An invocation that was lost with its runner so often is Deadly (facts: Status).
MAX_LOSSES = 3

#: What owners that are runners begin with; whoever else owns an invocation moves it over the API.
RUNNER_PREFIX = "runner-"

#: How deep `inherits` may go.
_MAX_ANCESTORS = 10

_NONTERMINAL = [status.value for status in InvocationStatus if not status.is_terminal]
_CLAIMED = [status for status in _NONTERMINAL if status != InvocationStatus.Queued]

_ACTIONS = Queryable(
    table=actions,
    columns={
        "name": actions.c.name,
        "org_id": actions.c.org_id,
        "digest": actions.c.digest,
        "created": actions.c.created,
        "modified": actions.c.modified,
    },
    times=frozenset({"created", "modified"}),
    documents=frozenset(ActionRecord.model_fields)
    - {"name", "org_id", "digest", "created", "modified", "published"},
)
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
    },
    times=frozenset({"created", "last_heartbeat"}),
    documents=frozenset(
        {
            "compute_requirements",
            "container_parameters",
            "data_source",
            "data_source_type",
            "input_data",
            "parameter_values",
            "provenance",
            "rich_input_data",
            "timeout",
            "upload_destination",
        }
    ),
)


@dataclass(frozen=True, slots=True)
class StatusEvent:
    """A committed change of an invocation's status."""

    invocation_id: str
    status: InvocationStatus


@dataclass(frozen=True, slots=True)
class LeftOver:
    """An invocation that a runner of an earlier life had claimed, and the process group it may have left."""

    invocation_id: str
    owner: str
    process_group: int | None
    process_began: float | None


class Store:
    """The service's memory."""

    def __init__(self, database: Path) -> None:
        self._reading = _engine(database, begin="BEGIN", connections=8)
        self._writing = _engine(database, begin="BEGIN IMMEDIATE", connections=1)
        self._turn = threading.Lock()
        self._listeners: list[Callable[[Sequence[StatusEvent]], None]] = []
        with self._write() as connection:
            metadata.create_all(connection)

    def close(self) -> None:
        """Release the database."""
        self._reading.dispose()
        self._writing.dispose()

    def listen(self, listener: Callable[[Sequence[StatusEvent]], None]) -> None:
        """Have `listener` called, in the writer's thread, after each commit that changed statuses."""
        self._listeners.append(listener)

    # -- actions -------------------------------------------------------------------------------------

    def create_action(self, request: CreateActionRequest, org_id: str, user: str) -> ActionRecord:
        """Store a new action. Raises ConflictError if the name is taken."""
        with self._write() as connection:
            if _latest_action(connection, org_id, request.name) is not None:
                raise ConflictError(f"action {request.name!r} exists already in {org_id}")
            return _insert_action(connection, request, org_id, user)

    def register_action(self, request: CreateActionRequest, org_id: str, user: str) -> ActionRecord:
        """Store an action, or its new version where one of that name is there; no change, no version."""
        with self._write() as connection:
            row = _latest_action(connection, org_id, request.name)
            if row is None:
                return _insert_action(connection, request, org_id, user)
            if row.digest == _digest(request, org_id):
                return _action_record(row)
            connection.execute(
                actions.update()
                .where(actions.c.org_id == org_id, actions.c.name == request.name, actions.c.latest)
                .values(latest=False)
            )
            return _insert_action(connection, request, org_id, user, created=row.created)

    def get_action(self, name: str, org_id: str, digest: str | None = None) -> ActionRecord:
        """An action, in its newest version or the one that `digest` names. Raises NotFoundError."""
        with self._read() as connection:
            return _action_record(_require_action(connection, org_id, name, digest))

    def query_actions(self, spec: QuerySpecification, org_id: str) -> Page[ActionRecord]:
        """A page of the newest versions of actions. Raises InvalidRequestError."""
        statement, sort_by = page_of(spec, _ACTIONS, actions.c.org_id == org_id, actions.c.latest)
        with self._read() as connection:
            rows = connection.execute(statement).all()
        return Page(
            items=[_action_record(row) for row in rows[: spec.limit]],
            next_token=_next_token(spec, sort_by, rows),
        )

    # -- invocations: reads and writes ---------------------------------------------------------------

    def invoke(
        self, name: str, request: InvocationRequest, org_id: str, user: str, digest: str | None = None
    ) -> InvocationRecord:
        """Store a new invocation as Queued; the one that has its `idempotency_id` already, if there is one.

        Raises:
            NotFoundError: no such action.
            InvalidRequestError: a required parameter is missing, or this machine can't run the action.
            ConflictError: the `idempotency_id` belongs to an invocation of another action.
        """
        with self._write() as connection:
            if request.idempotency_id is not None:
                first = connection.execute(
                    sa.select(invocations).where(
                        invocations.c.org_id == org_id,
                        invocations.c.idempotency_id == request.idempotency_id,
                    )
                ).first()
                if first is not None:
                    if first.action_name != name:
                        raise ConflictError(
                            f"idempotency_id {request.idempotency_id!r} belongs to {first.invocation_id}, "
                            f"an invocation of action {first.action_name!r}, not of {name!r}"
                        )
                    return _invocation_record(connection, first)
            action = _effective_action(connection, org_id, name, digest)
            row = _new_invocation(action, request, org_id, user)
            connection.execute(invocations.insert().values(row))
            self._add_event(connection, row["invocation_id"], InvocationStatus.Queued, None, row["created"])
            return self._record(connection, row["invocation_id"])

    def get_invocation(self, invocation_id: str, org_id: str | None = None) -> InvocationRecord:
        """An invocation with its whole history. Raises NotFoundError."""
        with self._read() as connection:
            return self._record(connection, invocation_id, org_id)

    def query_invocations(self, spec: QuerySpecification, org_id: str) -> Page[InvocationRecord]:
        """A page of invocations. Raises InvalidRequestError."""
        statement, sort_by = page_of(spec, _INVOCATIONS, invocations.c.org_id == org_id)
        with self._read() as connection:
            rows = connection.execute(statement).all()
            history = _history(connection, [row.invocation_id for row in rows[: spec.limit]])
        items = [_assembled(row, history[row.invocation_id]) for row in rows[: spec.limit]]
        return Page(items=items, next_token=_next_token(spec, sort_by, rows))

    # -- invocations: status and ownership -----------------------------------------------------------

    def set_status(
        self, invocation_id: str, status: InvocationStatus, detail: str | None, mover: str, org_id: str
    ) -> None:
        """Move an invocation on from outside: `mover` isn't one of this service's runners.

        Raises:
            NotFoundError: no such invocation.
            InvalidStateTransitionError: the status may not follow the current one.
            ConditionError: somebody else owns the invocation.
        """
        with self._write() as connection:
            self._move(
                connection, _require_invocation(connection, invocation_id, org_id), status, detail, mover
            )

    def request_abort(self, invocation_id: str, reason: str, org_id: str) -> InvocationStatus:
        """Record that an invocation is to be cancelled; one that no runner has is Cancelled at once.

        Asking again, or after the end, changes nothing. Returns the status it then has.

        Raises:
            NotFoundError: no such invocation.
        """
        with self._write() as connection:
            row = _require_invocation(connection, invocation_id, org_id)
            status = InvocationStatus(row.last_status)
            if status.is_terminal:
                return status
            if row.owner is None or not row.owner.startswith(RUNNER_PREFIX):
                self._move(connection, row, InvocationStatus.Cancelled, reason)
                return InvocationStatus.Cancelled
            if row.abort_reason is None:
                connection.execute(_the(invocation_id).values(abort_reason=reason))
                self._after_commit(connection, StatusEvent(invocation_id, status))
            return status

    def stop_reason(self, invocation_id: str, owner: str) -> str | None:
        """Why `owner` must stop working on an invocation; None if it must not."""
        with self._read() as connection:
            row = _require_invocation(connection, invocation_id)
        if row.owner != owner:
            return f"somebody else made it {InvocationStatus(row.last_status)}"
        reason: str | None = row.abort_reason
        return reason

    # -- invocations: what a runner does -------------------------------------------------------------

    def advance(self, invocation_id: str, status: InvocationStatus, detail: str | None, runner: str) -> None:
        """Move an invocation on that `runner` owns.

        Raises:
            InvalidStateTransitionError: the status may not follow the current one.
            ConditionError: `runner` doesn't own it (any more); its verdict doesn't count.
        """
        with self._write() as connection:
            self._move(connection, _require_owned(connection, invocation_id, runner), status, detail, runner)

    def claim(self, runner: str, busy: Collection[str] = ()) -> InvocationRecord | None:
        """Give the oldest Queued invocation to `runner` as Scheduled; None if nothing waits.

        One of the `busy` ones waits on: its runner hasn't ended an earlier attempt at it yet.
        """
        waiting = (invocations.c.last_status == 0) & invocations.c.invocation_id.not_in(busy)
        with self._write() as connection:
            oldest = sa.select(invocations).where(waiting).order_by(invocations.c.number)
            row = connection.execute(oldest.limit(1)).first()
            if row is None:
                return None
            self._move(connection, row, InvocationStatus.Scheduled, None, runner)
            return self._record(connection, row.invocation_id)

    def set_process(self, invocation_id: str, group: int | None, began: float | None) -> None:
        """Remember the process group that runs an invocation, so that a later life can end it."""
        with self._write() as connection:
            connection.execute(_the(invocation_id).values(process_group=group, process_began=began))

    def heartbeat(self, owner: str) -> None:
        """Say that `owner` is alive, for all that it owns."""
        with self._write() as connection:
            mine = invocations.update().where(invocations.c.owner == owner)
            connection.execute(mine.values(last_heartbeat=now()))

    def left_over(self, owners: Collection[str] = ()) -> list[LeftOver]:
        """What is claimed by a runner that isn't one of `owners`, the living ones."""
        lost = (
            invocations.c.last_status.in_(_CLAIMED)
            & invocations.c.owner.startswith(RUNNER_PREFIX, autoescape=True)
            & invocations.c.owner.not_in(owners)
        )
        with self._read() as connection:
            rows = connection.execute(sa.select(invocations).where(lost).order_by(invocations.c.number))
            return [
                LeftOver(row.invocation_id, row.owner, row.process_group, row.process_began) for row in rows
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
            connection.execute(_the(invocation_id).values(losses=losses))
            self._move(connection, row, InvocationStatus.Failed, detail)
            following = InvocationStatus.Deadly if losses >= MAX_LOSSES else InvocationStatus.Queued
            self._move(connection, _require_invocation(connection, invocation_id), following, detail)
            return following

    # -- transactions --------------------------------------------------------------------------------

    def _move(
        self,
        connection: sa.Connection,
        row: sa.Row[Any],
        status: InvocationStatus,
        detail: str | None,
        mover: str | None = None,
    ) -> None:
        current = OwnedStatus(InvocationStatus(row.last_status), row.owner)
        try:
            moved = status_record_transition(current, status, mover, DEFINITIONS)
        except InvalidTransition as error:
            raise InvalidStateTransitionError(f"{row.invocation_id}: {error}") from None
        except NotOwned as error:
            raise ConditionError(f"{row.invocation_id}: {error}") from None
        values: dict[str, Any] = {"last_status": status.value, "owner": moved.owner}
        if moved.owner is None:
            values |= {"process_group": None, "process_began": None, "abort_reason": None}
        elif moved.owner != current.owner:
            values["last_heartbeat"] = now()
        connection.execute(_the(row.invocation_id).values(values))
        self._add_event(connection, row.invocation_id, status, detail, now())

    def _add_event(
        self,
        connection: sa.Connection,
        invocation_id: str,
        status: InvocationStatus,
        detail: str | None,
        timestamp: int,
    ) -> None:
        # The current status is the last by (timestamp, value), so time must not stand still between two.
        latest = connection.scalar(
            sa.select(sa.func.max(events.c.timestamp)).where(events.c.invocation_id == invocation_id)
        )
        timestamp = timestamp if latest is None else max(timestamp, latest + 1)
        connection.execute(
            events.insert().values(
                invocation_id=invocation_id, status=status.value, detail=detail, timestamp=timestamp
            )
        )
        self._after_commit(connection, StatusEvent(invocation_id, status))

    def _record(
        self, connection: sa.Connection, invocation_id: str, org_id: str | None = None
    ) -> InvocationRecord:
        return _invocation_record(connection, _require_invocation(connection, invocation_id, org_id))

    @staticmethod
    def _after_commit(connection: sa.Connection, event: StatusEvent) -> None:
        connection.info.setdefault("events", []).append(event)

    @contextmanager
    def _write(self) -> Iterator[sa.Connection]:
        with self._turn:
            with self._writing.begin() as connection:
                connection.info["events"] = []
                yield connection
                committed: list[StatusEvent] = connection.info["events"]
            if committed:
                for listener in self._listeners:
                    listener(committed)

    @contextmanager
    def _read(self) -> Iterator[sa.Connection]:
        with self._reading.begin() as connection:
            yield connection


def _engine(database: Path, begin: str, connections: int) -> sa.Engine:
    engine = sa.create_engine(
        sa.URL.create("sqlite", database=str(database)),
        poolclass=sa.QueuePool,
        pool_size=connections,
        max_overflow=0,
        connect_args={"check_same_thread": False, "timeout": 30},
        json_serializer=lambda value: json.dumps(value, ensure_ascii=False),
    )

    @sa.event.listens_for(engine, "connect")
    def _prepare(connection: Any, _: object) -> None:
        connection.isolation_level = None  # transactions begin where we say, not where the driver guesses
        cursor = connection.cursor()
        # FULL: a commit has reached the disk when it returns. Acknowledged means stored.
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql(begin)

    return engine


def _the(invocation_id: str) -> sa.Update:
    return invocations.update().where(invocations.c.invocation_id == invocation_id)


def _next_token(spec: QuerySpecification, sort_by: str, rows: Sequence[sa.Row[Any]]) -> str | None:
    return page_token(spec, sort_by, rows[spec.limit - 1]) if len(rows) > spec.limit else None


# -- actions -----------------------------------------------------------------------------------------


def _latest_action(connection: sa.Connection, org_id: str, name: str) -> sa.Row[Any] | None:
    named = sa.select(actions).where(actions.c.org_id == org_id, actions.c.name == name)
    return connection.execute(named.where(actions.c.latest)).first()


def _require_action(connection: sa.Connection, org_id: str, name: str, digest: str | None) -> sa.Row[Any]:
    if digest is None:
        row = _latest_action(connection, org_id, name)
    else:
        versioned = sa.select(actions).where(actions.c.org_id == org_id, actions.c.name == name)
        row = connection.execute(versioned.where(actions.c.digest == digest)).first()
    if row is None:
        version = f" with digest {digest!r}" if digest else ""
        raise NotFoundError(f"there is no action {name!r}{version} in {org_id}")
    return row


def _action_record(row: sa.Row[Any]) -> ActionRecord:
    return ActionRecord.model_validate(
        {
            **row.record,
            "org_id": row.org_id,
            "digest": row.digest,
            "created": moment(row.created),
            "modified": moment(row.modified),
        }
    )


def _insert_action(
    connection: sa.Connection,
    request: CreateActionRequest,
    org_id: str,
    user: str,
    created: int | None = None,
) -> ActionRecord:
    """Store a version of an action as its latest; `created` None: it is the first one."""
    present = now()
    digest = _digest(request, org_id)
    record = {**request.model_dump(mode="json"), "created_by": user, "modified_by": user}
    known = sa.select(actions).where(
        actions.c.org_id == org_id, actions.c.name == request.name, actions.c.digest == digest
    )
    earlier = connection.execute(known).first()
    values = {"latest": True, "modified": present, "record": record}
    if earlier is not None:  # back to what an earlier version was
        connection.execute(actions.update().where(actions.c.number == earlier.number).values(values))
    else:
        keys = {"org_id": org_id, "name": request.name, "digest": digest, "created": created or present}
        connection.execute(actions.insert().values({**keys, **values}))
    return _action_record(connection.execute(known).one())


def _digest(request: CreateActionRequest, org_id: str) -> str:
    content = {"org_id": org_id, **request.model_dump(mode="json", exclude_defaults=True)}
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()


def _effective_action(connection: sa.Connection, org_id: str, name: str, digest: str | None) -> ActionRecord:
    """An action with what it doesn't say itself filled in from those that it inherits from."""
    action = _action_record(_require_action(connection, org_id, name, digest))
    ancestor: ActionReference | None = action.inherits
    for _ in range(_MAX_ANCESTORS):
        if ancestor is None:
            return action
        parent = _action_record(_require_action(connection, org_id, ancestor.name, ancestor.digest))
        own = {parameter.name for parameter in action.parameters}
        action = action.model_copy(
            update={
                "compute_requirements": action.compute_requirements or parent.compute_requirements,
                "container_parameters": (parent.container_parameters or ContainerParameters()).overridden_by(
                    action.container_parameters
                ),
                "parameters": [
                    *(parameter for parameter in parent.parameters if parameter.name not in own),
                    *action.parameters,
                ],
                "timeout": action.timeout or parent.timeout,
                "uri": action.uri or parent.uri,
            }
        )
        ancestor = parent.inherits
    raise InvalidRequestError(f"action {name!r} inherits over more than {_MAX_ANCESTORS} actions")


# -- invocations -------------------------------------------------------------------------------------


def _require_invocation(
    connection: sa.Connection, invocation_id: str, org_id: str | None = None
) -> sa.Row[Any]:
    found = sa.select(invocations).where(invocations.c.invocation_id == invocation_id)
    if org_id is not None:
        found = found.where(invocations.c.org_id == org_id)
    row = connection.execute(found).first()
    if row is None:
        raise NotFoundError(f"there is no invocation {invocation_id!r}")
    return row


def _require_owned(connection: sa.Connection, invocation_id: str, runner: str) -> sa.Row[Any]:
    row = _require_invocation(connection, invocation_id)
    if row.owner != runner:
        raise ConditionError(f"{invocation_id} belongs to {row.owner or 'nobody'}, not to {runner}")
    return row


def _new_invocation(
    action: ActionRecord, request: InvocationRequest, org_id: str, user: str
) -> dict[str, Any]:
    """The row of a new invocation. Raises InvalidRequestError for one that can't run here."""
    given = request.parameter_values or {}
    if missing := action.missing_parameters(given):
        declared = ", ".join(f"{p.name}{' (required)' if p.required else ''}" for p in action.parameters)
        raise InvalidRequestError(
            f"action {action.name!r} needs parameter {', '.join(map(repr, missing))}; it declares: {declared}"
        )
    _require_no_dataset(request)
    container = (action.container_parameters or ContainerParameters()).overridden_by(
        request.container_parameter_overrides
    )
    _require_runnable(action, container)
    defaults = {p.name: p.default for p in action.parameters if p.default is not None}
    record = InvocationRecord(
        created=moment(0),
        data_source=DataSource(
            data_source_type=request.data_source_type, data_source_id=request.data_source_id
        ),
        input_data=request.input_data,
        rich_input_data=request.rich_input_data,
        upload_destination=request.upload_destination,
        invocation_id=f"iv_{secrets.token_hex(8)}",
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
    return {
        "invocation_id": record.invocation_id,
        "org_id": org_id,
        "idempotency_id": record.idempotency_id,
        "action_name": action.name,
        "action_digest": action.digest,
        "source_type": record.provenance.source.source_type.value,
        "source_id": record.provenance.source.source_id,
        "data_source_id": record.data_source.data_source_id,
        "created": now(),
        "last_status": InvocationStatus.Queued.value,
        "record": {
            **record.model_dump(mode="json", exclude=changing),
            "data_source_type": record.data_source.data_source_type.value,
        },
    }


def _require_runnable(action: ActionRecord, container: ContainerParameters) -> None:
    if action.uri:
        raise InvalidRequestError(
            f"action {action.name!r} needs the container image {action.uri!r}, and this service runs no "
            "containers: it runs container_parameters.command as a process on this machine. Leave the image "
            "(uri) out of the action, or use a connection to a platform that runs containers"
        )
    if not (container.entry_point or container.command):
        raise InvalidRequestError(
            f"action {action.name!r} has nothing to run: set container_parameters.command or .entry_point"
        )


def _require_no_dataset(request: InvocationRequest) -> None:
    for field in ("input_data", "rich_input_data", "upload_destination"):
        if getattr(request, field):
            raise UnsupportedError(
                f"{field}: this service keeps no datasets yet; hand the action paths as parameters, and "
                "find what it wrote in its workspace's output folder"
            )


def _invocation_record(connection: sa.Connection, row: sa.Row[Any]) -> InvocationRecord:
    return _assembled(row, _history(connection, [row.invocation_id])[row.invocation_id])


def _history(connection: sa.Connection, ids: Collection[str]) -> Mapping[str, list[StatusRecord]]:
    history: dict[str, list[StatusRecord]] = {invocation_id: [] for invocation_id in ids}
    theirs = sa.select(events).where(events.c.invocation_id.in_(ids)).order_by(events.c.number)
    for row in connection.execute(theirs):
        step = StatusRecord(
            status=InvocationStatus(row.status), detail=row.detail, timestamp=moment(row.timestamp)
        )
        history[row.invocation_id].append(step)
    return history


def _assembled(row: sa.Row[Any], history: list[StatusRecord]) -> InvocationRecord:
    status = InvocationStatus(row.last_status)
    end = microseconds(history[-1].timestamp) if status.is_terminal else now()
    return InvocationRecord.model_validate(
        {
            **row.record,
            "created": moment(row.created),
            "last_heartbeat": None if row.last_heartbeat is None else moment(row.last_heartbeat),
            "last_status": status,
            "status": history,
            "duration": moment(end) - moment(row.created),
        }
    )
