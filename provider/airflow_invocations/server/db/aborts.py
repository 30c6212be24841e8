"""The aborts of the repository: recorded first, then tried until the processes are gone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from ...models import CancelAllAnswer, InvocationStatus
from ..timestamps import now
from .invocations import NONTERMINAL, RUNNER_PREFIX
from .tables import invocations
from .transitions import Lives, require_invocation, update_invocation

#: Invocations that one `cancel_all` takes care of.
CANCEL_BATCH = 500


@dataclass(frozen=True, slots=True)
class PendingAbort:
    """An invocation that is to be stopped and hasn't been yet."""

    invocation_id: str
    reason: str
    owner: str | None
    process_group: int | None
    process_began: float | None
    #: How often it was tried.
    attempts: int


class Aborts(Lives):
    """Requests to stop, and what has become of them.

    In Flyte 2's ActionRepo: AbortAction (`request_abort`), AbortRun (`abort_tree`), ListPendingAborts,
    MarkAbortAttempt, ClearAbortRequest.
    """

    def request_abort(self, invocation_id: str, reason: str, org_id: str) -> InvocationStatus:
        """Record that an invocation is to be cancelled; one that no runner has is Cancelled at once.

        Asking again, or after the end, changes nothing. Returns the status it then has.

        Raises:
            NotFoundError: no such invocation.
        """
        with self._write() as connection:
            return self._abort(connection, require_invocation(connection, invocation_id, org_id), reason)

    def abort_tree(self, root_id: str, reason: str, org_id: str) -> list[str]:
        """Abort an invocation and all that it has started, at any depth; the ids of those that were active.

        Raises:
            NotFoundError: no such invocation.
        """
        with self._write() as connection:
            require_invocation(connection, root_id, org_id)
            tree = (
                sa.select(invocations.c.invocation_id)
                .where(invocations.c.invocation_id == root_id)
                .cte("tree", recursive=True)
            )
            tree = tree.union_all(
                sa.select(invocations.c.invocation_id).where(invocations.c.parent_id == tree.c.invocation_id)
            )
            active = sa.select(invocations).where(
                invocations.c.invocation_id.in_(sa.select(tree.c.invocation_id)),
                invocations.c.last_status.in_(NONTERMINAL),
            )
            rows = connection.execute(active.order_by(invocations.c.number)).all()
            for row in rows:
                self._abort(connection, row, reason)
            return [row.invocation_id for row in rows]

    def cancel_all(self, reason: str, org_id: str, created_before: int | None = None) -> CancelAllAnswer:
        """Abort the organisation's active invocations, CANCEL_BATCH at a time."""
        active = sa.select(invocations).where(
            invocations.c.org_id == org_id,
            invocations.c.last_status.in_(NONTERMINAL),
            invocations.c.abort_reason.is_(None),
        )
        if created_before is not None:
            active = active.where(invocations.c.created < created_before)
        with self._write() as connection:
            rows = connection.execute(active.order_by(invocations.c.number).limit(CANCEL_BATCH + 1)).all()
            for row in rows[:CANCEL_BATCH]:
                self._abort(connection, row, reason)
        more = len(rows) > CANCEL_BATCH
        return CancelAllAnswer(success_count=min(len(rows), CANCEL_BATCH), failure_count=0, has_more=more)

    def pending_aborts(self, due: int | None = None) -> list[PendingAbort]:
        """What is still to be stopped, oldest request first; with `due`, what is to be tried by that time."""
        pending = sa.select(invocations).where(
            invocations.c.abort_reason.is_not(None), invocations.c.last_status.in_(NONTERMINAL)
        )
        if due is not None:
            pending = pending.where(invocations.c.abort_next <= due)
        with self._read() as connection:
            return [
                PendingAbort(
                    invocation_id=row.invocation_id,
                    reason=row.abort_reason,
                    owner=row.owner,
                    process_group=row.process_group,
                    process_began=row.process_began,
                    attempts=row.abort_attempts,
                )
                for row in connection.execute(pending.order_by(invocations.c.abort_requested))
            ]

    def mark_abort_attempt(self, invocation_id: str, again_at: int) -> int:
        """Count a try at stopping an invocation; it is due again at `again_at`. How often it was tried."""
        with self._write() as connection:
            attempts: int = require_invocation(connection, invocation_id).abort_attempts + 1
            values = {"abort_attempts": attempts, "abort_next": again_at}
            update_invocation(connection, invocation_id, values)
            return attempts

    def clear_abort(self, invocation_id: str) -> None:
        """Take a request back: there is nothing to be stopped (any more)."""
        with self._write() as connection:
            cleared = {"abort_reason": None, "abort_requested": None, "abort_next": None, "abort_attempts": 0}
            update_invocation(connection, invocation_id, cleared)

    def stop_reason(self, invocation_id: str, owner: str) -> str | None:
        """Why `owner` must stop working on an invocation; None if it must not."""
        with self._read() as connection:
            row = require_invocation(connection, invocation_id)
        if row.owner != owner:
            return f"somebody else made it {InvocationStatus(row.last_status)}"
        reason: str | None = row.abort_reason
        return reason

    def _abort(self, connection: sa.Connection, row: sa.Row[Any], reason: str) -> InvocationStatus:
        status = InvocationStatus(row.last_status)
        if status.is_terminal:
            return status
        if row.owner is None or not row.owner.startswith(RUNNER_PREFIX):
            self._move(connection, row, InvocationStatus.Cancelled, reason)
            return InvocationStatus.Cancelled
        if row.abort_reason is None:
            present = now()
            asked = {"abort_reason": reason, "abort_requested": present, "abort_next": present}
            update_invocation(connection, row.invocation_id, asked)
            self._after_commit_abort(connection, row.invocation_id)
        return status
