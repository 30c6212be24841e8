"""Waits in the worker: for a moment before a task defers, or to the invocation's end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from ..action_log import BEHIND, ActionLog
from ..models import NewLines
from ..platforms import PlatformError
from ..waiters import (
    LOG_SETTINGS,
    Behind,
    WaitAbandoned,
    WaitOptions,
    fetch_record,
    log_pages,
    read_end,
    wait_until_terminal,
)

if TYPE_CHECKING:
    from ..hooks import InvocationHook
    from ..models import InvocationRecord


async def completes_within(hook: InvocationHook, waiting: WaitOptions, seconds: float) -> bool:
    """Whether an invocation ends in so many seconds; whatever is wrong is for the longer wait to find out."""
    try:
        async with asyncio.timeout(seconds):
            async for _ in wait_until_terminal(hook.conn_id, hook.connect, replace(waiting, lines=None)):
                pass
    except (TimeoutError, WaitAbandoned):
        return False
    return True


async def end_at_deadline(hook: InvocationHook, waiting: WaitOptions) -> None:
    """Cancel an invocation whose deadline has passed, as its trigger would; return if it ended by itself.

    Raises:
        WaitAbandoned: as `wait_until_terminal` does.
    """
    async for _ in wait_until_terminal(
        hook.conn_id, hook.connect, replace(waiting, lines=None, deadline=time.time())
    ):
        pass


async def wait_for_end(
    hook: InvocationHook, waiting: WaitOptions, log: ActionLog, warn: Callable[[str], object]
) -> InvocationRecord:
    """Return the record of an ended invocation, after showing its log if lines are wanted.

    Raises:
        WaitAbandoned: as `wait_until_terminal` and `fetch_record` do.
    """
    record = await fetch_record(hook.connect, waiting)
    while not record.current.status.is_terminal:
        waiting = replace(waiting, cursor=log.position.cursor)
        async for step in wait_until_terminal(hook.conn_id, hook.connect, waiting):
            match step:
                case NewLines():
                    await log.show_page(step.records, step.cursor)
                case Behind():
                    warn(log.shaper.with_url(BEHIND))
                case _:
                    warn(step.text)
        record = await fetch_record(hook.connect, waiting)
    if waiting.lines is not None:
        await show_end(hook, waiting.invocation_id, log, warn)
    return record


async def show_end(
    hook: InvocationHook, invocation_id: str, log: ActionLog, warn: Callable[[str], object]
) -> None:
    """Show the rest of a log, or its first and last lines; an error only logs a warning."""
    position = log.position
    try:
        async with await hook.connect() as platform:
            end = await read_end(
                log_pages(platform, invocation_id, position.cursor),
                position,
                shaper=log.shaper,
                limit=LOG_SETTINGS.worker_end,
                show=log.show,
            )
    except PlatformError as error:
        warn(f"the rest of the log can't be read: {error}")
        return
    if end.left_out:
        warn(end.left_out)
    for line in end.last:
        log.show(line)


async def show_end_within(
    seconds: float, hook: InvocationHook, invocation_id: str, log: ActionLog, warn: Callable[[str], object]
) -> None:
    """Call `show_end` with a time limit; log a warning when the limit is reached."""
    try:
        async with asyncio.timeout(seconds):
            await show_end(hook, invocation_id, log, warn)
    except TimeoutError:
        warn(log.shaper.with_url(f"the rest of the log was not read within {seconds:g} s"))
