"""Wait for a group of invocations: yield each end as it happens, and decide whether enough completed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING

from ..models import InvocationStatus
from .rejection import Connect
from .wait import WaitAbandoned, WaitOptions, fetch_record, wait_until_terminal

if TYPE_CHECKING:
    from ..models import InvocationRecord


class GroupOutcome(Enum):
    """Whether the required number of invocations of a group is Completed."""

    #: Enough are Completed.
    Met = auto()
    #: Enough can't become Completed any more.
    Unreachable = auto()
    #: It depends on invocations that have not ended.
    Pending = auto()


@dataclass(frozen=True, slots=True)
class WaitResult:
    """How the wait for one invocation of a group ended: with its record, or abandoned."""

    invocation_id: str
    record: InvocationRecord | None
    abandoned: WaitAbandoned | None = None


def number_wanted(wait_for: str | int, total: int) -> int:
    """Return how many of `total` invocations "all", "any" or a number require.

    :raises ValueError: more than `total`.
    """
    wanted = {"all": total, "any": 1}.get(wait_for, wait_for) if isinstance(wait_for, str) else wait_for
    if not isinstance(wanted, int) or wanted > total:
        raise ValueError(f"it is {wait_for!r} of {total}; allowed: 'all', 'any', or a number up to {total}")
    return wanted


def group_outcome(statuses: Iterable[InvocationStatus], wanted: int) -> GroupOutcome:
    """Return whether `wanted` of these statuses are Completed, or still can be."""
    completed = possible = 0
    for status in statuses:
        completed += status is InvocationStatus.Completed
        possible += status is InvocationStatus.Completed or not status.is_terminal
    if completed >= wanted:
        return GroupOutcome.Met
    return GroupOutcome.Pending if possible >= wanted else GroupOutcome.Unreachable


async def wait_each(
    connection: str, connect: Connect, waits: Iterable[WaitOptions]
) -> AsyncIterator[WaitResult]:
    """Yield the result of each wait as it ends; closing the iterator cancels the remaining waits."""
    tasks = {asyncio.create_task(_wait_one(connection, connect, options)) for options in waits}
    try:
        while tasks:
            done, tasks = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                yield task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _wait_one(connection: str, connect: Connect, options: WaitOptions) -> WaitResult:
    try:
        record: InvocationRecord | None = None
        while record is None or not record.current.status.is_terminal:
            async for _ in wait_until_terminal(connection, connect, options):
                pass
            record = await fetch_record(connect, options)
    except WaitAbandoned as abandoned:
        return WaitResult(options.invocation_id, None, abandoned)
    return WaitResult(options.invocation_id, record)
