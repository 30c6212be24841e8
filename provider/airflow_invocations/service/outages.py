"""Tell the service's own outages from what is wrong with an action or a request.

A full disk, no descriptors or no memory say nothing about an action: what meets them is repeated or put back
into the queue, and an invocation never ends because of them.
"""

from __future__ import annotations

import errno
import logging
from typing import TypeGuard

from sqlalchemy.exc import SQLAlchemyError

#: What the operating system says when it has run out of something, or when a disk fails.
OUTAGE_ERRORS = frozenset(
    {
        errno.EAGAIN,  # no more processes or threads
        errno.EDQUOT,
        errno.EIO,
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOBUFS,
        errno.ENOMEM,
        errno.ENOSPC,
        errno.EROFS,
        errno.ESTALE,
    }
)

#: What Python says when it cannot start a thread; the exception has no class of its own.
_NO_THREAD = "can't start new thread"

#: Seconds until something that met an outage is tried again: doubled each time, up to the longest.
FIRST_PAUSE = 0.5
LONGEST_PAUSE = 30.0

_log = logging.getLogger(__name__)


def is_outage(error: BaseException | None) -> TypeGuard[BaseException]:
    """Whether an error is the service's own outage, whatever the service was about to do."""
    if isinstance(error, OSError):
        return error.errno in OUTAGE_ERRORS
    return isinstance(error, (SQLAlchemyError, MemoryError)) or (
        isinstance(error, RuntimeError) and str(error) == _NO_THREAD
    )


def pause_after(failures: int) -> float:
    """Seconds to wait before the next attempt, after this many in a row have failed."""
    return float(min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(failures - 1, 16)))


def log_failure(logger: logging.Logger, message: str, *arguments: object) -> None:
    """Log the exception that is being handled; one whose traceback cannot be written is named only."""
    try:
        logger.exception(message, *arguments)
    except RecursionError:
        logger.error(f"{message} (the traceback is too deep to be shown)", *arguments)
