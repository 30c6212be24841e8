"""Reads an invocation's log from a cursor to the end that it has now."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from ..platform.base import InvocationPlatform

if TYPE_CHECKING:
    from ..model import LogPage


async def log_pages(
    platform: InvocationPlatform, invocation_id: str, cursor: str | None = None
) -> AsyncIterator[LogPage]:
    """Yield page after page, from `cursor` (None: the beginning) on. Raises what `platform.logs` does."""
    has_next = True
    while has_next:
        page = await platform.logs(invocation_id, cursor)
        cursor = page.last_read if page.last_read is not None else cursor
        has_next = page.has_next
        yield page
