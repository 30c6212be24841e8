"""Status events: every change of an invocation's status, in the order of the commits."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import sqlalchemy as sa

from ...models import InvocationStatus
from .database import Database, StatusEvent
from .tables import events
from .transitions import require_invocation

#: Ids in one statement; SQLite takes 32,766 values.
_BATCH = 10_000


class EventRepository:
    """Reads status events. `transitions` writes them, in the transaction that changes the status."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def by_invocation(self, invocation_id: str, org_id: str) -> list[StatusEvent]:
        """Return all events of an invocation, oldest first. Raises NotFoundError."""
        with self._database.read() as connection:
            require_invocation(connection, invocation_id, org_id)
            return _select(connection, events.c.invocation_id == invocation_id)

    def by_attempt(
        self, invocation_id: str, org_id: str, attempt: int, after: int = 0, limit: int = 1000
    ) -> list[StatusEvent]:
        """Return events of one attempt, oldest first.

        :param attempt: its number, from 1; an attempt that doesn't exist has no events.
        :param after: only events with a higher number than this one.
        :param limit: how many at most.
        :raises NotFoundError: no such invocation.
        """
        selected = _of_attempt(invocation_id, attempt) & (events.c.number > after)
        with self._database.read() as connection:
            require_invocation(connection, invocation_id, org_id)
            return _select(connection, selected, limit)

    def last_number(self) -> int:
        """Return the number of the last committed event; 0: there is none."""
        with self._database.read() as connection:
            return connection.scalar(sa.select(sa.func.max(events.c.number))) or 0

    def latest(self, ids: Collection[str], org_id: str) -> list[StatusEvent]:
        """Return the last event of each invocation, oldest first; unknown ids are left out."""
        requested = list(ids)
        found: list[StatusEvent] = []
        for start in range(0, len(requested), _BATCH):
            batch = requested[start : start + _BATCH]
            last = (
                sa.select(sa.func.max(events.c.number))
                .where(events.c.invocation_id.in_(batch), events.c.org_id == org_id)
                .group_by(events.c.invocation_id)
            )
            with self._database.read() as connection:
                found += _select(connection, events.c.number.in_(last))
        return sorted(found, key=lambda event: event.number)

    def since(self, number: int, org_id: str, limit: int) -> list[StatusEvent]:
        """Return the events of an organisation after event `number`, oldest first, at most `limit`.

        Superseded events are left out.
        """
        selected = (events.c.number > number) & (events.c.org_id == org_id) & events.c.superseded.is_(False)
        with self._database.read() as connection:
            return _select(connection, selected, limit)


def _of_attempt(invocation_id: str, attempt: int) -> sa.ColumnElement[bool]:
    return (events.c.invocation_id == invocation_id) & (events.c.attempt == attempt)


def _select(
    connection: sa.Connection, condition: sa.ColumnElement[bool], limit: int | None = None
) -> list[StatusEvent]:
    selected = sa.select(events).where(condition).order_by(events.c.number).limit(limit)
    return [_to_event(row) for row in connection.execute(selected)]


def _to_event(row: sa.Row[Any]) -> StatusEvent:
    return StatusEvent(
        number=row.number,
        invocation_id=row.invocation_id,
        org_id=row.org_id,
        action_name=row.action_name,
        root_id=row.root_id,
        attempt=row.attempt,
        status=InvocationStatus(row.status),
        detail=row.detail,
        exit_code=row.exit_code,
        timestamp=row.timestamp,
        superseded=row.superseded,
    )
