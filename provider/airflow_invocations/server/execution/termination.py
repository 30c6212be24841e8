"""End processes for good: of a process group, of a session, or with a marked environment."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Protocol

import psutil

from ..outages import is_outage, pause_after

#: Seconds by which two readings of one process's start may differ.
_SAME_START = 1.0

#: Seconds between two checks whether a process runs: the first pause, and the longest one.
_FIRST_PAUSE = 0.01
_LONGEST_PAUSE = 0.25


class Processes(Protocol):
    """A set of processes that ends as a whole."""

    def send(self, number: int) -> None:
        """Send a signal to the processes."""

    def members(self) -> Collection[psutil.Process]:
        """Return the processes that run now. Raises an outage if they can't be listed."""


class ProcessGroup:
    """A process group.

    :param number: its id, which is the process id of its leader.
    """

    def __init__(self, number: int) -> None:
        self._number = number
        self._last: int | None = None

    def send(self, number: int) -> None:
        """Send a signal once to the whole group, so that what a handler starts isn't signalled."""
        if number != self._last:
            self._last = number
            send_to_group(self._number, number)

    def members(self) -> list[psutil.Process]:
        """Return the processes of the group that run."""
        # Zombies take signals too, so the processes of a group that takes them have to be checked.
        return _running(os.getpgid, self._number) if send_to_group(self._number, 0) else []


class ProcessSession:
    """A session: also processes that have left their process group, unless they started their own session.

    :param number: its id, which is the process id of its leader.
    """

    def __init__(self, number: int) -> None:
        self._number = number
        self._signalled: set[tuple[psutil.Process, int]] = set()

    def send(self, number: int) -> None:
        """Send a signal to each process, also to one that was started since the last call."""
        for process in self.members():
            if (process, number) not in self._signalled:
                self._signalled.add((process, number))
                with contextlib.suppress(psutil.Error):
                    process.send_signal(number)

    def members(self) -> list[psutil.Process]:
        """Return the processes of the session that run."""
        return _running(os.getsid, self._number)


async def terminate(processes: Processes, grace: float) -> None:
    """End processes: SIGTERM, SIGKILL after `grace` seconds; return when none runs."""
    for pause in _termination(processes, grace):
        await asyncio.sleep(pause)


def terminate_blocking(processes: Processes, grace: float) -> None:
    """End processes as `terminate` does, without an event loop."""
    for pause in _termination(processes, grace):
        time.sleep(pause)


async def kill_orphaned_group(group: int, leader_started: float) -> None:
    """Kill the process group of an orphaned invocation, unless its number was given to another one.

    :param leader_started: when the group's leader was started (seconds since 1970).
    """
    started = started_at(group)
    if started is None or abs(started - leader_started) <= _SAME_START:
        await terminate(ProcessGroup(group), grace=0)


async def kill_marked(variable: str, values: Collection[str]) -> None:
    """Kill every process whose environment has one of these values for `variable`.

    This finds processes that no group leads to: one that was started just before its group was recorded, and
    those that have left their group.
    """
    while marked := await _marked_despite_outages(variable, values):
        for process in marked:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        await asyncio.sleep(_FIRST_PAUSE)


def marked_processes(variable: str, values: Collection[str]) -> list[psutil.Process]:
    """Return the processes whose environment has one of these values for `variable`."""
    return [process for process in psutil.process_iter() if _environment(process).get(variable) in values]


def send_to_group(group: int, number: int) -> bool:
    """Send a signal (0: none) to a whole process group; False if no process is left in it."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):  # macOS raises the latter for a group of zombies
        return False
    return True


def started_at(pid: int) -> float | None:
    """Return when a process started (seconds since 1970); pid and start identify a process uniquely."""
    try:
        return psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        return None


def _termination(processes: Processes, grace: float) -> Iterator[float]:
    """End processes; yield the seconds to wait before each check."""
    deadline = time.monotonic() + grace
    # No system call waits for the end of a group or a session, so they are checked, less often each time.
    pause = _FIRST_PAUSE
    failures = 0
    while True:
        left = deadline - time.monotonic()
        try:
            processes.send(signal.SIGTERM if left > 0 else signal.SIGKILL)
            if not processes.members():
                return
            failures = 0
        except (OSError, MemoryError, RuntimeError) as error:
            if not is_outage(error):
                raise
            failures += 1
        wait = pause_after(failures) if failures else pause
        yield min(wait, left) if left > 0 else wait
        pause = min(pause * 1.5, _LONGEST_PAUSE)


def _running(id_of: Callable[[int], int], number: int) -> list[psutil.Process]:
    return [process for process in psutil.process_iter() if _id(id_of, process) == number and _runs(process)]


def _id(id_of: Callable[[int], int], process: psutil.Process) -> int | None:
    try:
        return id_of(process.pid)
    except (ProcessLookupError, PermissionError):
        return None


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _environment(process: psutil.Process) -> Mapping[str, str]:
    try:
        return process.environ() if _runs(process) else {}
    except psutil.Error:  # the process has ended, or it is another user's
        return {}
    except OSError as error:
        if is_outage(error):  # it may be marked, and its environment could not be read
            raise
        return {}


async def _marked_despite_outages(variable: str, values: Collection[str]) -> list[psutil.Process]:
    """Return the marked processes, once there are descriptors and memory to find them."""
    failures = 0
    while True:
        try:
            return await asyncio.to_thread(marked_processes, variable, values)
        except (OSError, MemoryError, RuntimeError) as error:
            if not is_outage(error):
                raise
            failures += 1
            await asyncio.sleep(pause_after(failures))
