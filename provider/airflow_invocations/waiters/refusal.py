"""Ask again while a platform refuses credentials that it had accepted."""

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
REFUSAL_LIMIT = 60.0

#: Seconds until a connection whose credentials were rejected is read again.
REFRESH_PAUSE = 1.0

#: Opens a client of the platform, reading the connection each time.
Connect = Callable[[], Awaitable[AbstractAsyncContextManager[Platform]]]

T = TypeVar("T")

_log = logging.getLogger(__name__)


class Refusals:
    """Refusals in a row, from the first one on."""

    def __init__(self) -> None:
        self._since: float | None = None

    def note(self) -> bool:
        """Take note of a refusal; return whether it is the first."""
        is_first = self._since is None
        if self._since is None:
            self._since = time.monotonic()
        return is_first

    def are_final(self, *, is_first: bool, accepted: bool) -> bool:
        """Return whether they are believed: of accepted credentials after a while, else the second one."""
        if not accepted:
            return not is_first
        return self._since is not None and time.monotonic() - self._since >= REFUSAL_LIMIT

    def forget(self) -> None:
        """The platform accepts the credentials."""
        self._since = None


async def client_of(connect: Connect) -> AbstractAsyncContextManager[Platform]:
    """Return a client of the platform, with the connection as it is now.

    :raises UnauthorizedError: the connection is misconfigured, which is as good as refused.
    """
    try:
        return await connect()
    except ValueError as error:
        raise UnauthorizedError(str(error)) from error


async def retry_refusals(ask: Callable[[], Awaitable[T]], *, accepted: bool) -> T:
    """Return what the platform answers, asking again while it refuses the connection's credentials.

    :param ask: reads the connection each time.
    :param accepted: whether the platform is known to have accepted the credentials.
    :raises UnauthorizedError: refused for REFUSAL_LIMIT seconds; twice, if they were never accepted.
    """
    refusals = Refusals()
    while True:
        try:
            return await ask()
        except UnauthorizedError as error:
            is_first = refusals.note()
            if refusals.are_final(is_first=is_first, accepted=accepted):
                raise
            if accepted and is_first:
                _log.warning("%s", refusal_notice(error))
            await asyncio.sleep(REFRESH_PAUSE)


def refusal_notice(error: Exception) -> str:
    """Return what a task's log says of such an outage."""
    return (
        "The platform rejects the connection's credentials, which it accepted before; "
        f"trying again for {REFUSAL_LIMIT:g} s: {error}"
    )
