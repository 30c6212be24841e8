"""Retry while a platform rejects credentials that it had accepted."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import TypeVar

from ..platforms.base import Platform
from ..platforms.errors import UnauthorizedError

#: Seconds for which rejected credentials count as an outage if the platform had accepted them: it may have
#: been started without its data, or the token may be about to be replaced.
REJECTION_LIMIT = 60.0

#: Seconds until a connection whose credentials were rejected is read again.
REFRESH_PAUSE = 1.0

#: Opens a client of the platform, reading the connection each time.
Connect = Callable[[], Awaitable[AbstractAsyncContextManager[Platform]]]

T = TypeVar("T")

_log = logging.getLogger(__name__)


class Rejections:
    """Consecutive rejections of credentials."""

    def __init__(self) -> None:
        self._since: float | None = None

    def note(self) -> bool:
        """Record a rejection; return whether it is the first."""
        is_first = self._since is None
        if self._since is None:
            self._since = time.monotonic()
        return is_first

    def are_final(self, *, is_first: bool, accepted: bool) -> bool:
        """Return whether to stop retrying.

        Credentials that were accepted before are retried for REJECTION_LIMIT seconds, others once.
        """
        if not accepted:
            return not is_first
        return self._since is not None and time.monotonic() - self._since >= REJECTION_LIMIT

    def forget(self) -> None:
        """Record that the platform accepts the credentials."""
        self._since = None


async def client_of(connect: Connect) -> AbstractAsyncContextManager[Platform]:
    """Return a client of the platform, with the connection as it is now.

    :raises UnauthorizedError: the connection is misconfigured; handled like rejected credentials.
    """
    try:
        return await connect()
    except ValueError as error:
        raise UnauthorizedError(str(error)) from error


async def retry_rejections(request: Callable[[], Awaitable[T]], *, accepted: bool) -> T:
    """Return the result of `request`, retrying while the platform rejects the connection's credentials.

    :param request: an idempotent request that reads the connection each time.
    :param accepted: whether the platform is known to have accepted the credentials.
    :raises UnauthorizedError: rejected for REJECTION_LIMIT seconds, or twice if they were never accepted.
    """
    rejections = Rejections()
    while True:
        try:
            return await request()
        except UnauthorizedError as error:
            is_first = rejections.note()
            if rejections.are_final(is_first=is_first, accepted=accepted):
                raise
            if accepted and is_first:
                _log.warning("%s", rejection_notice(error))
            await asyncio.sleep(REFRESH_PAUSE)


def rejection_notice(error: Exception) -> str:
    """Return the message about rejected credentials for the task log."""
    return (
        "The platform rejects the connection's credentials, which it accepted before; "
        f"trying again for {REJECTION_LIMIT:g} s: {error}"
    )
