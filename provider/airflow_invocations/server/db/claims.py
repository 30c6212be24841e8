"""Claims of runners on invocations: take the next one, report progress, requeue after a crash."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import sqlalchemy as sa

from ...models import InvocationRecord, InvocationStatus
from ...models.text import counted
from ..timestamps import now
from .database import Database
from .invocation_json import load_record
from .tables import NONTERMINAL, invocations
from .transitions import require_invocation, require_owned, transition, update_invocation

#: An invocation that was lost with its runner this many times becomes Deadly.
MAX_LOSSES = 3

#: Prefix of the owners that are this server's runners; any other owner reports statuses over the API.
RUNNER_PREFIX = "runner-"

_CLAIMED = [status for status in NONTERMINAL if status != InvocationStatus.Queued]

# Built once: building a statement takes longer than running it.
_OLDEST_QUEUED = (
    sa.select(invocations)
    .where(
        invocations.c.last_status == InvocationStatus.Queued.value,
        invocations.c.invocation_id.not_in(sa.bindparam("busy", expanding=True)),
    )
    .order_by(invocations.c.number)
    .limit(1)
)


@dataclass(frozen=True, slots=True)
class OrphanedInvocation:
    """An invocation whose runner is gone, and the process group that may still run."""

    invocation_id: str
    owner: str
    process_group: int | None
    #: When the process group's leader started (seconds since 1970).
    process_started: float | None


class ClaimRepository:
    """Which runner works on which invocation."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def claim(self, runner: str, busy: Collection[str] = ()) -> InvocationRecord | None:
        """Give the oldest Queued invocation to `runner`; None if there is none.

        The invocation becomes Scheduled and at once Downloading, so that the runner can prepare the workspace
        without another commit.

        :param busy: ids to skip, because their runner hasn't finished an earlier attempt yet.
        """
        with self._database.write() as connection:
            row = connection.execute(_OLDEST_QUEUED, {"busy": list(busy)}).first()
            if row is None:
                return None
            transition(connection, row, InvocationStatus.Scheduled, None, runner)
            row = require_invocation(connection, row.invocation_id)
            transition(connection, row, InvocationStatus.Downloading, None, runner)
            return load_record(connection, row.invocation_id)

    def transition_owned(
        self,
        invocation_id: str,
        status: InvocationStatus,
        detail: str | None,
        runner: str,
        exit_code: int | None = None,
    ) -> None:
        """Move an invocation that `runner` owns to a status.

        :param exit_code: of the action's process, if that is how the invocation ends.
        :raises InvalidStateTransitionError: the status may not follow the current one.
        :raises ConditionError: `runner` doesn't own the invocation, or no longer owns it.
        """
        with self._database.write() as connection:
            row = require_owned(connection, invocation_id, runner)
            transition(connection, row, status, detail, runner, exit_code=exit_code)

    def set_processing(
        self, invocation_id: str, runner: str, process_group: int, process_started: float | None
    ) -> None:
        """Move an invocation to Processing, and store its process group for a restarted server to end.

        :param process_started: when the group's leader started (seconds since 1970), None if it has ended.
        :raises InvalidStateTransitionError: Processing may not follow the current status.
        :raises ConditionError: `runner` doesn't own the invocation, or no longer owns it.
        """
        with self._database.write() as connection:
            row = require_owned(connection, invocation_id, runner)
            transition(connection, row, InvocationStatus.Processing, None, runner)
            process = {"process_group": process_group, "process_started": process_started}
            update_invocation(connection, invocation_id, process)

    def heartbeat(self, runner: str) -> None:
        """Store that `runner` is alive, for all invocations that it owns."""
        with self._database.write() as connection:
            owned = invocations.update().where(invocations.c.owner == runner)
            connection.execute(owned.values(last_heartbeat=now()))

    def orphaned(
        self, living: Collection[str] = (), heartbeat_before: int | None = None
    ) -> list[OrphanedInvocation]:
        """Return invocations claimed by runners that are not alive, oldest first.

        :param living: runners that are alive.
        :param heartbeat_before: only those with an older heartbeat (microseconds since 1970).
        """
        lost = (
            invocations.c.last_status.in_(_CLAIMED)
            & invocations.c.owner.startswith(RUNNER_PREFIX, autoescape=True)
            & invocations.c.owner.not_in(living)
        )
        if heartbeat_before is not None:
            lost &= invocations.c.last_heartbeat < heartbeat_before
        return self._claimed(lost)

    def owned_by(self, runner: str) -> list[OrphanedInvocation]:
        """Return what a runner has claimed, oldest first."""
        return self._claimed(invocations.c.last_status.in_(_CLAIMED) & (invocations.c.owner == runner))

    def _claimed(self, condition: sa.ColumnElement[bool]) -> list[OrphanedInvocation]:
        selected = sa.select(invocations).where(condition).order_by(invocations.c.number)
        with self._database.read() as connection:
            return [
                OrphanedInvocation(row.invocation_id, row.owner, row.process_group, row.process_started)
                for row in connection.execute(selected)
            ]

    def requeue(self, invocation_id: str, runner: str, detail: str | None, *, lost: bool) -> InvocationStatus:
        """Take an invocation from its runner, so that it runs again: Failed, then Queued.

        An invocation with an abort request is Cancelled instead.

        :param lost: the runner crashed, and did not stop cleanly; the third loss makes the invocation Deadly.
        :return: the new status.
        :raises ConditionError: `runner` doesn't own the invocation, or no longer owns it.
        """
        with self._database.write() as connection:
            row = require_owned(connection, invocation_id, runner)
            if row.abort_reason is not None:
                transition(connection, row, InvocationStatus.Cancelled, row.abort_reason)
                return InvocationStatus.Cancelled
            losses = row.losses + lost
            update_invocation(connection, invocation_id, {"losses": losses})
            transition(connection, row, InvocationStatus.Failed, detail)
            row = require_invocation(connection, invocation_id)
            if losses >= MAX_LOSSES:
                why = f"lost {counted(losses, 'time')}: {detail}"
                transition(connection, row, InvocationStatus.Deadly, why)
                return InvocationStatus.Deadly
            transition(connection, row, InvocationStatus.Queued, detail, attempt=row.attempt + 1)
            return InvocationStatus.Queued
