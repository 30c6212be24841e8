"""The one thread of a process that calls pynenc, and the translation of its errors."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from ..errors import InvalidRequestError, PlatformError, UnauthorizedError, UnavailableError

#: The errors of backend libraries, by full name, so that no library is imported. The first class in an
#: exception's MRO counts.
_ERRORS: Mapping[str, type[PlatformError]] = {
    "pynenc.exceptions.SerializationError": InvalidRequestError,
    "redis.exceptions.AuthenticationError": UnauthorizedError,
    "redis.exceptions.AuthenticationWrongNumberOfArgsError": UnauthorizedError,
    "redis.exceptions.AuthorizationError": UnauthorizedError,
    "redis.exceptions.NoPermissionError": UnauthorizedError,
    "redis.exceptions.RedisError": UnavailableError,
    "sqlite3.Error": UnavailableError,
    "builtins.OSError": UnavailableError,
    "pymongo.errors.PyMongoError": UnavailableError,
    "pika.exceptions.AMQPError": UnavailableError,
}

T = TypeVar("T")

#: By process: a forked process needs another thread.
_threads: dict[int, ThreadPoolExecutor] = {}


async def run_in_thread(operation: Callable[[], T], where: str) -> T:
    """Run an operation in pynenc's thread. Cancelling the caller doesn't interrupt it.

    :param where: the app and its backend, for messages.
    """

    def run() -> T:
        with translated(where):
            return operation()

    return await asyncio.get_running_loop().run_in_executor(_thread(), run)


@contextmanager
def translated(where: str) -> Iterator[None]:
    """Translate the errors of a backend's library to PlatformErrors that name the backend."""
    try:
        yield
    except PlatformError:
        raise
    except Exception as error:
        names = (f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__)
        kind = next((_ERRORS[name] for name in names if name in _ERRORS), None)
        if kind is None:
            raise
        raise kind(f"{where}: {error or type(error).__name__}") from error


def _thread() -> ThreadPoolExecutor:
    """Return the one thread of this process."""
    pid = os.getpid()
    if pid not in _threads:
        _threads.setdefault(pid, ThreadPoolExecutor(1, thread_name_prefix="invocations-pynenc"))
    return _threads[pid]
