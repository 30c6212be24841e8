"""One watch: its selection, the queue of its reader, and the messages of its stream."""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from ..models import (
    CaughtUp,
    CursorLost,
    InvocationEvent,
    InvocationStatus,
    NewLines,
    StateChanged,
    StreamMessage,
    UnreadableLog,
)
from .db import CheckedInvocation, StatusEvent, Store
from .execution.logs import InvalidCursorError, LogFiles
from .timestamps import to_datetime

#: Seconds without events after which a token is checked again.
IDLE = 15.0

#: Stored events that are read at a time.
REPLAY_PAGE = 1000

#: Log lines that are sent at a time.
_LOG_PAGE_LINES = 200


@dataclass(slots=True)
class WatchedLog:
    """A log that a watch reads, and its cursor (None: the beginning)."""

    invocation: CheckedInvocation
    cursor: str | None


@dataclass(slots=True, eq=False)
class Watch:
    """One open stream: the invocations it selects, and the messages that wait for its reader."""

    org_id: str
    #: The `Caller.token_id` of the token that opened it; the stream ends with the token.
    token_id: str = ""
    #: None: every action.
    action: str | None = None
    #: None: every invocation of the organisation that the other fields select.
    ids: set[str] | None = None
    #: Only the tree of this root invocation; None: every tree.
    root: str | None = None
    #: Only invocations that no other one has invoked.
    roots_only: bool = False
    #: Only changes to one of these; None: every change.
    statuses: frozenset[InvocationStatus] | None = None
    #: Also updates of custom state.
    states: bool = False
    watch_id: str = field(default_factory=lambda: f"wt_{secrets.token_hex(8)}")
    #: The requested logs by invocation, each with its cursor (None: the beginning).
    cursors: Mapping[str, str | None] = field(default_factory=dict)
    #: The requested logs of invocations that the organisation has.
    logs: dict[str, WatchedLog] = field(default_factory=dict)
    #: Ids of the other requested logs.
    unknown: deque[str] = field(default_factory=deque)
    waiting: deque[InvocationEvent] = field(default_factory=deque)
    #: Invocations with a new custom state.
    restated: dict[str, None] = field(default_factory=dict)
    #: Invocations with unread log lines, in the order in which the lines arrived.
    unread: dict[str, None] = field(default_factory=dict)
    #: Set when there is something to send, or the watch is closed.
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    lost: bool = False
    closed: bool = False

    def selects(self, event: StatusEvent) -> bool:
        """Return whether the watch selects an event."""
        return (
            event.org_id == self.org_id
            and self.action in (None, event.action_name)
            and self.root in (None, event.root_id)
            and (not self.roots_only or event.invocation_id == event.root_id)
            and (self.ids is None or event.invocation_id in self.ids)
            and (self.statuses is None or event.status in self.statuses)
        )

    def push(self, event: InvocationEvent, limit: int) -> None:
        """Queue an event; a reader that is `limit` events behind loses its cursor."""
        if len(self.waiting) >= limit:
            self._lose()
        elif not self.lost:
            self.waiting.append(event)
        self.changed.set()

    def push_state(self, invocation_id: str, limit: int) -> None:
        """Queue a new custom state; a reader that is `limit` events behind loses its cursor."""
        if len(self.restated) >= limit:
            self._lose()
        elif not self.lost:
            self.restated[invocation_id] = None
        self.changed.set()

    def push_log(self, invocation_id: str) -> None:
        """Queue an invocation's new log lines."""
        self.unread[invocation_id] = None
        self.changed.set()

    def close(self) -> None:
        """End the stream."""
        self.closed = True
        self.changed.set()

    def _lose(self) -> None:
        self.lost = True
        self.waiting.clear()
        self.restated.clear()


class WatchReader:
    """Reads the messages of one watch: stored events first, then the queue.

    :param is_valid: returns whether the watch's token is still valid.
    """

    def __init__(
        self, watch: Watch, store: Store, logs: LogFiles, is_valid: Callable[[], Awaitable[bool]]
    ) -> None:
        self._watch = watch
        self._store = store
        self._logs = logs
        self._is_valid = is_valid

    async def messages(self, since: int | None) -> AsyncIterator[StreamMessage]:
        """Yield all messages, each once, until the watch is closed.

        Events that are queued while stored ones are read are skipped if they were among those.

        :param since: number of the last event that the reader has; None: begin with the present status of
            each invocation in `ids`.
        """
        last = await asyncio.to_thread(self._store.events.last_number)
        async for event in self._stored(since, last):
            yield event
        yield CaughtUp(last)
        async for message in self._queued(last):
            yield message

    async def _stored(self, since: int | None, last: int) -> AsyncIterator[InvocationEvent]:
        watch, events = self._watch, self._store.events
        if since is None:
            for event in await asyncio.to_thread(events.latest, watch.ids or (), watch.org_id):
                if event.number <= last and watch.selects(event):
                    yield to_message(event, is_snapshot=True)
            return
        while since < last:
            page = await asyncio.to_thread(events.since, since, watch.org_id, REPLAY_PAGE)
            for event in page:
                if event.number <= last and watch.selects(event):
                    yield to_message(event)
            if len(page) < REPLAY_PAGE:
                return
            since = page[-1].number

    async def _queued(self, last: int) -> AsyncIterator[StreamMessage]:
        watch = self._watch
        while not watch.closed:
            try:
                async with asyncio.timeout(IDLE):
                    await watch.changed.wait()
            except TimeoutError:
                if not await self._is_valid():
                    return
                continue
            watch.changed.clear()
            while watch.unknown:
                invocation_id = watch.unknown.popleft()
                yield UnreadableLog(invocation_id, f"there is no invocation {invocation_id[:40]!r}")
            # One page of each log in turn, so that a log that grows without end delays no other message.
            for invocation_id in list(watch.unread):
                if (lines := await self._lines(invocation_id)) is not None:
                    yield lines
            while watch.restated:
                if (state := await self._state(next(iter(watch.restated)))) is not None:
                    yield state
            while watch.waiting:
                event = watch.waiting.popleft()
                # An invocation's last lines are sent before its end; all of them were written by now.
                while event.status.is_terminal and event.invocation_id in watch.unread:
                    if (lines := await self._lines(event.invocation_id)) is not None:
                        yield lines
                if event.is_snapshot:
                    yield event
                elif event.cursor > last:
                    last = event.cursor
                    yield event
            if watch.unread:
                watch.changed.set()
            if watch.lost:
                yield CursorLost(last)
                return

    async def _state(self, invocation_id: str) -> StateChanged | None:
        watch = self._watch
        del watch.restated[invocation_id]
        latest = await asyncio.to_thread(self._store.events.latest, [invocation_id], watch.org_id)
        if not any(watch.selects(event) for event in latest):
            return None
        state = await asyncio.to_thread(self._store.states.get, invocation_id, watch.org_id)
        return None if state is None else StateChanged(invocation_id, state)

    async def _lines(self, invocation_id: str) -> NewLines | UnreadableLog | None:
        """Return a page of new lines; while there are more, the log stays queued."""
        watch = self._watch
        watch.unread.pop(invocation_id, None)
        log = watch.logs.get(invocation_id)
        if log is None:
            return None
        begins_at = log.cursor
        try:
            page = await asyncio.to_thread(self._logs.read, log.invocation, begins_at, _LOG_PAGE_LINES)
        except InvalidCursorError as error:
            watch.logs.pop(invocation_id, None)
            return UnreadableLog(invocation_id, str(error))
        if watch.logs.get(invocation_id) is not log:  # it was removed, or its cursor was set again
            return None
        if page.has_next:
            watch.unread[invocation_id] = None
        if not page.items:
            return None
        log.cursor = page.last_read
        return NewLines(invocation_id, page, begins_at)


def to_message(event: StatusEvent, *, is_snapshot: bool = False) -> InvocationEvent:
    """Return the message about a stored event."""
    return InvocationEvent(
        invocation_id=event.invocation_id,
        status=event.status,
        action=event.action_name,
        at=to_datetime(event.timestamp),
        cursor=event.number,
        attempt=event.attempt,
        detail=event.detail,
        is_snapshot=is_snapshot,
    )
