"""Cancel an invocation and wait until the platform confirms."""

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
    platform: Platform, invocation_id: str, seconds: float = 60.0
) -> InvocationRecord | None:
    """Cancel an invocation, repeatedly with backoff, until it has a terminal status.

    :param seconds: time limit.
    :returns: the last record; None if the platform doesn't know the invocation.
    :raises TimeoutError: the invocation is still active after `seconds`.
    :raises PermanentError: the platform rejects the request.
    """
    attempt = 0
    async with asyncio.timeout(seconds):
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
    # A platform may reject to cancel an ended invocation; the next record shows whether it has ended.
    with contextlib.suppress(InvalidRequestError):
        await platform.cancel(invocation_id)
