"""A platform with scripted responses: no real one fails on cue between two particular calls."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest

from airflow_invocations.models import (
    InvocationRecord,
    InvocationRequest,
    InvocationStatus,
    LogPage,
    NewLines,
    StatusSnapshot,
    WatchMessage,
)
from airflow_invocations.platforms import (
    NotFoundError,
    PermanentError,
    UnavailableError,
    UnsupportedError,
    retry,
)
from airflow_invocations.waiters import availability, rejection, wait, watcher

from ...support.records import (
    INVOCATION,
)

S = InvocationStatus


def record(status: InvocationStatus, invocation_id: str = "iv_1") -> InvocationRecord:
    step = {"status": int(status), "timestamp": "2026-01-31T12:00:01Z"}
    return InvocationRecord.model_validate(
        {**INVOCATION, "invocation_id": invocation_id, "last_status": int(status), "status": [step]}
    )


def page(lines: Iterable[str], last_read: str | None, *, has_next: bool = False) -> LogPage:
    items = [{"log": line, "process": "action", "timestamp": "2026-01-31T12:00:01Z"} for line in lines]
    return LogPage.model_validate({"items": items, "has_next": has_next, "last_read": last_read})


class Stream:
    """An open stream of a `Platform`, with the arguments that opened it and the messages to send."""

    def __init__(
        self, platform: Platform, ids: Collection[str], logs: Mapping[str, str | None], cursor: int | None
    ) -> None:
        self.platform = platform
        self.ids = set(ids)
        self.logs = dict(logs)
        self.opened_at = cursor
        self.cursor = cursor
        self.queue: asyncio.Queue[tuple[int | None, WatchMessage | Exception]] = asyncio.Queue()

    async def __aiter__(self) -> AsyncIterator[WatchMessage]:
        while True:
            cursor, message = await self.queue.get()
            if isinstance(message, Exception):
                raise message
            if cursor is not None:
                self.cursor = cursor
            yield message

    def send(self, message: WatchMessage | Exception, cursor: int | None = None) -> None:
        self.queue.put_nowait((cursor, message))

    async def change(
        self, add: Collection[str], remove: Collection[str], logs: Mapping[str, str | None]
    ) -> None:
        self.platform.changes.append((set(add), set(remove), dict(logs)))
        self.ids = (self.ids - set(remove)) | set(add)
        self.logs = {one: at for one, at in self.logs.items() if one not in remove} | dict(logs)
        for invocation_id in add:
            self.platform.send_present(self, invocation_id)


class Platform:
    """Invocations by id, each with a status; it pushes, answers batches, or rejects them."""

    def __init__(self, **statuses: InvocationStatus) -> None:
        self.by_id = dict(statuses)
        self.pushes = True
        self.batches = True
        #: Raised by everything while it is set.
        self.down: Exception | None = None
        #: Whether the connection, when read again, holds an accepted token.
        self.next_token_works = False
        self.log_pages: list[Any] = []
        self.connects = 0
        self.streams: list[Stream] = []
        self.changes: list[tuple[set[str], set[str], dict[str, str | None]]] = []
        self.asked: list[tuple[str, Any]] = []
        self.cancelled: list[str] = []
        self.singles = 0
        self.most_singles = 0
        self.closed = 0

    async def connect(self) -> Any:
        self.connects += 1
        if self.next_token_works:
            self.down = None
        return self

    async def __aenter__(self) -> Platform:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.closed += 1

    def set(self, invocation_id: str, status: InvocationStatus, cursor: int | None = None) -> None:
        """Change a status, and send it on the open stream if that names the invocation."""
        self.by_id[invocation_id] = status
        for stream in self.streams[-1:]:
            if invocation_id in stream.ids:
                stream.send(StatusSnapshot(invocation_id, status), cursor)

    def send_present(self, stream: Stream, invocation_id: str) -> None:
        if invocation_id in self.by_id:
            stream.send(StatusSnapshot(invocation_id, self.by_id[invocation_id]))

    @asynccontextmanager
    async def watch(
        self, ids: Collection[str], logs: Mapping[str, str | None], cursor: int | None
    ) -> AsyncIterator[Stream]:
        self._raise()
        if not self.pushes:
            raise UnsupportedError("no watch here")
        stream = Stream(self, ids, logs, cursor)
        self.streams.append(stream)
        if cursor is None:
            for invocation_id in ids:
                self.send_present(stream, invocation_id)
        yield stream

    async def statuses(self, ids: Collection[str]) -> list[StatusSnapshot]:
        self.asked.append(("statuses", set(ids)))
        self._raise()
        if not self.batches:
            raise PermanentError("no batches here")
        return [StatusSnapshot(one, self.by_id[one]) for one in ids if one in self.by_id]

    async def ended(self, ids: Collection[str]) -> list[StatusSnapshot]:
        self.asked.append(("ended", set(ids)))
        self._raise()
        if not self.batches:
            raise PermanentError("no batches here")
        known = [StatusSnapshot(one, self.by_id[one]) for one in ids if one in self.by_id]
        return [snapshot for snapshot in known if snapshot.status.is_terminal]

    async def get(self, invocation_id: str) -> InvocationRecord:
        self.asked.append(("get", invocation_id))
        self._raise()
        self.singles += 1
        self.most_singles = max(self.most_singles, self.singles)
        await asyncio.sleep(0)
        self.singles -= 1
        if invocation_id not in self.by_id:
            raise NotFoundError(f"there is no invocation {invocation_id}")
        return record(self.by_id[invocation_id], invocation_id)

    async def logs(self, invocation_id: str, cursor: str | None = None) -> LogPage:
        self.asked.append(("logs", cursor))
        self._raise()
        answer = self.log_pages.pop(0) if self.log_pages else page([], cursor)
        if isinstance(answer, Exception):
            raise answer
        assert isinstance(answer, LogPage)
        return answer

    async def cancel(self, invocation_id: str) -> None:
        self._raise()
        self.cancelled.append(invocation_id)
        if not self.by_id[invocation_id].is_terminal:
            self.by_id[invocation_id] = S.Cancelled

    async def check(self) -> str:
        raise AssertionError("unexpected request")

    async def get_action(self, name: str) -> Any:
        raise AssertionError("unexpected request")

    async def invoke(self, action: str, request: InvocationRequest) -> InvocationRecord:
        raise AssertionError("unexpected request")

    def _raise(self) -> None:
        if self.down is not None:
            raise self.down

    def asked_for(self, what: str) -> int:
        return sum(1 for kind, _ in self.asked if kind == what)


def lines_of(
    invocation_id: str, lines: Iterable[str], last_read: str, begins_at: str | None = None
) -> NewLines:
    return NewLines(invocation_id, page(lines, last_read), begins_at)


def broken() -> UnavailableError:
    return UnavailableError("the stream broke")


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses of a test's length; those that are the point of a test it sets itself."""
    monkeypatch.setattr(watcher, "AUDIT_INTERVAL", 3600.0)
    monkeypatch.setattr(availability, "QUIET_OUTAGE", 0.0)
    for module, name in (
        (watcher, "COLLECTING"),
        (watcher, "LOST_PAUSE"),
        (watcher, "REFRESH_PAUSE"),
        (rejection, "REFRESH_PAUSE"),
        (wait, "LOST_PAUSE"),
        (wait, "CRASH_PAUSE"),
    ):
        monkeypatch.setattr(module, name, 0.005)
    for module in (watcher, availability, retry):
        monkeypatch.setattr(module, "backoff", lambda attempt, base=0.5, cap=30.0: 0.0)
