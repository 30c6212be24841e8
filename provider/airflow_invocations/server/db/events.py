"""The events of the repository: every change of a status, in the order in which they were committed."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import sqlalchemy as sa

from ...models import InvocationStatus
from .database import Database, StatusEvent
from .tables import events

#: Ids that one statement names; SQLite takes 32,766 values.
_BATCH = 10_000


class Events(Database):
    """Reads of events; they are written by what changes a status, in the same transaction.

    In Flyte 2's ActionRepo these are ListEvents, ListEventsSince and GetLatestEventByAttempt; InsertEvents
    is `Lives.insert_events`.
    """

    def list_events(self, invocation_id: str) -> list[StatusEvent]:
        """All events of an invocation, oldest first."""
        return self._events(events.c.invocation_id == invocation_id)

    def list_events_since(
        self, invocation_id: str, attempt: int, number: int, offset: int = 0, limit: int = 1000
    ) -> list[StatusEvent]:
        """Events of one attempt at an invocation after event `number`, oldest first."""
        theirs = (
            (events.c.invocation_id == invocation_id)
            & (events.c.attempt == attempt)
            & (events.c.number > number)
        )
        return self._events(theirs, offset=offset, limit=limit)

    def latest_event_by_attempt(self, invocation_id: str, attempt: int) -> StatusEvent | None:
        """The last event of one attempt at an invocation; None: there was no such attempt."""
        theirs = (events.c.invocation_id == invocation_id) & (events.c.attempt == attempt)
        found = sa.select(events).where(theirs).order_by(events.c.number.desc()).limit(1)
        with self._read() as connection:
            row = connection.execute(found).first()
        return None if row is None else event_of(row)

    def last_event_number(self) -> int:
        """The number of the last event that was committed; 0: there is none."""
        with self._read() as connection:
            return connection.scalar(sa.select(sa.func.max(events.c.number))) or 0

    def latest_events(self, ids: Collection[str], org_id: str) -> list[StatusEvent]:
        """The last event of each of these invocations, oldest first; ids that aren't known are left out."""
        wanted = list(ids)
        found: list[StatusEvent] = []
        for start in range(0, len(wanted), _BATCH):
            last = (
                sa.select(sa.func.max(events.c.number))
                .where(events.c.invocation_id.in_(wanted[start : start + _BATCH]), events.c.org_id == org_id)
                .group_by(events.c.invocation_id)
            )
            found += self._events(events.c.number.in_(last))
        return sorted(found, key=lambda event: event.number)

    def events_since(self, number: int, org_id: str, limit: int) -> list[StatusEvent]:
        """What was committed after event `number` in an organisation, oldest first, at most `limit` events.

        Events that nobody could see as a status (`passing`) are left out.
        """
        theirs = (events.c.number > number) & (events.c.org_id == org_id) & events.c.passing.is_(False)
        return self._events(theirs, limit=limit)

    def _events(
        self, condition: sa.ColumnElement[bool], offset: int = 0, limit: int | None = None
    ) -> list[StatusEvent]:
        found = sa.select(events).where(condition).order_by(events.c.number).offset(offset).limit(limit)
        with self._read() as connection:
            return [event_of(row) for row in connection.execute(found)]


def event_of(row: sa.Row[Any]) -> StatusEvent:
    """A row of the table of events."""
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
        passing=row.passing,
    )
