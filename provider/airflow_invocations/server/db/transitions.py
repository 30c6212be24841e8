"""How the status of an invocation is changed: by the rules, with an event, in one transaction."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
from ..api.errors import ConditionError, InvalidStateTransitionError, NotFoundError
from ..timestamps import now
from .database import StatusEvent
from .events import Events
from .tables import events, invocations

# Statements that every change of a status takes are built once: building one takes longer than running it.
_BY_ID = sa.select(invocations).where(invocations.c.invocation_id == sa.bindparam("of"))
_UPDATE = invocations.update().where(invocations.c.invocation_id == sa.bindparam("of"))
_LAST_TIME = sa.select(sa.func.max(events.c.timestamp)).where(events.c.invocation_id == sa.bindparam("of"))
_INSERT_EVENT = events.insert().returning(events.c.number)


@dataclass(frozen=True, slots=True)
class StatusReport:
    """A change of a status that somebody reports: of which invocation, to what, why, and who says so."""

    invocation_id: str
    status: InvocationStatus
    detail: str | None
    mover: str


#: What the id of every invocation looks like: nothing else is ever part of a file's name.
INVOCATION_ID = re.compile(r"iv_[0-9a-f]{16}")


@dataclass(frozen=True, slots=True)
class CheckedInvocation:
    """An invocation that was found in the organisation of the caller who asks for it.

    Only the store makes one (`check_invocation`, `check_invocations`). What reads by it, such as a log,
    can't be called with an id that a request named and no one compared with the request's token.
    """

    invocation_id: str
    org_id: str


class Subject(NamedTuple):
    """What an event says of the invocation that it is about."""

    invocation_id: str
    org_id: str
    action_name: str
    root_id: str


class Lives(Events):
    """Changes of status. Everything that changes one goes through `_move`."""

    def insert_events(self, reports: Sequence[StatusReport], org_id: str) -> None:
        """Make a batch of changes, all or none (InsertEvents in Flyte 2's ActionRepo).

        Raises:
            NotFoundError: an invocation isn't there.
            InvalidStateTransitionError: a status may not follow the current one.
            ConditionError: an invocation is somebody else's.
        """
        with self._write() as connection:
            for report in reports:
                row = require_invocation(connection, report.invocation_id, org_id)
                self._move(connection, row, report.status, report.detail, report.mover)

    def _move(
        self,
        connection: sa.Connection,
        row: sa.Row[Any],
        status: InvocationStatus,
        detail: str | None,
        mover: str | None = None,
        *,
        attempt: int | None = None,
        exit_code: int | None = None,
    ) -> None:
        current = OwnedStatus(InvocationStatus(row.last_status), row.owner)
        try:
            moved = status_record_transition(current, status, mover, DEFINITIONS)
        except InvalidTransition as error:
            raise InvalidStateTransitionError(f"{row.invocation_id}: {error}") from None
        except NotOwned as error:
            raise ConditionError(f"{row.invocation_id}: {error}") from None
        values: dict[str, Any] = {"last_status": status.value, "owner": moved.owner}
        if attempt is not None:
            values["attempt"] = attempt
        if moved.owner is None:
            values |= dict.fromkeys(("process_group", "process_began", "abort_reason", "abort_next"))
        elif moved.owner != current.owner:
            values["last_heartbeat"] = now()
        update_invocation(connection, row.invocation_id, values)
        subject = Subject(row.invocation_id, row.org_id, row.action_name, row.root_id)
        # The current status is the last by (timestamp, value), so time must not stand still between two.
        previous: int = connection.execute(_LAST_TIME, {"of": row.invocation_id}).scalar_one()
        present = max(now(), previous + 1)
        self._add_event(
            connection, subject, status, detail, present, attempt or row.attempt, previous, exit_code
        )

    def _add_event(
        self,
        connection: sa.Connection,
        subject: Subject,
        status: InvocationStatus,
        detail: str | None,
        timestamp: int,
        attempt: int,
        previous: int | None,
        exit_code: int | None = None,
    ) -> None:
        values = {
            **subject._asdict(),
            "attempt": attempt,
            "status": status.value,
            "detail": detail,
            "exit_code": exit_code,
            "timestamp": timestamp,
            "passing": False,
        }
        number = connection.execute(_INSERT_EVENT, values).scalar_one()
        self._pass_over(connection, subject.invocation_id)
        self._after_commit(
            connection, StatusEvent(number=number, previous=previous, **{**values, "status": status})
        )

    @staticmethod
    def _pass_over(connection: sa.Connection, invocation_id: str) -> None:
        """Mark this transaction's earlier events of the invocation: nobody will ever see those statuses."""
        pending: list[StatusEvent] = connection.info["events"]
        for place, event in enumerate(pending):
            if event.invocation_id == invocation_id:
                passed = events.update().where(events.c.number == event.number)
                connection.execute(passed.values(passing=True))
                pending[place] = replace(event, passing=True)


def require_invocation(
    connection: sa.Connection, invocation_id: str, org_id: str | None = None
) -> sa.Row[Any]:
    """An invocation's row. Raises NotFoundError."""
    row = find_invocation(connection, invocation_id, org_id)
    if row is None:
        raise NotFoundError(f"there is no invocation {invocation_id!r}")
    return row


def find_invocation(
    connection: sa.Connection, invocation_id: str, org_id: str | None = None
) -> sa.Row[Any] | None:
    """An invocation's row; None: there is no such one, or it is another organisation's."""
    row = connection.execute(_BY_ID, {"of": invocation_id}).first()
    return None if row is None or org_id not in (None, row.org_id) else row


def update_invocation(connection: sa.Connection, invocation_id: str, values: Mapping[str, Any]) -> None:
    """Set columns of one invocation's row."""
    connection.execute(_UPDATE, {"of": invocation_id, **values})
