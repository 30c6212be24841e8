"""The messages of a stream of invocations: one vocabulary from the server's watch to the waits.

The server encodes these messages, the platform client decodes them, and watchers hand them on. Cursors of
events are integers: numbers that a platform counts, or times (microseconds since 1970). Cursors of logs are
texts.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pydantic

from .base import problems_of
from .status import InvocationStatus

if TYPE_CHECKING:
    from .invocation import LogPage, LogRecord


@dataclass(frozen=True, slots=True)
class StatusSnapshot:
    """The present status of an invocation."""

    invocation_id: str
    status: InvocationStatus


@dataclass(frozen=True, slots=True)
class InvocationEvent(StatusSnapshot):
    """A change of an invocation's status."""

    action: str
    #: When the status changed.
    at: datetime.datetime
    #: The cursor after this event.
    cursor: int
    #: Other names of the action, in full or in part, with its version or without.
    other_names: frozenset[str] = frozenset()
    #: Which execution of the invocation it belongs to, from 1.
    attempt: int = 1
    detail: str | None = None
    #: Whether it reports the present status of an invocation that was added to the stream. Such an event is
    #: out of order, so the stream can't be resumed from it.
    is_snapshot: bool = False


@dataclass(frozen=True, slots=True)
class NewLines:
    """New log lines of an invocation.

    :param begins_at: the cursor before them; None: the log's beginning, or unknown.
    """

    invocation_id: str
    page: LogPage
    begins_at: str | None = None

    @property
    def records(self) -> Sequence[LogRecord]:
        """The lines."""
        return self.page.items

    @property
    def cursor(self) -> str | None:
        """The cursor after them."""
        return self.begins_at if self.page.last_read is None else self.page.last_read


@dataclass(frozen=True, slots=True)
class UnreadableLog:
    """An invocation's log can't be read, or no further; the stream has no more of its lines."""

    invocation_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class UnreadableItem:
    """An event or record that can't be read; it is skipped."""

    reason: str


@dataclass(frozen=True, slots=True)
class StateChanged:
    """An invocation's new custom state."""

    invocation_id: str
    state: str


@dataclass(frozen=True, slots=True)
class StreamOpened:
    """The stream is open; `watch_id` names it in requests that change it."""

    watch_id: str


@dataclass(frozen=True, slots=True)
class CaughtUp:
    """All past events were sent; `cursor` is that of the platform's last event."""

    cursor: int


@dataclass(frozen=True, slots=True)
class CursorLost:
    """The reader was too slow, and the stream ends. Another can be opened from `cursor`."""

    cursor: int


#: The messages of a watch over some invocations.
WatchMessage = StatusSnapshot | NewLines | UnreadableLog | CaughtUp

#: The messages that a server sends.
StreamMessage = (
    InvocationEvent | NewLines | UnreadableLog | StateChanged | StreamOpened | CaughtUp | CursorLost
)


@dataclass(frozen=True, slots=True)
class EventFilter:
    """Which events a stream is to yield; it may yield others too.

    :param action: as a DAG author writes it; None: every action.
    :param statuses: only changes to one of these; None: all changes.
    """

    action: str | None = None
    statuses: frozenset[InvocationStatus] | None = None

    def matches(self, event: InvocationEvent) -> bool:
        """Return whether an event passes the filter."""
        return (self.action in (None, event.action) or self.action in event.other_names) and (
            self.statuses is None or event.status in self.statuses
        )

    def covers(self, other: EventFilter) -> bool:
        """Return whether every event that passes `other` passes this filter."""
        return self.action in (None, other.action) and (
            self.statuses is None or (other.statuses is not None and other.statuses <= self.statuses)
        )

    def union(self, other: EventFilter) -> EventFilter:
        """Return a filter that covers both."""
        either = None
        if self.statuses is not None and other.statuses is not None:
            either = self.statuses | other.statuses
        return EventFilter(self.action if self.action == other.action else None, either)


#: Cursors from here on are times; those below it are numbers that a platform counts.
_FIRST_TIME = 2**50

_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


def is_time(cursor: int) -> bool:
    """Return whether a cursor of events is a time."""
    return cursor >= _FIRST_TIME


def cursor_at(moment: datetime.datetime) -> int:
    """Return the cursor of events at a time."""
    return (moment - _EPOCH) // datetime.timedelta(microseconds=1)


def encode_message(message: StreamMessage) -> tuple[str, dict[str, Any], int | None]:
    """Return a message's name, its content as JSON types, and the cursor to resume from (None: no change)."""
    match message:
        case InvocationEvent():
            content = {
                "number": message.cursor,
                "invocation_id": message.invocation_id,
                "action": message.action,
                "attempt": message.attempt,
                "status": message.status.value,
                "detail": message.detail,
                "timestamp": message.at.isoformat(),
            }
            return "status", content, None if message.is_snapshot else message.cursor
        case NewLines(invocation_id, page, begins_at):
            content = {"invocation_id": invocation_id, "begins_at": begins_at, **page.model_dump(mode="json")}
            return "log", content, None
        case UnreadableLog(invocation_id, reason):
            return "unreadable", {"invocation_id": invocation_id, "reason": reason}, None
        case StateChanged(invocation_id, state):
            return "state", {"invocation_id": invocation_id, "state": state}, None
        case StreamOpened(watch_id):
            return "open", {"watch_id": watch_id}, None
        case CaughtUp(cursor):
            return "ready", {"number": cursor}, cursor
        case CursorLost(cursor):
            reason = "read too slowly; reopen with Last-Event-ID"
            return "lost", {"number": cursor, "reason": reason}, cursor


def decode_message(name: str, content: object, cursor: int | None) -> StreamMessage | None:
    """Return the message of a name and content; None for an unknown name.

    :param content: parsed JSON.
    :param cursor: the cursor to resume from, if the message has one.
    :raises ValueError: the content is malformed.
    """
    try:
        return _decode(name, content, cursor)
    except pydantic.ValidationError as error:
        raise ValueError(problems_of(error.errors()[:3])) from None
    except (KeyError, TypeError, ArithmeticError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def _decode(name: str, content: object, cursor: int | None) -> StreamMessage | None:
    if not isinstance(content, Mapping):
        raise TypeError("not an object")
    match name:
        case "status":
            return InvocationEvent(
                invocation_id=_text(content, "invocation_id"),
                status=InvocationStatus(content["status"]),
                action=_text(content, "action"),
                at=datetime.datetime.fromisoformat(content["timestamp"]),
                cursor=int(content["number"]),
                attempt=int(content["attempt"]),
                detail=None if content["detail"] is None else _text(content, "detail"),
                is_snapshot=cursor is None,
            )
        case "log":
            from .invocation import LogPage  # DAG files import this module, and read no log

            begins_at = None if content.get("begins_at") is None else _text(content, "begins_at")
            return NewLines(_text(content, "invocation_id"), LogPage.model_validate(content), begins_at)
        case "unreadable":
            return UnreadableLog(_text(content, "invocation_id"), _text(content, "reason"))
        case "state":
            return StateChanged(_text(content, "invocation_id"), _text(content, "state"))
        case "open":
            return StreamOpened(_text(content, "watch_id"))
        case "ready":
            return CaughtUp(int(content["number"]))
        case "lost":
            return CursorLost(int(content["number"]))
    return None


def _text(content: Mapping[str, Any], key: str) -> str:
    value = content[key]
    if not isinstance(value, str):
        raise TypeError(f"{key}: not a string")
    return value
