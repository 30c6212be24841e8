"""End a test process that hangs, wherever it hangs: in a test, in its fixtures' teardown, or in C code.

pytest-timeout raises an exception in the main thread, once a test. What the test and its fixtures do after
that has no limit, and pytest's `faulthandler_timeout` is cancelled by that very exception. Here a test has a
deadline, which is armed again for each of its phases: where it passes, the traceback of every thread is
printed and the process exits with code 1. pytest-xdist reports that test as crashed, and replaces the worker.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import time
from collections.abc import Generator, Iterator
from typing import Any

import pytest

#: When a test's process is to end, on the monotonic clock.
_deadline = pytest.StashKey[float]()
_stderr = pytest.StashKey[int]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the limit."""
    parser.addini(
        "hang_grace",
        "seconds after its timeout in which a test and its fixtures have to end",
        default="120",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Keep the standard error of now: while a test runs it is captured, and lost when the process exits."""
    config.stash[_stderr] = os.dup(2)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Close what was opened."""
    os.close(config.stash[_stderr])


@pytest.hookimpl(wrapper=True)
def pytest_timeout_set_timer(item: pytest.Item, settings: Any) -> Generator[None, object, object]:
    """Set the deadline by the test's timeout, which a mark may have set; `--timeout=0` sets none."""
    item.stash[_deadline] = time.monotonic() + settings.timeout + float(item.config.getini("hang_grace"))
    return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, object, object]:
    """Limit the fixtures' setup."""
    with _limited(item):
        return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Limit the test itself."""
    with _limited(item):
        return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, object, object]:
    """Limit the fixtures' teardown: also those of the module and the session, which end with a last test."""
    with _limited(item):
        return (yield)


@contextlib.contextmanager
def _limited(item: pytest.Item) -> Iterator[None]:
    deadline = item.stash.get(_deadline, None)
    if deadline is None:
        yield
        return
    # One that has passed still leaves a moment, in which what is quick can end.
    remaining = max(1.0, deadline - time.monotonic())
    faulthandler.dump_traceback_later(remaining, exit=True, file=item.config.stash[_stderr])
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
