"""Custom states: one text per invocation, which the action's own code sets."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert as upsert

from ..errors import InvalidRequestError
from ..timestamps import now
from .database import Database, InvocationListener
from .tables import states
from .transitions import require_invocation

#: Characters that a state may have.
MAX_STATE = 64 * 1024


class StateRepository:
    """Reads and writes custom states; each write replaces the whole text."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._listeners: list[InvocationListener] = []

    def listen(self, listener: InvocationListener) -> None:
        """Call `listener`, in the writer's thread, with the id of each invocation that gets a state."""
        self._listeners.append(listener)

    def set(self, invocation_id: str, state: str, org_id: str) -> None:
        """Store a state and notify the listeners.

        :param state: at most MAX_STATE characters.
        :raises NotFoundError: no such invocation.
        :raises InvalidRequestError: the state is too long.
        """
        if len(state) > MAX_STATE:
            raise InvalidRequestError(f"a state has at most {MAX_STATE} characters, not {len(state)}")
        with self._database.write() as connection:
            require_invocation(connection, invocation_id, org_id)
            values = {"invocation_id": invocation_id, "state": state, "updated": now()}
            insert = upsert(states).values(values)
            connection.execute(insert.on_conflict_do_update(index_elements=["invocation_id"], set_=values))
        for listener in self._listeners:
            listener(invocation_id)

    def get(self, invocation_id: str, org_id: str) -> str | None:
        """Return the state; None: none was set. Raises NotFoundError."""
        with self._database.read() as connection:
            require_invocation(connection, invocation_id, org_id)
            selected = sa.select(states.c.state).where(states.c.invocation_id == invocation_id)
            state: str | None = connection.scalar(selected)
            return state
