"""Invocations: create, read, query and count them, and set what clients may set."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import pydantic_core
import sqlalchemy as sa
from sqlalchemy.dialects import sqlite

from ...models import (
    ActionStats,
    ContainerParameters,
    InvocationRecord,
    InvocationRequest,
    InvocationStatus,
    LogsLocation,
    Page,
    QuerySpecification,
    StatusRecord,
)
from ..errors import ConditionError
from ..execution.overrides import OverrideCheck, require_as_registered
from ..query.statements import Queryable, next_token, page_of
from ..timestamps import now, to_datetime
from .actions import effective_action
from .database import Database
from .idempotency import find_first, store_fingerprint
from .invocation_json import JSON_COLUMNS, load_record, to_json, to_record
from .new_invocations import ID_PREFIX, new_invocation, require_inputs
from .tables import FIRST_TERMINAL, NONTERMINAL, events, invocations, log_locations
from .transitions import (
    EventSubject,
    add_event,
    find_invocation,
    require_invocation,
    transition,
    update_invocation,
)

#: The format of invocation ids; nothing else ever becomes part of a file name.
INVOCATION_ID = re.compile(r"iv_[0-9a-f]{16}")

_UNSUCCESSFUL = [
    status.value for status in (InvocationStatus.Cancelled, InvocationStatus.Failed, InvocationStatus.Deadly)
]

# Built once: building a statement takes longer than running it.
_INSERT = invocations.insert()
_KNOWN = sa.select(invocations.c.invocation_id).where(
    invocations.c.invocation_id.in_(
        sa.select(sa.func.json_each(sa.bindparam("ids")).table_valued("value").c.value)
    ),
    invocations.c.org_id == sa.bindparam("org"),
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
        "data_source_type": sa.func.json_extract(
            invocations.c.record, "$.data_source.data_source_type", type_=sa.Text
        ),
    },
    times=frozenset({"created", "last_heartbeat"}),
    documents=frozenset(
        {
            "compute_requirements",
            "container_parameters",
            "input_data",
            "parameter_values",
            "provenance",
            "rich_input_data",
            "timeout",
            "upload_destination",
        }
    ),
    indexed_below={"last_status": FIRST_TERMINAL},
)


@dataclass(frozen=True, slots=True)
class CheckedInvocation:
    """An invocation that was found in the caller's organisation.

    Only `InvocationRepository.check` and `check_many` create one. Functions that take it, such as those that
    read a log, can't be called with an id from a request that wasn't compared with the request's token.
    """

    invocation_id: str
    org_id: str


@dataclass(frozen=True, slots=True)
class StatusReport:
    """A status that a client reports for an invocation."""

    invocation_id: str
    status: InvocationStatus
    detail: str | None
    #: The user who reports it.
    user: str


class InvocationRepository:
    """Reads and writes invocations."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(
        self,
        action_name: str,
        request: InvocationRequest,
        org_id: str,
        user: str,
        digest: str | None = None,
        check_overrides: OverrideCheck = require_as_registered,
    ) -> InvocationRecord:
        """Store a new invocation as Queued, or return the one that has its `idempotency_id` already.

        :param digest: the action's version; None: the latest one.
        :param check_overrides: rejects overrides that the caller's role doesn't allow.
        :raises NotFoundError: no such action.
        :raises InvalidRequestError: a required parameter is missing, an input or destination doesn't exist,
            or this server can't run the action.
        :raises ForbiddenError: `check_overrides` rejects the request.
        :raises UnsupportedError: the request selects topics or sessions.
        :raises ConflictError: the `idempotency_id` belongs to an invocation with a different request.
        """
        with self._database.write() as connection:
            if (first := find_first(connection, action_name, request, org_id)) is not None:
                return to_record(connection, first)
            action = effective_action(connection, org_id, action_name, digest)
            registered = action.container_parameters or ContainerParameters()
            check_overrides(registered, request.container_parameter_overrides)
            require_inputs(connection, request, org_id)
            row, record = new_invocation(action, request, org_id, user)
            parent = _parent(connection, row["source_id"], org_id)
            row["parent_id"] = None if parent is None else parent.invocation_id
            row["root_id"] = record.invocation_id if parent is None else parent.root_id
            created = row["created"] = now()
            connection.execute(_INSERT, row)
            store_fingerprint(connection, record.invocation_id, request)
            subject = EventSubject(record.invocation_id, org_id, action_name, row["root_id"])
            add_event(connection, subject, InvocationStatus.Queued, None, created, 1, previous=None)
        created_at = to_datetime(created)
        status = StatusRecord(status=InvocationStatus.Queued, detail=None, timestamp=created_at)
        return record.model_copy(update={"created": created_at, "status": [status]})

    def get(self, invocation_id: str, org_id: str | None = None) -> InvocationRecord:
        """Return an invocation with its whole history. Raises NotFoundError."""
        with self._database.read() as connection:
            return load_record(connection, invocation_id, org_id)

    def check(self, invocation_id: str, org_id: str) -> CheckedInvocation:
        """Check that an organisation has an invocation, without reading its history. Raises NotFoundError."""
        with self._database.read() as connection:
            require_invocation(connection, invocation_id, org_id)
        return CheckedInvocation(invocation_id, org_id)

    def check_many(self, invocation_ids: Collection[str], org_id: str) -> dict[str, CheckedInvocation]:
        """Return the invocations that an organisation has, by id; any other id is left out."""
        requested = [each for each in invocation_ids if INVOCATION_ID.fullmatch(each)]
        if not requested:
            return {}
        values = {"org": org_id, "ids": pydantic_core.to_json(requested).decode()}
        with self._database.read() as connection:
            found = connection.execute(_KNOWN, values).scalars().all()
        return {each: CheckedInvocation(each, org_id) for each in found}

    def query(self, spec: QuerySpecification, org_id: str) -> Page[InvocationRecord]:
        """Return a page of invocations. Raises InvalidRequestError."""
        items, next_page = self.query_json(spec, org_id)
        return Page(items=[InvocationRecord.model_validate_json(one) for one in items], next_token=next_page)

    def query_json(self, spec: QuerySpecification, org_id: str) -> tuple[list[str], str | None]:
        """Return a page of invocations as JSON, and the next page's token.

        Building models would take most of the time of a query.

        :raises InvalidRequestError: the query is invalid.
        """
        # Most rows are of one organisation; without the hint SQLite would choose an index on it.
        in_org = sa.func.likely(invocations.c.org_id == org_id)
        statement, sort_by = page_of(spec, _INVOCATIONS, in_org)
        selected: sa.Select[Any] = statement.with_only_columns(
            *JSON_COLUMNS, statement.selected_columns.sort_key
        )
        with self._database.query() as connection:
            rows = connection.execute(selected).all()
            items = to_json(connection, rows[: spec.limit])
        return items, next_token(spec, sort_by, rows)

    def tree(self, invocation_id: str, org_id: str) -> list[InvocationRecord]:
        """Return an invocation and all that it has invoked, at any depth, oldest first.

        The source of each invocation below the first one is its parent in the tree.

        :raises NotFoundError: no such invocation.
        """
        selected = sa.select(invocations).where(invocations.c.invocation_id.in_(subtree_ids(invocation_id)))
        with self._database.read() as connection:
            require_invocation(connection, invocation_id, org_id)
            rows = connection.execute(selected.order_by(invocations.c.number)).all()
            documents = to_json(connection, rows)
        return [InvocationRecord.model_validate_json(document) for document in documents]

    def roots_json(self, org_id: str, since: int, until: int, limit: int) -> list[str]:
        """Return the JSON of invocations that no other one has invoked, newest first.

        :param since: created at this time or later (microseconds since 1970).
        :param until: created before this time (microseconds since 1970).
        :param limit: how many at most.
        """
        roots: sa.Select[Any] = (
            sa.select(*JSON_COLUMNS)
            .where(invocations.c.org_id == org_id, invocations.c.parent_id.is_(None))
            .where(invocations.c.created >= since, invocations.c.created < until)
            .order_by(invocations.c.created.desc(), invocations.c.number.desc())
            .limit(limit)
        )
        with self._database.query() as connection:
            return to_json(connection, connection.execute(roots).all())

    def ended_before(self, invocation_ids: Collection[str], deadline: int) -> list[str]:
        """Return those of some invocations that ended before a time (microseconds since 1970)."""
        last = sa.select(sa.func.max(events.c.timestamp)).where(
            events.c.invocation_id == invocations.c.invocation_id
        )
        ended = sa.select(invocations.c.invocation_id).where(
            invocations.c.invocation_id.in_(invocation_ids),
            invocations.c.last_status >= FIRST_TERMINAL,
            last.scalar_subquery() < deadline,
        )
        with self._database.read() as connection:
            return list(connection.execute(ended).scalars())

    def count_by_status(self) -> dict[InvocationStatus, int]:
        """Return the number of invocations in each status that occurs."""
        counts = sa.select(invocations.c.last_status, sa.func.count()).group_by(invocations.c.last_status)
        with self._database.read() as connection:
            return {InvocationStatus(status): count for status, count in connection.execute(counts)}

    def stats(self, org_id: str, start: int, end: int) -> list[ActionStats]:
        """Count an organisation's invocations by action and outcome.

        :param start: created at this time or later (microseconds since 1970).
        :param end: created before this time (microseconds since 1970).
        """

        def number_of(statuses: Collection[int]) -> sa.ColumnElement[int]:
            return sa.func.sum(sa.case((invocations.c.last_status.in_(statuses), 1), else_=0))

        counts = (
            sa.select(
                invocations.c.action_name,
                number_of([InvocationStatus.Completed.value]).label("completed"),
                number_of(_UNSUCCESSFUL).label("failed"),
                number_of(NONTERMINAL).label("queued"),
            )
            .where(invocations.c.org_id == org_id)
            .where(invocations.c.created >= start, invocations.c.created < end)
            .group_by(invocations.c.action_name)
            .order_by(invocations.c.action_name)
        )
        with self._database.read() as connection:
            return [
                ActionStats(
                    action_name=row.action_name,
                    action_org_id=org_id,
                    completed_count=row.completed,
                    fail_count=row.failed,
                    queued_count=row.queued,
                )
                for row in connection.execute(counts)
            ]

    def set_status(
        self,
        invocation_id: str,
        status: InvocationStatus,
        detail: str | None,
        user: str,
        org_id: str,
        unless: Collection[InvocationStatus] = (),
    ) -> None:
        """Set a status that a client reports, not one of this server's runners.

        :param unless: current statuses in which the report is rejected.
        :raises NotFoundError: no such invocation.
        :raises InvalidStateTransitionError: the status may not follow the current one.
        :raises ConditionError: another owner has the invocation, or its status is one of `unless`.
        """
        self.report_statuses([StatusReport(invocation_id, status, detail, user)], org_id, unless)

    def report_statuses(
        self, reports: Sequence[StatusReport], org_id: str, unless: Collection[InvocationStatus] = ()
    ) -> None:
        """Set statuses that clients report, all or none; raises as `set_status` does."""
        with self._database.write() as connection:
            for report in reports:
                row = require_invocation(connection, report.invocation_id, org_id)
                current = InvocationStatus(row.last_status)
                if current in unless:
                    raise ConditionError(
                        f"{report.invocation_id} is {current}, and this server's runner will run it"
                    )
                transition(connection, row, report.status, report.detail, report.user)

    def set_image_digest(self, invocation_id: str, digest: str, org_id: str) -> InvocationRecord:
        """Store which container image was pulled. Raises NotFoundError."""
        with self._database.write() as connection:
            row = require_invocation(connection, invocation_id, org_id)
            record = pydantic_core.from_json(row.record)
            record["provenance"]["executable"]["container_image_digest"] = digest
            update_invocation(connection, invocation_id, {"record": pydantic_core.to_json(record).decode()})
            return load_record(connection, invocation_id)

    def set_logs_location(self, invocation_id: str, location: LogsLocation, org_id: str) -> InvocationRecord:
        """Store where a client keeps the log; the API never returns it. Raises NotFoundError."""
        with self._database.write() as connection:
            require_invocation(connection, invocation_id, org_id)
            values = {"location": location.model_dump()}
            insert = sqlite.insert(log_locations).values(invocation_id=invocation_id, **values)
            connection.execute(insert.on_conflict_do_update(index_elements=["invocation_id"], set_=values))
            return load_record(connection, invocation_id)


def subtree_ids(invocation_id: str) -> sa.Select[tuple[str]]:
    """Select the ids of an invocation and of all that it has invoked, at any depth."""
    tree = (
        sa.select(invocations.c.invocation_id)
        .where(invocations.c.invocation_id == invocation_id)
        .cte("tree", recursive=True)
    )
    children = sa.select(invocations.c.invocation_id).where(invocations.c.parent_id == tree.c.invocation_id)
    return sa.select(tree.union_all(children).c.invocation_id)


def _parent(connection: sa.Connection, source_id: str, org_id: str) -> sa.Row[Any] | None:
    """Return the invocation that a source id names: the one that invoked this one."""
    if not source_id.startswith(ID_PREFIX):
        return None
    return find_invocation(connection, source_id, org_id)
