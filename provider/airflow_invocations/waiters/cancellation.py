"""Cancels an invocation and does not leave it at the asking."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from ..platforms.base import Platform
from ..platforms.errors import InvalidRequestError, NotFoundError, TransientError
from ..platforms.retry import backoff

if TYPE_CHECKING:
    from ..models import InvocationRecord


async def cancel_and_confirm(
    platform: Platform, invocation_id: str, patience: float = 60.0
) -> InvocationRecord | None:
    """Ask for a cancel, again and again with backoff, until the platform says that the invocation has ended.

    Returns its last record; None if the platform doesn't know it.

    Raises:
        TimeoutError: it hasn't ended after `patience` seconds.
        PermanentError: the platform refuses.
    """
    attempt = 0
    async with asyncio.timeout(patience):
        while True:
            try:
                await _cancel(platform, invocation_id)
                record = await platform.get(invocation_id)
                if record.current.status.is_terminal:
                    return record
            except NotFoundError:
                return None
            except TransientError:
                pass
            await asyncio.sleep(0.1 + backoff(attempt, cap=5.0))
            attempt += 1


async def _cancel(platform: Platform, invocation_id: str) -> None:
    # A platform may refuse to cancel what has ended; the record that is read next tells.
    with contextlib.suppress(InvalidRequestError):
        await platform.cancel(invocation_id)
