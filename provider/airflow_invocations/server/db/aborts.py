"""Abort requests: stored first, then carried out until the processes are gone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from ...models import CancelAllAnswer, InvocationStatus
from ..timestamps import now
from .claims import RUNNER_PREFIX
from .database import Database, notify_abort
from .invocations import subtree_ids
from .tables import NONTERMINAL, invocations
from .transitions import require_invocation, transition, update_invocation

#: Invocations that one `request_all` aborts.
CANCEL_BATCH = 500


@dataclass(frozen=True, slots=True)
class PendingAbort:
    """An invocation that has to be stopped and still runs."""

    invocation_id: str
    reason: str
    owner: str | None
    process_group: int | None
    process_started: float | None
    #: How many times stopping it was tried.
    attempts: int


class AbortRepository:
    """Requests to stop invocations, with the attempts to carry them out."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def request(self, invocation_id: str, reason: str, org_id: str) -> InvocationStatus:
        """Request that an invocation is stopped; one that no runner has is Cancelled at once.

        A repeated request, or one after the end, changes nothing.

        :return: the invocation's status after the request.
        :raises NotFoundError: no such invocation.
        """
        with self._database.write() as connection:
            return _abort(connection, require_invocation(connection, invocation_id, org_id), reason)

    def request_tree(self, invocation_id: str, reason: str, org_id: str) -> list[str]:
        """Request that an invocation and all that it has invoked, at any depth, are stopped.

        :return: ids of the invocations that were active, oldest first.
        :raises NotFoundError: no such invocation.
        """
        with self._database.write() as connection:
            require_invocation(connection, invocation_id, org_id)
            active = sa.select(invocations).where(
                invocations.c.invocation_id.in_(subtree_ids(invocation_id)),
                invocations.c.last_status.in_(NONTERMINAL),
            )
            rows = connection.execute(active.order_by(invocations.c.number)).all()
            for row in rows:
                _abort(connection, row, reason)
            return [row.invocation_id for row in rows]

    def request_all(self, reason: str, org_id: str, created_before: int | None = None) -> CancelAllAnswer:
        """Request that an organisation's active invocations are stopped, CANCEL_BATCH at a time.

        :param created_before: only invocations created before (microseconds since 1970).
        """
        active = sa.select(invocations).where(
            invocations.c.org_id == org_id,
            invocations.c.last_status.in_(NONTERMINAL),
            invocations.c.abort_reason.is_(None),
        )
        if created_before is not None:
            active = active.where(invocations.c.created < created_before)
        with self._database.write() as connection:
            rows = connection.execute(active.order_by(invocations.c.number).limit(CANCEL_BATCH + 1)).all()
            for row in rows[:CANCEL_BATCH]:
                _abort(connection, row, reason)
        more = len(rows) > CANCEL_BATCH
        return CancelAllAnswer(success_count=min(len(rows), CANCEL_BATCH), failure_count=0, has_more=more)

    def pending(self, due: int | None = None) -> list[PendingAbort]:
        """Return the requests that are not carried out yet, oldest first.

        :param due: only those to be tried by this time (microseconds since 1970).
        """
        requested = sa.select(invocations).where(
            invocations.c.abort_reason.is_not(None), invocations.c.last_status.in_(NONTERMINAL)
        )
        if due is not None:
            requested = requested.where(invocations.c.abort_next <= due)
        with self._database.read() as connection:
            return [
                PendingAbort(
                    invocation_id=row.invocation_id,
                    reason=row.abort_reason,
                    owner=row.owner,
                    process_group=row.process_group,
                    process_started=row.process_started,
                    attempts=row.abort_attempts,
                )
                for row in connection.execute(requested.order_by(invocations.c.abort_requested))
            ]

    def record_attempt(self, invocation_id: str, next_attempt_at: int) -> int:
        """Count an attempt at stopping an invocation.

        :param next_attempt_at: when the request is due again (microseconds since 1970).
        :return: the number of attempts.
        """
        with self._database.write() as connection:
            attempts: int = require_invocation(connection, invocation_id).abort_attempts + 1
            values = {"abort_attempts": attempts, "abort_next": next_attempt_at}
            update_invocation(connection, invocation_id, values)
            return attempts

    def stop_reason(self, invocation_id: str, runner: str) -> str | None:
        """Return why `runner` must stop working on an invocation; None if it may continue."""
        with self._database.read() as connection:
            row = require_invocation(connection, invocation_id)
        if row.owner != runner:
            return f"another client or runner set it to {InvocationStatus(row.last_status)}"
        reason: str | None = row.abort_reason
        return reason


def _abort(connection: sa.Connection, row: sa.Row[Any], reason: str) -> InvocationStatus:
    status = InvocationStatus(row.last_status)
    if status.is_terminal:
        return status
    if row.owner is None or not row.owner.startswith(RUNNER_PREFIX):
        transition(connection, row, InvocationStatus.Cancelled, reason)
        return InvocationStatus.Cancelled
    if row.abort_reason is None:
        present = now()
        request = {"abort_reason": reason, "abort_requested": present, "abort_next": present}
        update_invocation(connection, row.invocation_id, request)
        notify_abort(connection, row.invocation_id)
    return status
