"""The bridge from synchronous code: signals reach the main thread, and end what runs on the other side."""

from __future__ import annotations

import asyncio
import contextvars
import signal
import threading
import time
from collections.abc import Coroutine, Iterator
from types import FrameType
from typing import Any

import pytest

from airflow_invocations.hooks import RobotoHook


class TimeIsUp(BaseException):
    """As Airflow's AirflowTaskTimeout: none that `except Exception` would catch."""


@pytest.fixture
def alarm() -> Iterator[None]:
    def ring(_: int, __: FrameType | None) -> None:
        raise TimeIsUp

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("alarm")
def test_a_timeout_interrupts_and_ends_the_operation() -> None:
    ended = threading.Event()

    async def busy() -> None:
        try:
            while True:  # noqa: ASYNC110 - never idle: in this thread, the exception would be given to it
                await asyncio.sleep(0)
        finally:
            ended.set()

    with pytest.raises(TimeIsUp):
        RobotoHook.run(busy)
    assert ended.wait(5)


def test_a_timeout_while_no_loop_can_be_opened_hangs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted = threading.Event()

    def interrupt(_: int, __: FrameType | None) -> None:
        interrupted.set()
        raise TimeIsUp

    def out_of_descriptors(operation: Coroutine[Any, Any, None]) -> None:
        time.sleep(0.2)  # the main thread waits for the outcome now
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
        interrupted.wait()
        time.sleep(0.2)  # and now for the loop in which it is to cancel the operation
        operation.close()
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(asyncio, "run", out_of_descriptors)
    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with pytest.raises(TimeIsUp):
            RobotoHook.run(lambda: asyncio.sleep(0))
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_results_exceptions_and_context_cross_the_bridge() -> None:
    name: contextvars.ContextVar[str] = contextvars.ContextVar("name")
    name.set("ada")

    async def answer() -> str:
        return name.get()

    async def fail() -> None:
        raise KeyError("lost")

    assert RobotoHook.run(answer) == "ada"
    with pytest.raises(KeyError, match="lost"):
        RobotoHook.run(fail)


@pytest.mark.anyio
async def test_it_can_be_crossed_from_within_an_event_loop() -> None:
    async def answer() -> int:
        return 7

    assert RobotoHook.run(answer) == 7
