"""A platform with scripted events and failures."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Self

from airflow_invocations.models import (
    CaughtUp,
    EventFilter,
    InvocationEvent,
    InvocationRecord,
    InvocationStatus,
    UnreadableItem,
)
from airflow_invocations.platforms import (
    Capabilities,
    NotFoundError,
    PermanentError,
    UnavailableError,
    UnsupportedError,
)

from .records import (
    INVOCATION,
)

S = InvocationStatus
NOON = datetime.datetime(2026, 1, 31, 12, tzinfo=datetime.UTC)


class EventsPlatform:
    """Its log of events, and the records of the invocations that they are about."""

    where = "https://api.example"

    def __init__(self) -> None:
        self.capabilities = Capabilities(events=True)
        self.log: list[InvocationEvent | UnreadableItem] = []
        self.by_id: dict[str, InvocationRecord | UnreadableItem] = {}
        #: Raised by everything while it is set.
        self.down: Exception | None = None
        self.batches = True
        self.overlap = 0
        self.connects = 0
        self.closed = 0
        #: What each stream was opened with.
        self.opened: list[tuple[EventFilter, int | None]] = []
        self.sent = 0
        self._changed = asyncio.Event()
        self._generation = 0

    async def connect(self) -> Any:
        self.connects += 1
        self._raise()
        return self

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closed += 1

    def end(
        self, *ids: str, status: InvocationStatus = S.Completed, action: str = "count", **changes: Any
    ) -> None:
        """Have invocations end, each with a record."""
        for invocation_id in ids:
            cursor = len(self.log) + 1
            at = NOON + datetime.timedelta(seconds=cursor)
            self.log.append(InvocationEvent(invocation_id, status, action, at, cursor))
            self.by_id[invocation_id] = record_of_end(invocation_id, status, at, action, **changes)
        self._changed.set()

    def send_rubbish(self) -> None:
        """Have something in the stream that can't be read."""
        self.log.append(UnreadableItem("timestamp: it is no time"))
        self._changed.set()

    def break_streams(self) -> None:
        """End the open streams as a lost connection does."""
        self._generation += 1
        self._changed.set()

    @asynccontextmanager
    async def events(self, wanted: EventFilter, since: int | None) -> AsyncIterator[Any]:
        self._raise()
        if not self.capabilities.events:
            raise UnsupportedError(f"{self.where} has no stream of events")
        self.opened.append((wanted, since))
        yield _Stream(self, wanted, since)

    async def records(self, invocation_ids: Collection[str]) -> list[InvocationRecord | UnreadableItem]:
        self._raise()
        if not self.batches:
            raise PermanentError("no batches here")
        return [self.by_id[one] for one in invocation_ids if one in self.by_id]

    async def get(self, invocation_id: str) -> InvocationRecord:
        self._raise()
        found = self.by_id.get(invocation_id)
        if found is None:
            raise NotFoundError(f"there is no invocation {invocation_id}")
        if isinstance(found, UnreadableItem):
            raise PermanentError(found.reason)
        return found

    def url(self, invocation_id: str) -> str:
        return f"https://app.example/{invocation_id}"

    def _raise(self) -> None:
        if self.down is not None:
            raise self.down


class _Stream:
    def __init__(self, platform: EventsPlatform, wanted: EventFilter, since: int | None) -> None:
        self._platform = platform
        self._wanted = wanted
        self._since = since
        self._generation = platform._generation
        self.overlap = platform.overlap

    async def __aiter__(self) -> AsyncIterator[InvocationEvent | UnreadableItem | CaughtUp]:
        log = self._platform.log
        last = len(log)
        position = last if self._since is None else max(0, self._since - self.overlap)
        while position < last:
            for message in self._matching(log[position]):
                yield message
            position += 1
        yield CaughtUp(last)
        while True:
            while position < len(log):
                for message in self._matching(log[position]):
                    yield message
                position += 1
            self._platform._changed.clear()
            await self._platform._changed.wait()
            # Others wait for the same event.
            self._platform._changed.set()
            await asyncio.sleep(0.002)
            if self._generation != self._platform._generation or self._platform.down is not None:
                raise UnavailableError("the stream broke")

    def _matching(self, message: InvocationEvent | UnreadableItem) -> list[InvocationEvent | UnreadableItem]:
        self._platform.sent += 1
        if isinstance(message, UnreadableItem) or self._wanted.matches(message):
            return [message]
        return []


def record_of_end(
    invocation_id: str,
    status: InvocationStatus,
    at: datetime.datetime,
    action: str = "count",
    *,
    source_type: str = "Manual",
    source_id: str = "me",
    org_id: str = "og_1",
    **fields: Any,
) -> InvocationRecord:
    """The record of an invocation that has ended."""
    step = {"status": int(status), "timestamp": at.isoformat()}
    return InvocationRecord.model_validate(
        {
            **INVOCATION,
            "invocation_id": invocation_id,
            "org_id": org_id,
            "last_status": int(status),
            "status": [step],
            "provenance": {
                "action": {"name": action, "org_id": org_id, "digest": "d"},
                "executable": {},
                "source": {"source_type": source_type, "source_id": source_id},
            },
            **fields,
        }
    )
