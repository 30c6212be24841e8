"""Status events of all invocations on a platform, not only this task's."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Protocol, cast

from .base import InvocationPlatform, UnsupportedError

if TYPE_CHECKING:
    from ..models import CaughtUp, EventFilter, InvocationEvent, InvocationRecord, UnreadableItem


class EventStream(Protocol):
    """Changes of status in the order of their cursors, with `CaughtUp` between past and present.

    Iteration never stops normally; it raises a PlatformError.
    """

    #: How far behind the last cursor a new event may still appear, in units of the cursor; 0: never.
    overlap: int

    def __aiter__(self) -> AsyncIterator[InvocationEvent | UnreadableItem | CaughtUp]:
        """Yield messages in order."""


class EventPlatform(Protocol):
    """What a platform with the capability `events` can do beside all others."""

    def events(self, wanted: EventFilter, since: int | None) -> AbstractAsyncContextManager[EventStream]:
        """Open a stream of the events after cursor `since`; None: from now on.

        No event is left out. Some may be sent again.

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
