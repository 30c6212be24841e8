"""Wait until something holds that sends no notification, and report the last value if it never does."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar, cast

T = TypeVar("T")


def until(
    look: Callable[[], T], within: float = 20.0, *, every: float = 0.02, what: Callable[[], str] = str
) -> T:
    """Return the first truthy value of `look`.

    :param look: reads the value.
    :param within: seconds after which the test fails.
    :param every: seconds between two reads.
    :param what: describes the wait; called when the test fails.
    :raises AssertionError: no value was truthy; the message has the last one.
    """
    deadline = time.monotonic() + within
    while not (value := look()):
        if time.monotonic() > deadline:
            raise AssertionError(f"after {within:g} s still {value!r}; {what()}".removesuffix("; "))
        time.sleep(every)
    return value


async def until_async(
    look: Callable[[], T | Awaitable[T]], within: float = 20.0, *, every: float = 0.002
) -> T:
    """Return the first truthy value of `look`, a function or a coroutine function, letting the loop run.

    :raises AssertionError: no value was truthy; the message has the last one.
    """
    deadline = time.monotonic() + within
    while True:
        value = look()
        if inspect.isawaitable(value):
            value = await value
        if value:
            return cast(T, value)
        if time.monotonic() > deadline:
            raise AssertionError(f"after {within:g} s still {value!r}")
        await asyncio.sleep(every)
