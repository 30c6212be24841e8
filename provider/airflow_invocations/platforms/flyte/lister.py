"""Lists runs for a polled stream of events."""

from __future__ import annotations

import datetime
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any

from ...models import InvocationEvent, UnreadableItem, cursor_at
from ..polling import LOOKBACK, ListedInvocation
from .ids import TaskId
from .phases import status_of
from .records import run_id_of, task_of, time_of
from .settings import FlyteSettings
from .shapes import MisshapenError, object_at, reads

Json = dict[str, Any]

_log = logging.getLogger(__name__)


class FlyteLister:
    """Lists runs by the time of their creation, for which Flyte has an index.

    :param created: yields pages of the Runs that were created at a moment or later.
    :param ended: returns those of some runs that are terminal.
    """

    lookback = LOOKBACK

    def __init__(
        self,
        created: Callable[[datetime.datetime], AsyncIterator[Sequence[Json]]],
        ended: Callable[[Collection[str]], Awaitable[list[Json]]],
        settings: FlyteSettings,
    ) -> None:
        self._created = created
        self._ended = ended
        self._settings = settings

    async def since(self, moment: datetime.datetime) -> AsyncIterator[ListedInvocation]:
        """Yield the runs that were created at a moment or later."""
        async for page in self._created(moment):
            for run in page:
                if listed := listed_of(run, self._settings):
                    yield listed

    async def ended(self, invocation_ids: Collection[str]) -> AsyncIterator[ListedInvocation]:
        """Yield those of up to 1,000 runs that are terminal."""
        for run in await self._ended(invocation_ids):
            if listed := listed_of(run, self._settings):
                yield listed


def listed_of(run: Mapping[str, Any], settings: FlyteSettings) -> ListedInvocation | None:
    """Return a Run with its status, or why that is unreadable; None if it names no run."""
    try:
        invocation_id = str(run_id_of(object_at(run, "action")))
    except MisshapenError as error:
        _log.info("Skipped a run: %s", error)
        return None
    try:
        return _listed(run, invocation_id, settings)
    except MisshapenError as error:
        return ListedInvocation(invocation_id, None, UnreadableItem(f"{invocation_id}: {error}"))


@reads
def _listed(run: Mapping[str, Any], invocation_id: str, settings: FlyteSettings) -> ListedInvocation:
    action = object_at(run, "action")
    status = object_at(action, "status")
    created = time_of(status.get("startTime"))
    entered = time_of(status.get("endTime")) or created
    if entered is None:
        return ListedInvocation(
            invocation_id, None, UnreadableItem(f"{invocation_id}: Flyte does not report when it was created")
        )
    task: TaskId = task_of(action)
    event = InvocationEvent(
        invocation_id, status_of(status), task.path, entered, cursor_at(entered), task.names(settings)
    )
    return ListedInvocation(invocation_id, created, event)
