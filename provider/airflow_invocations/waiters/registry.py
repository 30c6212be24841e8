"""Share one object per key between users in an event loop; the last user to leave closes it."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import math
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from typing import Any, TypeVar


class RefCounted:
    """A shared object whose task ends once its last user has left.

    A subclass counts its users, calls `_start` at its creation, and sets `_unused` when the last one leaves.
    """

    _task: asyncio.Task[None]

    def __init__(self) -> None:
        self._unused = asyncio.Event()

    def _start(self) -> None:
        # In a context of its own: that of the first user carries that user's task log.
        self._task = asyncio.create_task(self._run(), context=contextvars.Context())

    async def _run(self) -> None:
        """Serve the users until the last one has left."""
        raise NotImplementedError

    @property
    def is_open(self) -> bool:
        """Whether another user can join."""
        return not self._unused.is_set()

    def when_closed(self, callback: Callable[[], None]) -> None:
        """Call `callback` once the task has ended."""
        self._task.add_done_callback(lambda _: callback())

    async def _rest(self, seconds: float) -> None:
        """Sleep, at most until the last user has left."""
        with suppress(TimeoutError):
            async with asyncio.timeout(None if seconds == math.inf else seconds):
                await self._unused.wait()


RefCountedT = TypeVar("RefCountedT", bound=RefCounted)
KeyT = TypeVar("KeyT")


class Registry(dict[KeyT, RefCountedT]):
    """Shared objects by key. Each is removed when it closes."""

    def find(self, key: KeyT) -> RefCountedT | None:
        """Return the object that can be joined, or None."""
        item = self.get(key)
        return item if item is not None and item.is_open else None

    def add(self, key: KeyT, item: RefCountedT) -> None:
        """Keep an object until it closes."""
        self[key] = item
        item.when_closed(functools.partial(self._remove, key, item))

    def _remove(self, key: KeyT, item: RefCountedT) -> None:
        if self.get(key) is item:
            del self[key]


async def run_until_first_ends(*operations: Coroutine[Any, Any, object]) -> None:
    """Run operations until one of them returns or raises, and cancel the others."""
    tasks = [asyncio.ensure_future(operation) for operation in operations]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()


async def run_all(operations: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Run operations until all have returned; the first that raises cancels the others."""
    tasks = [asyncio.ensure_future(operation) for operation in operations]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
