"""Watches: who wants to hear of which invocations, and what waits to be told to each of them.

Everything here runs in the server's event loop. Events come from the store's commits, never from polling.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ..models import (
    CaughtUp,
    CursorLost,
    InvocationEvent,
    InvocationStatus,
    NewLines,
    StateChanged,
    StreamMessage,
    StreamOpened,
    UnreadableLog,
)
from .api.errors import ApiError, InvalidRequestError, NotFoundError, UnavailableError
from .api.schemas import MAX_IDS
from .db import CheckedInvocation, StatusEvent, Store
from .execution.logs import InvalidCursorError, LogFiles
from .outages import is_outage
from .timestamps import to_datetime

#: Watches that one token may have open, and all tokens together.
MAX_WATCHES_OF_TOKEN = 100
MAX_WATCHES = 500

#: Ids that the watches of one token may name, and all watches together.
MAX_IDS_OF_TOKEN = 100_000
MAX_IDS_OF_ALL = 200_000

#: Events that may wait for a slow reader; one more, and it loses its cursor and gets a message. With many
#: open watches it is a share of MAX_WAITING_OF_ALL, but at least MIN_WAITING.
MAX_WAITING = 20_000
MAX_WAITING_OF_ALL = 200_000
MIN_WAITING = 1_000

#: Seconds for which a token counts as valid after it was checked; no event is sent later than this after a
#: token was revoked.
RECHECK = 1.0

#: Seconds without events after which a token is checked again.
IDLE = 15.0

#: Stored events that are read at a time.
REPLAY_PAGE = 1000

#: Log lines that are told at a time.
_LOG_PAGE_LINES = 200


@dataclass(slots=True)
class _Log:
    """A log that a watch reads, and the cursor to read on from."""

    invocation: CheckedInvocation
    cursor: str | None


@dataclass(slots=True, eq=False)
class Watch:
    """One open stream: what it is about, and what waits for its reader."""

    org_id: str
    #: The token that opened it, as `Caller.token_id` has it: the stream ends with it.
    token_id: str = ""
    #: None: every action.
    action: str | None = None
    #: None: every invocation of the organisation, as far as the other fields allow it.
    ids: set[str] | None = None
    #: The tree below one invocation, and itself; None: every tree.
    root: str | None = None
    #: Only invocations that nothing else started.
    roots_only: bool = False
    #: Only changes to one of these; None: every change.
    statuses: frozenset[InvocationStatus] | None = None
    #: Updates of custom state too.
    states: bool = False
    watch_id: str = field(default_factory=lambda: f"wt_{secrets.token_hex(8)}")
    #: The logs that are wanted, by invocation, each with the cursor to read on from.
    cursors: Mapping[str, str | None] = field(default_factory=dict)
    #: Those of them that the organisation has.
    logs: dict[str, _Log] = field(default_factory=dict)
    #: The ids of the others.
    unknown: deque[str] = field(default_factory=deque)
    waiting: deque[InvocationEvent] = field(default_factory=deque)
    #: Invocations with a new custom state.
    restated: dict[str, None] = field(default_factory=dict)
    #: Invocations with log lines to be read, in the order in which they got some.
    unread: dict[str, None] = field(default_factory=dict)
    something: asyncio.Event = field(default_factory=asyncio.Event)
    lost: bool = False
    closed: bool = False

    def wants(self, event: StatusEvent) -> bool:
        """Whether an event is about what this watch is about."""
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
            self.lose()
        elif not self.lost:
            self.waiting.append(event)
        self.something.set()

    def restate(self, invocation_id: str, limit: int) -> None:
        """Queue a new status; a reader that is `limit` events behind loses its cursor."""
        if len(self.restated) >= limit:
            self.lose()
        elif not self.lost:
            self.restated[invocation_id] = None
        self.something.set()

    def lose(self) -> None:
        """Drop the queued events of a reader that is too far behind."""
        self.lost = True
        self.waiting.clear()
        self.restated.clear()

    def log_grew(self, invocation_id: str) -> None:
        """Have an invocation's new log lines read."""
        self.unread[invocation_id] = None
        self.something.set()


@dataclass(slots=True)
class _Holder:
    """The open watches of one token: their number, their ids, and when the token was last checked."""

    watches: int = 0
    ids: int = 0
    checked: float = float("-inf")


class Watches:
    """All open watches of a server.

    :param store: what they tell of.
    :param logs: the lines that they tell.
    :param is_current: whether a token (its `Caller.token_id`) is still good; called in threads.
    """

    def __init__(self, store: Store, logs: LogFiles, is_current: Callable[[str], bool]) -> None:
        self._store = store
        self._logs = logs
        self._is_current = is_current
        self._holders: defaultdict[str, _Holder] = defaultdict(_Holder)
        self._by_watch_id: dict[str, Watch] = {}
        # Tuples: nearly every invocation has one watch, and a set of one takes four times as much memory.
        self._by_invocation: dict[str, tuple[Watch, ...]] = {}
        self._unlimited: set[Watch] = set()
        self._by_log: dict[str, tuple[Watch, ...]] = {}

    def __len__(self) -> int:
        return len(self._by_watch_id)

    def close(self) -> None:
        """End all streams: the server stops."""
        for watch in self._by_watch_id.values():
            watch.closed = True
            watch.something.set()

    def token_ended(self, token_id: str) -> None:
        """End the streams of a token that was revoked."""
        for watch in self._by_watch_id.values():
            if watch.token_id == token_id:
                watch.closed = True
                watch.something.set()

    def check_room(self, watch: Watch) -> None:
        """Check that one more watch may be opened.

        :raises UnavailableError: its token, or all tokens together, have as many as there may be.
        :raises InvalidRequestError: they would name too many invocations.
        """
        holder = self._holders.get(watch.token_id, _Holder())
        if holder.watches >= MAX_WATCHES_OF_TOKEN:
            raise UnavailableError(
                f"a token has at most {MAX_WATCHES_OF_TOKEN} open watches; close one first"
            )
        if len(self) >= MAX_WATCHES:
            raise UnavailableError(f"this server has at most {MAX_WATCHES} open watches; try again later")
        self._check_ids(holder, len(watch.ids or ()))

    def committed(self, events: Sequence[StatusEvent]) -> None:
        """Take what a commit has changed to those who want to hear of it."""
        limit = self._may_wait
        for event in events:
            if event.superseded:
                continue
            message: InvocationEvent | None = None  # one for all watches
            for watch in (*self._by_invocation.get(event.invocation_id, ()), *self._unlimited):
                if watch.wants(event):
                    message = message or _message_of(event)
                    watch.push(message, limit)

    def log_grew(self, invocation_id: str, _: int) -> None:
        """Take note that an invocation has new log lines."""
        for watch in self._by_log.get(invocation_id, ()):
            watch.log_grew(invocation_id)

    def state_updated(self, invocation_id: str) -> None:
        """Take note that an invocation has a new custom state."""
        for watch in (*self._by_invocation.get(invocation_id, ()), *self._unlimited):
            if watch.states:
                watch.restate(invocation_id, self._may_wait)

    async def stream(self, watch: Watch, since: int | None) -> AsyncIterator[StreamMessage]:
        """What a watch is told: first what its reader missed since event `since`, then what happens.

        Without `since` the reader first gets the status that each named invocation has now. Nothing is
        told twice, and nothing is left out between the two parts: events that come in while the past is
        read wait, and those that were in it are passed over. It ends with the token that opened it.
        """
        try:
            self.check_room(watch)
        except ApiError:  # other watches were opened since this one was checked
            return
        self._enter(watch)
        try:
            async for message in self._messages(watch, since):
                if not await self._token_is_good(watch):
                    return
                yield message
        finally:
            self._leave(watch)

    async def _messages(self, watch: Watch, since: int | None) -> AsyncIterator[StreamMessage]:
        yield StreamOpened(watch.watch_id)
        await self._want_logs(watch, watch.cursors)
        last = await asyncio.to_thread(self._store.events.last_number)
        async for event in self._past(watch, since, last):
            yield event
        yield CaughtUp(last)
        async for message in self._present(watch, last):
            yield message

    async def _token_is_good(self, watch: Watch) -> bool:
        """Whether a watch's token is valid; checked every RECHECK seconds for all its watches."""
        holder = self._holders[watch.token_id]
        if watch.closed:
            return False
        if holder.checked + RECHECK > time.monotonic():
            return True
        try:
            if not await asyncio.to_thread(self._is_current, watch.token_id):
                self.token_ended(watch.token_id)
                return False
        except Exception as error:
            if not is_outage(error):  # where the database can't be read now, the next look decides
                raise
        holder.checked = time.monotonic()
        return True

    @property
    def _may_wait(self) -> int:
        """Events that may wait for each reader now."""
        return min(MAX_WAITING, max(MIN_WAITING, MAX_WAITING_OF_ALL // max(1, len(self))))

    def _check_ids(self, holder: _Holder, more: int) -> None:
        if holder.ids + more > MAX_IDS_OF_TOKEN:
            raise InvalidRequestError(f"the watches of a token name at most {MAX_IDS_OF_TOKEN} invocations")
        if sum(each.ids for each in self._holders.values()) + more > MAX_IDS_OF_ALL:
            raise InvalidRequestError(f"all watches together name at most {MAX_IDS_OF_ALL} invocations")

    async def extend(
        self, watch_id: str, org_id: str, ids: Collection[str], cursors: Mapping[str, str | None]
    ) -> int:
        """Watch more invocations; each one's present status is told. How many are watched then.

        Raises:
            NotFoundError: no such watch (any more).
            InvalidRequestError: its token would watch too many.
        """
        watch = self._require(watch_id, org_id)
        if len(watch.logs) + len(watch.unknown) + len(cursors) > MAX_IDS:
            raise InvalidRequestError(f"a watch reads at most {MAX_IDS} logs")
        if watch.ids is not None:
            new = set(ids) - watch.ids
            holder = self._holders[watch.token_id]
            self._check_ids(holder, len(new))
            holder.ids += len(new)
            watch.ids |= new
            for invocation_id in new:
                _put(self._by_invocation, invocation_id, watch)
            await self._want_logs(watch, cursors)
            for event in await asyncio.to_thread(self._store.events.latest, new, org_id):
                watch.push(_message_of(event, is_snapshot=True), self._may_wait)
        return len(watch.ids or ())

    def shrink(self, watch_id: str, org_id: str, ids: Collection[str]) -> int:
        """Watch fewer invocations. How many are watched then. Raises NotFoundError as `extend` does."""
        watch = self._require(watch_id, org_id)
        if watch.ids is not None:
            gone = watch.ids & set(ids)
            watch.ids -= gone
            self._holders[watch.token_id].ids -= len(gone)
            self._forget(watch, ids)
        return len(watch.ids or ())

    async def _past(self, watch: Watch, since: int | None, last: int) -> AsyncIterator[InvocationEvent]:
        if since is None:
            for event in await asyncio.to_thread(self._store.events.latest, watch.ids or (), watch.org_id):
                if event.number <= last and watch.wants(event):
                    yield _message_of(event, is_snapshot=True)
            return
        while since < last:
            page = await asyncio.to_thread(self._store.events.since, since, watch.org_id, REPLAY_PAGE)
            for event in page:
                if event.number <= last and watch.wants(event):
                    yield _message_of(event)
            if len(page) < REPLAY_PAGE:
                return
            since = page[-1].number

    async def _present(self, watch: Watch, last: int) -> AsyncIterator[StreamMessage]:
        while not watch.closed:
            try:
                async with asyncio.timeout(IDLE):
                    await watch.something.wait()
            except TimeoutError:
                if not await self._token_is_good(watch):
                    return
                continue
            watch.something.clear()
            while watch.unknown:
                invocation_id = watch.unknown.popleft()
                yield UnreadableLog(invocation_id, f"there is no invocation {invocation_id[:40]!r}")
            # A page of each log in turn: one that grows without end holds nobody up.
            for invocation_id in list(watch.unread):
                if (lines := await self._lines(watch, invocation_id)) is not None:
                    yield lines
            while watch.restated:
                if (state := await self._state(watch, next(iter(watch.restated)))) is not None:
                    yield state
            while watch.waiting:
                event = watch.waiting.popleft()
                # An invocation's last lines are sent before its end; all of them were written by now.
                while event.status.is_terminal and event.invocation_id in watch.unread:
                    if (lines := await self._lines(watch, event.invocation_id)) is not None:
                        yield lines
                if event.is_snapshot:
                    yield event
                elif event.cursor > last:
                    last = event.cursor
                    yield event
            if watch.unread:
                watch.something.set()
            if watch.lost:
                yield CursorLost(last)
                return

    async def _state(self, watch: Watch, invocation_id: str) -> StateChanged | None:
        del watch.restated[invocation_id]
        latest = await asyncio.to_thread(self._store.events.latest, [invocation_id], watch.org_id)
        if not any(watch.wants(event) for event in latest):
            return None
        state = await asyncio.to_thread(self._store.states.get, invocation_id, watch.org_id)
        return None if state is None else StateChanged(invocation_id, state)

    async def _lines(self, watch: Watch, invocation_id: str) -> NewLines | UnreadableLog | None:
        """A page of new lines; while more are there, the log stays among the unread ones."""
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
        if watch.logs.get(invocation_id) is not log:  # it was removed, or its cursor set again
            return None
        if page.has_next:
            watch.unread[invocation_id] = None
        if not page.items:
            return None
        log.cursor = page.last_read
        return NewLines(invocation_id, page, begins_at)

    def _enter(self, watch: Watch) -> None:
        holder = self._holders[watch.token_id]
        holder.watches += 1
        holder.ids += len(watch.ids or ())
        self._by_watch_id[watch.watch_id] = watch
        if watch.ids is None:
            self._unlimited.add(watch)
        for invocation_id in watch.ids or ():
            _put(self._by_invocation, invocation_id, watch)

    def _leave(self, watch: Watch) -> None:
        del self._by_watch_id[watch.watch_id]
        self._unlimited.discard(watch)
        holder = self._holders[watch.token_id]
        holder.watches -= 1
        holder.ids -= len(watch.ids or ())
        if not holder.watches:
            del self._holders[watch.token_id]
        self._forget(watch, [*(watch.ids or ()), *watch.logs])

    async def _want_logs(self, watch: Watch, cursors: Mapping[str, str | None]) -> None:
        known = await asyncio.to_thread(self._store.invocations.check_many, cursors, watch.org_id)
        if watch.watch_id not in self._by_watch_id:  # closed in the meantime
            return
        for invocation_id, cursor in cursors.items():
            if invocation_id in known:
                watch.logs[invocation_id] = _Log(known[invocation_id], cursor)
                _put(self._by_log, invocation_id, watch)
                watch.log_grew(invocation_id)
            else:
                watch.unknown.append(invocation_id)
                watch.something.set()

    def _forget(self, watch: Watch, ids: Iterable[str]) -> None:
        for invocation_id in ids:
            watch.logs.pop(invocation_id, None)
            watch.unread.pop(invocation_id, None)
            _take(self._by_invocation, invocation_id, watch)
            _take(self._by_log, invocation_id, watch)

    def _require(self, watch_id: str, org_id: str) -> Watch:
        watch = self._by_watch_id.get(watch_id)
        if watch is None or watch.org_id != org_id:
            raise NotFoundError(f"there is no open watch {watch_id!r}")
        return watch


def _message_of(event: StatusEvent, *, is_snapshot: bool = False) -> InvocationEvent:
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


def _put(index: dict[str, tuple[Watch, ...]], invocation_id: str, watch: Watch) -> None:
    others = index.get(invocation_id, ())
    if watch not in others:
        index[invocation_id] = (*others, watch)


def _take(index: dict[str, tuple[Watch, ...]], invocation_id: str, watch: Watch) -> None:
    others = tuple(other for other in index.pop(invocation_id, ()) if other is not watch)
    if others:
        index[invocation_id] = others
