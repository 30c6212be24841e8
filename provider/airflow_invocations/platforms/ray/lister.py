"""Lists jobs for a polled stream of events."""

from __future__ import annotations

import datetime
from collections.abc import AsyncIterator, Awaitable, Callable, Collection

from ...models import InvocationEvent, cursor_at
from ..polling import LOOKBACK, ListedInvocation
from .records import action_of, created_at, ended_at, status_of
from .settings import cancel_id_of
from .shapes import Json


class RayLister:
    """Lists the jobs that the provider submitted. Each list is one request for all jobs.

    :param jobs: returns all jobs by submission id.
    :param action: the only action to list; None for all of them.
    """

    lookback = LOOKBACK

    def __init__(self, jobs: Callable[[], Awaitable[dict[str, Json]]], action: str | None) -> None:
        self._jobs = jobs
        self._action = action

    async def since(self, moment: datetime.datetime) -> AsyncIterator[ListedInvocation]:
        """Yield the jobs that were submitted at a moment or later."""
        for listed in self._listed(await self._jobs()):
            if listed.moment is not None and listed.moment >= moment:
                yield listed

    async def ended(self, invocation_ids: Collection[str]) -> AsyncIterator[ListedInvocation]:
        """Yield those of up to 1,000 jobs that are terminal."""
        wanted = set(invocation_ids)
        for listed in self._listed(await self._jobs()):
            event = listed.event
            if (
                listed.invocation_id in wanted
                and isinstance(event, InvocationEvent)
                and event.status.is_terminal
            ):
                yield listed

    def _listed(self, jobs: dict[str, Json]) -> list[ListedInvocation]:
        return [
            listed_of(submission_id, job, jobs.get(cancel_id_of(submission_id)), action)
            for submission_id, job in jobs.items()
            if (action := action_of(job)) is not None and self._action in (None, action)
        ]


def listed_of(submission_id: str, job: Json, cancel: Json | None, action: str) -> ListedInvocation:
    """Return a job with its status."""
    created = created_at(job)
    status = status_of(job, cancel)
    entered = ended_at(job, cancel) if status.is_terminal else created
    event = InvocationEvent(submission_id, status, action, entered, cursor_at(entered))
    return ListedInvocation(submission_id, created, event)
