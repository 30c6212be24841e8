"""Distinguish outages of the server itself from errors of an action or a request.

A full disk or a lack of descriptors or memory says nothing about an action. The operation is repeated or the
invocation is requeued; an outage never ends an invocation.
"""

from __future__ import annotations

import errno
import logging
from typing import TypeGuard

from sqlalchemy.exc import SQLAlchemyError

#: Error codes of the operating system for exhausted resources and failed disks.
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

#: The message of Python's RuntimeError when it cannot start a thread.
_NO_THREAD = "can't start new thread"

#: Seconds between attempts during an outage: doubled each time, up to the longest.
FIRST_PAUSE = 0.5
LONGEST_PAUSE = 30.0

_log = logging.getLogger(__name__)


def is_outage(error: BaseException | None) -> TypeGuard[BaseException]:
    """Return whether an error is an outage of the server itself."""
    if isinstance(error, OSError):
        return error.errno in OUTAGE_ERRORS
    return isinstance(error, (SQLAlchemyError, MemoryError)) or (
        isinstance(error, RuntimeError) and str(error) == _NO_THREAD
    )


def pause_after(failures: int) -> float:
    """Return the seconds to wait after this number of failures in a row."""
    return float(min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(failures - 1, 16)))


def log_failure(logger: logging.Logger, message: str, *arguments: object) -> None:
    """Log the current exception, without its traceback if that can't be written."""
    try:
        logger.exception(message, *arguments)
    except RecursionError:
        logger.error(f"{message} (the traceback is too deep to be shown)", *arguments)
