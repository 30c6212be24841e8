"""What happens to anybody's invocations, as platforms tell it; no DAG file imports this."""

from __future__ import annotations

import datetime
from collections.abc import AsyncIterator, Collection
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, cast

from ..models import InvocationStatus
from .base import CaughtUp, InvocationPlatform, UnsupportedError

if TYPE_CHECKING:
    from ..models import InvocationRecord


@dataclass(frozen=True, slots=True)
class EventFilter:
    """Which changes of status a stream of events is to tell; it may tell others too."""

    #: As a DAG author writes it; None: every action's.
    action: str | None = None
    #: Changes to one of these; None: all.
    statuses: frozenset[InvocationStatus] | None = None

    def wants(self, event: InvocationEvent) -> bool:
        """Whether an event is one of these."""
        return (self.action in (None, event.action) or self.action in event.other_names) and (
            self.statuses is None or event.status in self.statuses
        )

    def covers(self, other: EventFilter) -> bool:
        """Whether nothing that `other` wants is left out."""
        return self.action in (None, other.action) and (
            self.statuses is None or (other.statuses is not None and other.statuses <= self.statuses)
        )

    def united(self, other: EventFilter) -> EventFilter:
        """A filter that covers both."""
        either = None
        if self.statuses is not None and other.statuses is not None:
            either = self.statuses | other.statuses
        return EventFilter(self.action if self.action == other.action else None, either)


@dataclass(frozen=True, slots=True)
class InvocationEvent:
    """An invocation has taken a status."""

    invocation_id: str
    action: str
    status: InvocationStatus
    #: When it took it.
    at: datetime.datetime
    #: Where the stream is after this event: what to resume it from.
    place: int
    #: What else its action can be called, in full or in part, with its version or without.
    other_names: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class UnreadableItem:
    """Something that the platform told and that can't be read; it is passed over."""

    reason: str


#: Places from here on are times (microseconds since 1970), those below it are numbers that a platform counts.
_FIRST_TIME = 2**50


def is_time(place: int) -> bool:
    """Whether a place in a stream of events is a time."""
    return place >= _FIRST_TIME


class EventStream(Protocol):
    """Changes of status, in the order of their places; `CaughtUp` once nothing is left of the past.

    It ends with a PlatformError, never just so.
    """

    #: How far behind a place that was told already something new may still turn up; 0: never.
    overlap: int

    def __aiter__(self) -> AsyncIterator[InvocationEvent | UnreadableItem | CaughtUp]:
        """What is told, in order."""


class EventPlatform(Protocol):
    """What a platform with the capability `events` can do beside all others."""

    def events(self, wanted: EventFilter, since: int | None) -> AbstractAsyncContextManager[EventStream]:
        """Open a stream of events: what has happened after place `since`, or from now on, and what happens.

        What was told before may be told again, nothing is left out.

        Raises:
            InvalidRequestError: on entering: the wanted action is no name of one that could be told of.
        """

    async def records(self, invocation_ids: Collection[str]) -> list[InvocationRecord | UnreadableItem]:
        """The records of up to 1,000 invocations, in any order; those that aren't known are left out."""


def event_platform(platform: InvocationPlatform) -> EventPlatform:
    """The same platform, as one that tells of events.

    Raises:
        UnsupportedError: it doesn't; the message says what to do instead.
    """
    if not platform.capabilities.events:
        raise UnsupportedError(
            f"{platform.where} doesn't tell of what happens to invocations, so a DAG can't be started by it; "
            "schedule the DAG by time and wait with an InvocationSensor"
        )
    return cast(EventPlatform, platform)
