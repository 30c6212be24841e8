"""What happens to anybody's invocations, told by the invocation API: pushed, or asked for again and again."""

from __future__ import annotations

import asyncio
import datetime
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from typing import Any

import httpx
import pydantic

from ..model import MAX_PAGE_SIZE, InvocationStatus, StatusRecord
from ..model.wire import problems_of
from .base import CaughtUp, EventFilter, InvocationEvent, UnavailableError, UnreadableItem
from .server_sent_events import server_sent_events

#: Seconds between two looks, where the platform doesn't push.
POLL_INTERVAL = 5.0

#: How far back what isn't known is looked for when a stream is opened: longer than an action may take.
LOOKBACK = datetime.timedelta(days=7)

#: How late something may be seen for the first time: clocks differ, and a page takes a while.
SLACK = datetime.timedelta(minutes=2)

_MICROSECOND = datetime.timedelta(microseconds=1)
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)

#: For what doesn't say when it was created: as late as anything that was seen.
_NEWEST = datetime.datetime.max.replace(tzinfo=datetime.UTC)

#: Lists the raw records that a condition holds for, oldest first.
List = Callable[[dict[str, Any]], AsyncIterator[Any]]


class PushedEvents:
    """Events of the local service's watch; places are their numbers."""

    overlap = 0

    def __init__(self, answer: httpx.Response) -> None:
        self._answer = answer

    async def __aiter__(self) -> AsyncIterator[InvocationEvent | UnreadableItem | CaughtUp]:
        """What is told, in order.

        Raises:
            TransientError: at its end; streams have none of their own.
        """
        async for name, _, text in server_sent_events(self._answer):
            try:
                match name:
                    case "status":
                        yield _Pushed.model_validate_json(text).event
                    case "ready":
                        yield CaughtUp(_Place.model_validate_json(text).number)
                    case "lost":
                        break
            except pydantic.ValidationError as error:
                yield UnreadableItem(problems_of(error.errors()[:3]))
        raise UnavailableError(f"{self._answer.request.url.host} has ended the stream")


class PolledEvents:
    """Ends of invocations, found by asking; places are times.

    Each look asks for what was created since the look before, and for which of those that were under way
    have ended. An invocation that is put back into the queue after its end isn't followed any further.

    :param items: lists records.
    :param wanted: of these, only an action can be asked for; all ends are told.
    :param since: what ended after this was not told yet; None: begin now.
    """

    overlap = SLACK // _MICROSECOND

    def __init__(
        self,
        items: List,
        wanted: EventFilter,
        since: int | None,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._items = items
        self._wanted = wanted
        self._since = since
        self._pause = pause
        #: When each invocation was created that was under way at the last look.
        self._under_way: dict[str, datetime.datetime] = {}
        #: What was seen already and may be seen again, as it was created lately.
        self._seen: dict[str, datetime.datetime] = {}
        self._newest = _EPOCH

    async def __aiter__(self) -> AsyncIterator[InvocationEvent | UnreadableItem | CaughtUp]:
        """What is told; within a look in the order in which it happened."""
        # By the platform's own clock, as soon as there is anything to read it from.
        began = _EPOCH + (self._since or time.time_ns() // 1000) * _MICROSECOND
        self._newest = began - LOOKBACK
        past = await self._look_at_new(self._newest)
        if self._since is None:
            # What has ended before now is nobody's; the rest is followed.
            ends = (told.at for told in past if isinstance(told, InvocationEvent))
            yield CaughtUp(_place_of(max([self._newest, *ends])))
        else:
            for told in past:
                if isinstance(told, UnreadableItem) or told.at > began - SLACK:
                    yield told
            yield CaughtUp(self._since)
        while True:
            await self._pause(POLL_INTERVAL)
            ended = await self._look_at_old()
            for told in _in_order([*ended, *await self._look_at_new(self._newest - SLACK)]):
                yield told

    async def _look_at_new(
        self, created_from: datetime.datetime
    ) -> Sequence[InvocationEvent | UnreadableItem]:
        """Ask for what was created since then; what has ended and wasn't seen before."""
        found: list[InvocationEvent | UnreadableItem] = []
        conditions = [_compare("created", "GREATER_THAN_OR_EQUAL", created_from.isoformat())]
        if self._wanted.action is not None:
            conditions.append(_compare("provenance.action.name", "EQUALS", self._wanted.action))
        async for raw in self._items({"operator": "AND", "conditions": conditions}):
            invocation_id, item = _id_of(raw), _read(raw)
            if invocation_id in self._seen or invocation_id in self._under_way:
                continue
            if isinstance(item, UnreadableItem):
                self._seen[invocation_id] = _NEWEST
                found.append(item)
                continue
            self._newest = max(self._newest, item.created)
            self._seen[invocation_id] = item.created
            if item.current.status.is_terminal:
                found.append(item.event)
            else:
                self._under_way[invocation_id] = item.created
        oldest = self._newest - 2 * SLACK
        self._seen = {
            one: min(created, self._newest) for one, created in self._seen.items() if created >= oldest
        }
        return _in_order(found)

    async def _look_at_old(self) -> Sequence[InvocationEvent | UnreadableItem]:
        """Ask which of those that were under way have ended."""
        found: list[InvocationEvent | UnreadableItem] = []
        oldest = self._newest - LOOKBACK
        self._under_way = {one: created for one, created in self._under_way.items() if created >= oldest}
        ids = list(self._under_way)
        for start in range(0, len(ids), MAX_PAGE_SIZE):
            async for raw in self._items(_ended_of(ids[start : start + MAX_PAGE_SIZE])):
                if self._under_way.pop(_id_of(raw), None) is not None:
                    item = _read(raw)
                    found.append(item if isinstance(item, UnreadableItem) else item.event)
        return found


class _Pushed(pydantic.BaseModel):
    number: int
    invocation_id: str
    action: str
    status: InvocationStatus
    timestamp: datetime.datetime

    @property
    def event(self) -> InvocationEvent:
        return InvocationEvent(self.invocation_id, self.action, self.status, self.timestamp, self.number)


class _Place(pydantic.BaseModel):
    number: int


class _Action(pydantic.BaseModel):
    name: str


class _Provenance(pydantic.BaseModel):
    action: _Action


class _Listed(pydantic.BaseModel):
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
            self.provenance.action.name,
            step.status,
            step.timestamp,
            _place_of(step.timestamp),
        )


def _place_of(moment: datetime.datetime) -> int:
    return (moment - _EPOCH) // _MICROSECOND


def _id_of(raw: Any) -> str:
    """What an item is known by, whether or not the rest of it can be read."""
    return str(raw.get("invocation_id") if isinstance(raw, dict) else raw)


def _read(raw: Any) -> _Listed | UnreadableItem:
    try:
        return _Listed.model_validate(raw)
    except pydantic.ValidationError as error:
        return UnreadableItem(problems_of(error.errors()[:3]))


def _in_order(
    found: list[InvocationEvent | UnreadableItem],
) -> Sequence[InvocationEvent | UnreadableItem]:
    """What can't be read first, then by time."""
    return sorted(found, key=lambda told: told.place if isinstance(told, InvocationEvent) else 0)


def _compare(field: str, comparator: str, value: object) -> dict[str, Any]:
    return {"field": field, "comparator": comparator, "value": value}


def _ended_of(ids: Collection[str]) -> dict[str, Any]:
    each = [_compare("invocation_id", "EQUALS", one) for one in ids]
    ended = _compare("last_status", "GREATER_THAN_OR_EQUAL", int(InvocationStatus.Completed))
    return {"operator": "AND", "conditions": [{"operator": "OR", "conditions": each}, ended]}
