"""Runs as lists have them, for a stream of events that asks for them again and again."""

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
    """What a PollingEventStream asks for: runs by the time of their creation, for which Flyte has an index.

    :param created: lists the Runs that were created then or later.
    :param ended: lists those of some runs that have ended.
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
        """Everything that was created then or later."""
        async for page in self._created(moment):
            for run in page:
                if listed := listed_of(run, self._settings):
                    yield listed

    async def ended(self, invocation_ids: Collection[str]) -> AsyncIterator[ListedInvocation]:
        """Those of up to 1,000 runs that have ended."""
        for run in await self._ended(invocation_ids):
            if listed := listed_of(run, self._settings):
                yield listed


def listed_of(run: Mapping[str, Any], settings: FlyteSettings) -> ListedInvocation | None:
    """Return a Run with the status that it has, or why that can't be read; None: it says of no run."""
    try:
        invocation_id = str(run_id_of(object_at(run, "action")))
    except MisshapenError as error:
        _log.info("Left a run out: %s", error)
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
            invocation_id, None, UnreadableItem(f"{invocation_id}: Flyte doesn't say when it began")
        )
    task: TaskId = task_of(action)
    told = InvocationEvent(
        invocation_id, status_of(status), task.path, entered, cursor_at(entered), task.names(settings)
    )
    return ListedInvocation(invocation_id, created, told)
