"""Read an invocation's log from a position to its current end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..platforms.base import Platform
from ..platforms.errors import PlatformError
from .log_lines import FirstAndLast, LineShaper, LogLine, LogPosition, UnshownRecords
from .log_settings import LogEnd

if TYPE_CHECKING:
    from ..models import LogPage


async def log_pages(
    platform: Platform, invocation_id: str, cursor: str | None = None
) -> AsyncIterator[LogPage]:
    """Yield the pages of a log from `cursor` on (None: the beginning). Raises as `platform.logs` does."""
    has_next = True
    while has_next:
        page = await platform.logs(invocation_id, cursor)
        cursor = page.last_read if page.last_read is not None else cursor
        has_next = page.has_next
        yield page


@dataclass(frozen=True, slots=True)
class EndOfLog:
    """The last lines of a log, to be shown after its first lines.

    :param left_out: a message about lines left out before the last ones; empty if there are none.
    """

    left_out: str
    last: Sequence[LogLine]


async def read_end(
    pages: AsyncIterator[LogPage],
    position: LogPosition,
    *,
    shaper: LineShaper,
    limit: LogEnd,
    show: Callable[[LogLine], object],
) -> EndOfLog:
    """Read the rest of a log whose invocation has ended, or only its first and last lines if it is too long.

    An error is reported in `left_out`, not raised.

    :param pages: the log from `position.cursor` on.
    :param show: called with each of the first lines as they are read.
    """
    unshown, parts = UnshownRecords(position), FirstAndLast(limit, shaper)
    shaper.long_line = position.long_line
    deadline = time.monotonic() + limit.seconds
    trouble = ""
    try:
        async for page in pages:
            for record, _ in unshown.of_page(page.items, page.last_read):
                if (line := parts.add(record)) is not None:
                    show(line)
            await asyncio.sleep(0)
            if page.has_next and time.monotonic() > deadline:
                trouble = f"the log was not read to its end within {limit.seconds:g} s"
                break
    except PlatformError as error:
        trouble = f"the rest of the log can't be read: {error}"
    if trouble:
        # The last lines read are not the last lines of the log.
        parts.leave_out_last()
    return EndOfLog(
        shaper.left_out_notice(parts.left_out, parts.left_out_size, trouble)
        if parts.left_out or trouble
        else "",
        parts.last(),
    )
