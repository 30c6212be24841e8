"""Waits for several invocations together: each one's end as it comes, and whether enough have completed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING

from ..models import InvocationStatus
from .refusal import Connect
from .wait import WaitAbandoned, WaitOptions, follow, record_of

if TYPE_CHECKING:
    from ..models import InvocationRecord


class Outlook(Enum):
    """What can be said of several invocations of which so many are to complete."""

    #: So many are Completed.
    Enough = auto()
    #: So many can't be Completed any more.
    Hopeless = auto()
    Open = auto()


@dataclass(frozen=True, slots=True)
class Ending:
    """How the wait for one of several invocations ended: with its record, or given up."""

    invocation_id: str
    record: InvocationRecord | None
    given_up: WaitAbandoned | None = None


def number_wanted(wait_for: str | int, total: int) -> int:
    """How many of so many "all", "any" or a number mean.

    Raises:
        ValueError: there aren't so many.
    """
    wanted = {"all": total, "any": 1}.get(wait_for, wait_for) if isinstance(wait_for, str) else wait_for
    if not isinstance(wanted, int) or wanted > total:
        raise ValueError(f"it is {wait_for!r} of {total}; allowed: 'all', 'any', or a number up to {total}")
    return wanted


def outlook(statuses: Iterable[InvocationStatus], wanted: int) -> Outlook:
    """Whether so many of them are Completed, or still can be."""
    completed = possible = 0
    for status in statuses:
        completed += status is InvocationStatus.Completed
        possible += status is InvocationStatus.Completed or not status.is_terminal
    if completed >= wanted:
        return Outlook.Enough
    return Outlook.Open if possible >= wanted else Outlook.Hopeless


async def endings(
    connection: str, connect: Connect, waitings: Iterable[WaitOptions]
) -> AsyncIterator[Ending]:
    """Yield the end of each wait as it comes; who has seen enough may stop, and the others end with that.

    They share the watcher of their connection, as any other waits do.
    """
    tasks = {asyncio.create_task(_ending(connection, connect, waiting)) for waiting in waitings}
    try:
        while tasks:
            done, tasks = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                yield task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _ending(connection: str, connect: Connect, waiting: WaitOptions) -> Ending:
    try:
        record: InvocationRecord | None = None
        while record is None or not record.current.status.is_terminal:
            async for _ in follow(connection, connect, waiting):
                pass
            record = await record_of(connect, waiting)
    except WaitAbandoned as given_up:
        return Ending(waiting.invocation_id, None, given_up)
    return Ending(waiting.invocation_id, record)
