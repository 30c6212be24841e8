"""What happens to anybody's invocations, told by the invocation API: pushed, or asked for again and again."""

from __future__ import annotations

import datetime
from collections.abc import AsyncIterator, Callable, Collection
from typing import Any

import httpx
import pydantic

from ...invocation_api import json_of
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
from ..polling import LOOKBACK, Listed
from .server_sent_events import server_sent_events

#: Lists the raw records that a condition holds for.
List = Callable[[dict[str, Any]], AsyncIterator[Any]]


class PushedEvents:
    """Events of the local server's watch; cursors are their numbers."""

    overlap = 0

    def __init__(self, answer: httpx.Response) -> None:
        self._answer = answer

    async def __aiter__(self) -> AsyncIterator[InvocationEvent | UnreadableItem | CaughtUp]:
        """Yield messages in order.

        Raises:
            TransientError: at its end; streams have none of their own.
        """
        async for name, cursor, text in server_sent_events(self._answer):
            try:
                message = decode_message(name, json_of(text), cursor)
            except ValueError as error:
                yield UnreadableItem(str(error))
                continue
            match message:
                case InvocationEvent() | CaughtUp():
                    yield message
                case CursorLost():
                    break
        raise UnavailableError(f"{self._answer.request.url.host} has ended the stream")


class RobotoListing:
    """What a PolledEvents asks for, by the API's queries.

    :param items: lists records.
    :param action: the only one whose invocations are wanted; None: every one's are.
    """

    lookback = LOOKBACK

    def __init__(self, items: List, action: str | None) -> None:
        self._items = items
        self._action = action

    async def since(self, moment: datetime.datetime) -> AsyncIterator[Listed]:
        """Everything that was created then or later."""
        conditions = [_compare("created", "GREATER_THAN_OR_EQUAL", moment.isoformat())]
        if self._action is not None:
            conditions.append(_compare("provenance.action.name", "EQUALS", self._action))
        async for raw in self._items({"operator": "AND", "conditions": conditions}):
            yield _read(raw)

    async def ended(self, invocation_ids: Collection[str]) -> AsyncIterator[Listed]:
        """Those of up to 1,000 invocations that have ended."""
        async for raw in self._items(_ended_of(invocation_ids)):
            yield _read(raw)


class _Action(pydantic.BaseModel):
    name: str


class _Provenance(pydantic.BaseModel):
    action: _Action


class _Record(pydantic.BaseModel):
    """What of an InvocationRecord a polled stream wants to know."""

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


def _read(raw: Any) -> Listed:
    try:
        record = _Record.model_validate(raw)
    except pydantic.ValidationError as error:
        # What it is known by, whether or not the rest of it can be read.
        invocation_id = str(raw.get("invocation_id") if isinstance(raw, dict) else raw)
        return Listed(invocation_id, None, UnreadableItem(problems_of(error.errors()[:3])))
    return Listed(record.invocation_id, record.created, record.event)


def _compare(field: str, comparator: str, value: object) -> dict[str, Any]:
    return {"field": field, "comparator": comparator, "value": value}


def _ended_of(ids: Collection[str]) -> dict[str, Any]:
    each = [_compare("invocation_id", "EQUALS", one) for one in ids]
    ended = _compare("last_status", "GREATER_THAN_OR_EQUAL", int(InvocationStatus.Completed))
    return {"operator": "AND", "conditions": [{"operator": "OR", "conditions": each}, ended]}
