"""The waits of one connection, and the messages that its watcher sends to them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, KeysView, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TYPE_CHECKING

from ..models import NewLines, StatusSnapshot
from .log_relay import LogQueue
from .log_settings import LOG_SETTINGS

if TYPE_CHECKING:
    from ..models import LogPage


#: How many times in a row a lookup has to fail until an invocation counts as lost, and the pause in seconds.
LOST_AFTER = 3
LOST_PAUSE = 1.0


@dataclass(frozen=True, slots=True)
class Notice:
    """A message for the task log."""

    text: str


@dataclass(frozen=True, slots=True)
class Behind:
    """Lines have been arriving faster than they are shown for some time."""


@dataclass(frozen=True, slots=True)
class Unreachable:
    """The platform has been unavailable for longer than the wait's limit.

    :param since: when the outage began, in seconds since 1970.
    """

    since: float
    error: str


@dataclass(frozen=True, slots=True)
class Rejected:
    """The platform rejects the connection's credentials, which were read again after each rejection.

    :param were_accepted: whether the platform had accepted them before.
    """

    error: str
    were_accepted: bool = False


@dataclass(frozen=True, slots=True)
class Gone:
    """The platform does not know the invocation; it was asked more than once."""


@dataclass(frozen=True, slots=True)
class Crashed:
    """The watcher failed; another one may be joined."""

    error: Exception


#: What a wait is notified of. A StatusSnapshot is sent for a terminal status only.
WaitMessage = StatusSnapshot | NewLines | Notice | Behind | Unreachable | Rejected | Gone | Crashed


class FlowState(Enum):
    """Whether the lines of a log are read."""

    Flowing = auto()
    #: The queue is full; the stream has yet to be stopped.
    Stopping = auto()
    #: Lines are not read until there is room.
    Stopped = auto()


@dataclass(slots=True, eq=False)
class WaitHandle:
    """One wait for one invocation, and the messages that it has not received yet.

    :param poll_interval: seconds between two polls, where the platform doesn't push.
    :param outage_limit: seconds for which the platform may be unavailable.
    :param cursor: where to resume reading the log; None: the beginning.
    :param accepted: whether the platform is known to have accepted the credentials.
    :param lines: the queue for log lines; None: don't read the log.
    """

    invocation_id: str
    poll_interval: float
    outage_limit: float
    cursor: str | None = None
    accepted: bool = False
    lines: LogQueue | None = None
    flow: FlowState = FlowState.Flowing
    #: When the wait began, on the monotonic clock.
    joined: float = field(default_factory=time.monotonic)
    #: Called when there is room for lines again.
    on_room: Callable[[], object] = lambda: None
    _messages: list[WaitMessage] = field(default_factory=list)
    _has_messages: asyncio.Event = field(default_factory=asyncio.Event)
    #: Lines in `_messages`, and their characters.
    _pending_lines: int = 0
    _pending_size: int = 0
    #: When lines began to arrive faster than they were consumed, on the monotonic clock; None: they don't.
    _behind_since: float | None = None
    _reported_behind: bool = False

    def notify(self, message: WaitMessage) -> None:
        """Send the wait a message."""
        self._messages.append(message)
        self._has_messages.set()

    async def messages(self) -> list[WaitMessage]:
        """Return the messages since the last call, as soon as there are any."""
        await self._has_messages.wait()
        self._has_messages.clear()
        messages, self._messages = self._messages, []
        self._pending_lines = self._pending_size = 0
        if self.flow is not FlowState.Flowing:
            self.on_room()
        return messages

    @property
    def has_room(self) -> bool:
        """Whether there is room for lines now."""
        return (
            self.lines is not None
            and self.lines.has_room
            and self._pending_lines < LOG_SETTINGS.queue_lines
            and self._pending_size < LOG_SETTINGS.queue_size
        )

    def add_page(self, page: LogPage) -> None:
        """Send the wait the next page of its log."""
        lines = NewLines(self.invocation_id, page, self.cursor)
        self.cursor = lines.cursor
        if not page.has_next:
            self._behind_since = None
        elif self._behind_since is not None:
            self._report_behind(self._behind_since)
        if page.items:
            self._pending_lines += len(page.items)
            self._pending_size += sum(len(record.log) for record in page.items)
            self.notify(lines)

    def stop_lines(self) -> None:
        """Stop reading lines until there is room."""
        self.flow = FlowState.Stopping
        self._behind_since = self._behind_since or time.monotonic()

    def _report_behind(self, since: float) -> None:
        if not self._reported_behind and time.monotonic() - since >= LOG_SETTINGS.behind:
            self._reported_behind = True
            self.notify(Behind())


class WaitTable:
    """The waits of one connection, by invocation."""

    def __init__(self) -> None:
        self._by_id: dict[str, list[WaitHandle]] = {}

    def __len__(self) -> int:
        """Return the number of invocations."""
        return len(self._by_id)

    def __contains__(self, invocation_id: str) -> bool:
        return invocation_id in self._by_id

    def __iter__(self) -> Iterator[WaitHandle]:
        for waits in list(self._by_id.values()):
            yield from list(waits)

    @property
    def ids(self) -> KeysView[str]:
        """The invocations that have waits."""
        return self._by_id.keys()

    def of(self, invocation_id: str) -> Sequence[WaitHandle]:
        """Return the waits for an invocation."""
        return self._by_id.get(invocation_id, ())

    def reader(self, invocation_id: str) -> WaitHandle | None:
        """Return the wait that reads an invocation's log."""
        return next((wait for wait in self.of(invocation_id) if wait.lines is not None), None)

    def add(self, wait: WaitHandle) -> None:
        """Add a wait."""
        self._by_id.setdefault(wait.invocation_id, []).append(wait)

    def remove(self, wait: WaitHandle) -> bool:
        """Remove a wait; return whether its invocation has no more waits."""
        waits = self._by_id.get(wait.invocation_id, [])
        if wait in waits:
            waits.remove(wait)
        return not waits

    def remove_all(self, invocation_id: str) -> None:
        """Remove an invocation with its waits."""
        self._by_id.pop(invocation_id, None)

    def notify_all(self, message: WaitMessage) -> None:
        """Send every wait a message."""
        for wait in self:
            wait.notify(message)
