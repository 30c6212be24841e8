"""Change the status of an invocation: by the status rules, with an event, within a write transaction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import sqlalchemy as sa

from ...models import (
    DEFINITIONS,
    InvalidTransition,
    InvocationStatus,
    NotOwned,
    OwnedStatus,
    status_record_transition,
)
from ..errors import ConditionError, InvalidStateTransitionError, NotFoundError
from ..timestamps import now
from .database import StatusEvent, pending_events
from .tables import events, invocations

# Statements of every status change are built once: building one takes longer than running it.
_BY_ID = sa.select(invocations).where(invocations.c.invocation_id == sa.bindparam("of"))
_UPDATE = invocations.update().where(invocations.c.invocation_id == sa.bindparam("of"))
_LAST_TIME = sa.select(sa.func.max(events.c.timestamp)).where(events.c.invocation_id == sa.bindparam("of"))
_INSERT_EVENT = events.insert().returning(events.c.number)


class EventSubject(NamedTuple):
    """The fields of an event that identify its invocation."""

    invocation_id: str
    org_id: str
    action_name: str
    root_id: str


def transition(
    connection: sa.Connection,
    row: sa.Row[Any],
    status: InvocationStatus,
    detail: str | None,
    runner: str | None = None,
    *,
    attempt: int | None = None,
    exit_code: int | None = None,
) -> None:
    """Move an invocation to a status; every status change is made here.

    :param row: the invocation's current row.
    :param detail: the reason, shown with the status.
    :param runner: who makes the change; None: the server itself.
    :param attempt: the number of the attempt that begins; None: the current one goes on.
    :param exit_code: of the action's process, if that is how the invocation ends.
    :raises InvalidStateTransitionError: the status may not follow the current one.
    :raises ConditionError: another runner owns the invocation.
    """
    current = OwnedStatus(InvocationStatus(row.last_status), row.owner)
    try:
        moved = status_record_transition(current, status, runner, DEFINITIONS)
    except InvalidTransition as error:
        raise InvalidStateTransitionError(f"{row.invocation_id}: {error}") from None
    except NotOwned as error:
        raise ConditionError(f"{row.invocation_id}: {error}") from None
    values: dict[str, Any] = {"last_status": status.value, "owner": moved.owner}
    if attempt is not None:
        values["attempt"] = attempt
    if moved.owner is None:
        values |= dict.fromkeys(("process_group", "process_started", "abort_reason", "abort_next"))
    elif moved.owner != current.owner:
        values["last_heartbeat"] = now()
    update_invocation(connection, row.invocation_id, values)
    subject = EventSubject(row.invocation_id, row.org_id, row.action_name, row.root_id)
    # The current status is the last by (timestamp, value), so timestamps of an invocation must increase.
    previous: int = connection.execute(_LAST_TIME, {"of": row.invocation_id}).scalar_one()
    timestamp = max(now(), previous + 1)
    add_event(connection, subject, status, detail, timestamp, attempt or row.attempt, previous, exit_code)


def add_event(
    connection: sa.Connection,
    subject: EventSubject,
    status: InvocationStatus,
    detail: str | None,
    timestamp: int,
    attempt: int,
    previous: int | None,
    exit_code: int | None = None,
) -> None:
    """Store a status event; listeners get it after the commit. Times are microseconds since 1970."""
    values = {
        **subject._asdict(),
        "attempt": attempt,
        "status": status.value,
        "detail": detail,
        "exit_code": exit_code,
        "timestamp": timestamp,
        "superseded": False,
    }
    number = connection.execute(_INSERT_EVENT, values).scalar_one()
    _mark_superseded(connection, subject.invocation_id)
    event = StatusEvent(number=number, previous=previous, **{**values, "status": status})
    pending_events(connection).append(event)


def _mark_superseded(connection: sa.Connection, invocation_id: str) -> None:
    """Mark this transaction's earlier events of an invocation: their statuses are never visible."""
    pending = pending_events(connection)
    for index, event in enumerate(pending):
        if event.invocation_id == invocation_id:
            earlier = events.update().where(events.c.number == event.number)
            connection.execute(earlier.values(superseded=True))
            pending[index] = replace(event, superseded=True)


def require_invocation(
    connection: sa.Connection, invocation_id: str, org_id: str | None = None
) -> sa.Row[Any]:
    """Return an invocation's row. Raises NotFoundError."""
    row = find_invocation(connection, invocation_id, org_id)
    if row is None:
        raise NotFoundError(f"there is no invocation {invocation_id!r}")
    return row


def require_owned(connection: sa.Connection, invocation_id: str, runner: str) -> sa.Row[Any]:
    """Return the row of an invocation that `runner` owns. Raises NotFoundError, ConditionError."""
    row = require_invocation(connection, invocation_id)
    if row.owner != runner:
        raise ConditionError(f"{invocation_id} belongs to {row.owner or 'no runner'}, not to {runner}")
    return row


def find_invocation(
    connection: sa.Connection, invocation_id: str, org_id: str | None = None
) -> sa.Row[Any] | None:
    """Return an invocation's row; None: it doesn't exist, or another organisation has it."""
    row = connection.execute(_BY_ID, {"of": invocation_id}).first()
    return None if row is None or org_id not in (None, row.org_id) else row


def update_invocation(connection: sa.Connection, invocation_id: str, values: Mapping[str, Any]) -> None:
    """Set columns of one invocation's row."""
    connection.execute(_UPDATE, {"of": invocation_id, **values})
