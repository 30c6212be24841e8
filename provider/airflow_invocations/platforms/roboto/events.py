"""Status events of all invocations: pushed by the local server, or listed for a polled stream."""

from __future__ import annotations

import datetime
from collections.abc import AsyncIterator, Callable, Collection
from typing import Any

import httpx
import pydantic

from ...invocation_api import parse_json
from ...models import (
    CaughtUp,
    CursorLost,
    InvocationEvent,
    InvocationStatus,
    StatusRecord,
    UnreadableItem,
    cursor_at,
    decode_message,
)
from ...models.base import problems_of
from ..errors import UnavailableError
from ..polling import LOOKBACK, ListedInvocation
from .records import HAS_ENDED, all_of, any_of, compare
from .server_sent_events import server_sent_events

#: Lists the unread records that match a condition.
ListItems = Callable[[dict[str, Any]], AsyncIterator[Any]]


class PushedEvents:
    """Events of the local server's watch; cursors are their numbers."""

    overlap = 0

    def __init__(self, answer: httpx.Response) -> None:
        self._answer = answer

    async def __aiter__(self) -> AsyncIterator[InvocationEvent | UnreadableItem | CaughtUp]:
        """Yield messages in order. Raises TransientError when the stream ends."""
        async for name, cursor, text in server_sent_events(self._answer):
            try:
                message = decode_message(name, parse_json(text), cursor)
            except ValueError as error:
                yield UnreadableItem(str(error))
                continue
            match message:
                case InvocationEvent() | CaughtUp():
                    yield message
                case CursorLost():
                    break
        raise UnavailableError(f"{self._answer.request.url.host} closed the stream")


class RobotoLister:
    """Lists invocations for a PollingEventStream with the API's queries.

    :param items: lists records.
    :param action: lists the invocations of this action; None: of all.
    """

    lookback = LOOKBACK

    def __init__(self, items: ListItems, action: str | None) -> None:
        self._items = items
        self._action = action

    async def since(self, moment: datetime.datetime) -> AsyncIterator[ListedInvocation]:
        """Yield the invocations that were created at a moment or later."""
        conditions = [compare("created", "GREATER_THAN_OR_EQUAL", moment.isoformat())]
        if self._action is not None:
            conditions.append(compare("provenance.action.name", "EQUALS", self._action))
        async for raw in self._items(all_of(*conditions)):
            yield _read(raw)

    async def ended(self, invocation_ids: Collection[str]) -> AsyncIterator[ListedInvocation]:
        """Yield those of up to 1,000 invocations that are terminal."""
        async for raw in self._items(all_of(any_of("invocation_id", invocation_ids), HAS_ENDED)):
            yield _read(raw)


class _Action(pydantic.BaseModel):
    name: str


class _Provenance(pydantic.BaseModel):
    action: _Action


class _Record(pydantic.BaseModel):
    """The fields of an InvocationRecord that an event needs."""

    invocation_id: str
    created: datetime.datetime
    last_status: InvocationStatus
    provenance: _Provenance
    status: list[StatusRecord] = []

    @property
    def current(self) -> StatusRecord:
        fallback = StatusRecord(status=self.last_status, timestamp=self.created)
        return max(self.status, key=lambda step: (step.timestamp, step.status), default=fallback)

    @property
    def event(self) -> InvocationEvent:
        step = self.current
        return InvocationEvent(
            self.invocation_id,
            step.status,
            self.provenance.action.name,
            step.timestamp,
            cursor_at(step.timestamp),
        )


def _read(raw: Any) -> ListedInvocation:
    try:
        record = _Record.model_validate(raw)
    except pydantic.ValidationError as error:
        # The id, whether or not the rest is readable.
        invocation_id = str(raw.get("invocation_id") if isinstance(raw, dict) else raw)
        return ListedInvocation(invocation_id, None, UnreadableItem(problems_of(error.errors()[:3])))
    return ListedInvocation(record.invocation_id, record.created, record.event)
