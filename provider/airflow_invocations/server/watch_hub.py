"""All open watches of a server, and the dispatch of changes to them.

Everything here runs in the server's event loop. Events come from the store's commits, never from polling.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..models import InvocationEvent, StreamMessage, StreamOpened
from .api.schemas import MAX_IDS
from .db import StatusEvent, Store
from .errors import ApiError, InvalidRequestError, NotFoundError, UnavailableError
from .execution.logs import LogFiles
from .outages import is_outage
from .watch import Watch, WatchedLog, WatchReader, to_message

#: Watches that one token may have open, and all tokens together.
MAX_WATCHES_OF_TOKEN = 100
MAX_WATCHES = 500

#: Ids that the watches of one token may name, and all watches together.
MAX_IDS_OF_TOKEN = 100_000
MAX_IDS_OF_ALL = 200_000

#: Events that may wait for a slow reader; with a further one it loses its cursor and gets a message. With
#: many open watches it is a share of MAX_WAITING_OF_ALL, but at least MIN_WAITING.
MAX_WAITING = 20_000
MAX_WAITING_OF_ALL = 200_000
MIN_WAITING = 1_000

#: Seconds between two checks of a token. No event is sent later than this after a token was revoked.
RECHECK = 1.0


@dataclass(slots=True)
class _Holder:
    """The open watches of one token: their number, their ids, and the time of the token's last check."""

    watches: int = 0
    ids: int = 0
    checked: float = float("-inf")


class WatchHub:
    """All open watches of a server.

    :param store: the source of events and states.
    :param logs: the source of log lines.
    :param is_current: returns whether a token (a `Caller.token_id`) is still valid; called in threads.
    """

    def __init__(self, store: Store, logs: LogFiles, is_current: Callable[[str], bool]) -> None:
        self._store = store
        self._logs = logs
        self._is_current = is_current
        self._holders: defaultdict[str, _Holder] = defaultdict(_Holder)
        self._by_watch_id: dict[str, Watch] = {}
        # Tuples: most invocations have one watch, and a set of one item takes four times as much memory.
        self._by_invocation: dict[str, tuple[Watch, ...]] = {}
        self._unlimited: set[Watch] = set()
        self._by_log: dict[str, tuple[Watch, ...]] = {}

    def __len__(self) -> int:
        return len(self._by_watch_id)

    def close(self) -> None:
        """End all streams, because the server stops."""
        for watch in self._by_watch_id.values():
            watch.close()

    def token_ended(self, token_id: str) -> None:
        """End the streams of a token that was revoked."""
        for watch in self._by_watch_id.values():
            if watch.token_id == token_id:
                watch.close()

    def check_room(self, watch: Watch) -> None:
        """Check that one more watch may be opened.

        :raises UnavailableError: its token, or all tokens together, have the maximum number of watches.
        :raises InvalidRequestError: the watches would name too many invocations.
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
        """Queue the events of a commit for the watches that select them."""
        limit = self._max_waiting
        for event in events:
            if event.superseded:
                continue
            message: InvocationEvent | None = None  # one for all watches
            for watch in (*self._by_invocation.get(event.invocation_id, ()), *self._unlimited):
                if watch.selects(event):
                    message = message or to_message(event)
                    watch.push(message, limit)

    def log_grew(self, invocation_id: str, _: int) -> None:
        """Queue an invocation's new log lines for the watches that read its log."""
        for watch in self._by_log.get(invocation_id, ()):
            watch.push_log(invocation_id)

    def state_updated(self, invocation_id: str) -> None:
        """Queue an invocation's new custom state for the watches that select states."""
        for watch in (*self._by_invocation.get(invocation_id, ()), *self._unlimited):
            if watch.states:
                watch.push_state(invocation_id, self._max_waiting)

    async def stream(self, watch: Watch, since: int | None) -> AsyncIterator[StreamMessage]:
        """Yield the messages of a watch until it is closed or its token is revoked.

        The first messages are the events after `since`, or the present statuses of the named invocations.
        Each event is sent once, also between these and the live ones.

        :param since: number of the last event that the reader has; None: there is none.
        """
        try:
            self.check_room(watch)
        except ApiError:  # other watches were opened since this one was checked
            return
        self._enter(watch)
        try:
            if not await self._is_valid(watch):
                return
            yield StreamOpened(watch.watch_id)
            await self._add_logs(watch, watch.cursors)
            reader = WatchReader(watch, self._store, self._logs, lambda: self._is_valid(watch))
            async for message in reader.messages(since):
                if not await self._is_valid(watch):
                    return
                yield message
        finally:
            self._leave(watch)

    async def _is_valid(self, watch: Watch) -> bool:
        """Return whether a watch is open and its token valid; a token is checked every RECHECK seconds."""
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
            if not is_outage(error):  # if the database can't be read now, the next check decides
                raise
        holder.checked = time.monotonic()
        return True

    @property
    def _max_waiting(self) -> int:
        """The number of events that may wait for each reader now."""
        return min(MAX_WAITING, max(MIN_WAITING, MAX_WAITING_OF_ALL // max(1, len(self))))

    def _check_ids(self, holder: _Holder, more: int) -> None:
        if holder.ids + more > MAX_IDS_OF_TOKEN:
            raise InvalidRequestError(f"the watches of a token name at most {MAX_IDS_OF_TOKEN} invocations")
        if sum(each.ids for each in self._holders.values()) + more > MAX_IDS_OF_ALL:
            raise InvalidRequestError(f"all watches together name at most {MAX_IDS_OF_ALL} invocations")

    async def extend(
        self, watch_id: str, org_id: str, ids: Collection[str], cursors: Mapping[str, str | None]
    ) -> int:
        """Add invocations to a watch, which sends their present statuses; return the number of its ids.

        :param ids: the invocations to add.
        :param cursors: the logs to add, each with its cursor (None: the beginning).
        :raises NotFoundError: there is no such open watch.
        :raises InvalidRequestError: its token would watch too many invocations.
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
            await self._add_logs(watch, cursors)
            for event in await asyncio.to_thread(self._store.events.latest, new, org_id):
                watch.push(to_message(event, is_snapshot=True), self._max_waiting)
        return len(watch.ids or ())

    def shrink(self, watch_id: str, org_id: str, ids: Collection[str]) -> int:
        """Remove invocations from a watch; return the number of its ids. Raises NotFoundError."""
        watch = self._require(watch_id, org_id)
        if watch.ids is not None:
            removed = watch.ids & set(ids)
            watch.ids -= removed
            self._holders[watch.token_id].ids -= len(removed)
            self._remove(watch, ids)
        return len(watch.ids or ())

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
        self._remove(watch, [*(watch.ids or ()), *watch.logs])

    async def _add_logs(self, watch: Watch, cursors: Mapping[str, str | None]) -> None:
        known = await asyncio.to_thread(self._store.invocations.check_many, cursors, watch.org_id)
        if watch.watch_id not in self._by_watch_id:  # closed in the meantime
            return
        for invocation_id, cursor in cursors.items():
            if invocation_id in known:
                watch.logs[invocation_id] = WatchedLog(known[invocation_id], cursor)
                _put(self._by_log, invocation_id, watch)
                watch.push_log(invocation_id)
            else:
                watch.unknown.append(invocation_id)
                watch.changed.set()

    def _remove(self, watch: Watch, ids: Iterable[str]) -> None:
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


def _put(index: dict[str, tuple[Watch, ...]], invocation_id: str, watch: Watch) -> None:
    others = index.get(invocation_id, ())
    if watch not in others:
        index[invocation_id] = (*others, watch)


def _take(index: dict[str, tuple[Watch, ...]], invocation_id: str, watch: Watch) -> None:
    others = tuple(other for other in index.pop(invocation_id, ()) if other is not watch)
    if others:
        index[invocation_id] = others
