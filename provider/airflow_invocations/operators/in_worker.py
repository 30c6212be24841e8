"""Waits in the worker: for a moment before a task defers, or to the invocation's end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from ..platform import PlatformError
from ..task_log import ActionLog
from ..waiting import GivenUp, Lines, Waiting, follow, log_pages, record_of

if TYPE_CHECKING:
    from ..hooks import InvocationHook
    from ..model import InvocationRecord


async def ends_within(hook: InvocationHook, waiting: Waiting, seconds: float) -> bool:
    """Whether an invocation ends in so many seconds; whatever is wrong is for the longer wait to find out."""
    try:
        async with asyncio.timeout(seconds):
            async for _ in follow(hook.conn_id, hook.connect, replace(waiting, lines=None)):
                pass
    except (TimeoutError, GivenUp):
        return False
    return True


async def wait_for_end(
    hook: InvocationHook, waiting: Waiting, log: ActionLog, warn: Callable[[str], object]
) -> InvocationRecord:
    """The record of an invocation that has ended, every line of its log written, if lines are wanted.

    Raises:
        GivenUp: as `follow` and `record_of` do.
    """
    record = await record_of(hook.connect, waiting)
    while not record.current.status.is_terminal:
        async for step in follow(hook.conn_id, hook.connect, waiting):
            if isinstance(step, Lines):
                await log.write(step.records)
                waiting = replace(waiting, cursor=step.cursor)
            else:
                warn(step.text)
        record = await record_of(hook.connect, waiting)
    if waiting.lines is not None:
        try:
            async with await hook.connect() as platform:
                async for page in log_pages(platform, waiting.invocation_id, waiting.cursor):
                    await log.write(page.items)
        except PlatformError as error:
            warn(f"the rest of the log can't be read: {error}")
    return record
