"""The custom state of the repository: what an invocation's own code wants to be remembered about it."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert as upsert

from ..api.errors import InvalidRequestError
from ..timestamps import now
from .database import Database
from .tables import invocations, states
from .transitions import require_invocation

#: Characters that a state may have.
MAX_STATE = 64 * 1024


class States(Database):
    """One text an invocation, replaced as a whole.

    In Flyte 2's ActionRepo: UpdateActionState, GetActionState, NotifyStateUpdate (every update does it) and
    WatchStateUpdates (`listen_to_states`).
    """

    def update_state(self, invocation_id: str, state: str, org_id: str) -> None:
        """Remember a state, and tell those who listen.

        Raises:
            NotFoundError: no such invocation.
            InvalidRequestError: it is longer than MAX_STATE characters.
        """
        if len(state) > MAX_STATE:
            raise InvalidRequestError(f"a state has at most {MAX_STATE} characters, not {len(state)}")
        with self._write() as connection:
            require_invocation(connection, invocation_id, org_id)
            values = {"invocation_id": invocation_id, "state": state, "updated": now()}
            insert = upsert(states).values(values)
            connection.execute(insert.on_conflict_do_update(index_elements=["invocation_id"], set_=values))
        self.notify_state(invocation_id)

    def get_state(self, invocation_id: str, org_id: str) -> str | None:
        """The state that was remembered last; None: none was. Raises NotFoundError."""
        with self._read() as connection:
            require_invocation(connection, invocation_id, org_id)
            found = sa.select(states.c.state).where(states.c.invocation_id == invocation_id)
            state: str | None = connection.scalar(found)
            return state

    def roots_between(self, since: int, until: int, org_id: str, limit: int = 1000) -> list[str]:
        """Invocations that nothing else started, created from `since` up to before `until`, oldest first.

        ListRootActions in Flyte 2's ActionRepo; times in microseconds since 1970.
        """
        roots = (
            sa.select(invocations.c.invocation_id)
            .where(invocations.c.org_id == org_id, invocations.c.parent_id.is_(None))
            .where(invocations.c.created >= since, invocations.c.created < until)
            .order_by(invocations.c.created, invocations.c.number)
            .limit(limit)
        )
        with self._read() as connection:
            return list(connection.scalars(roots))
