"""Processes, each in a group of its own: started, followed, and ended whole, also by a later life."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import IO, TypeVar

import psutil

from ..outages import is_outage, pause_after

#: Takes what a process wrote; answers False while it can keep no more.
Feed = Callable[[bytes], bool]

_T = TypeVar("_T")

#: Processes that `start` has started and that have not been waited for.
_started: set[int] = set()

#: Seconds by which two readings of one process's start may differ.
_SAME_START = 1.0

#: What others may not do with the files that an action makes: the usual. Its workspace is closed to them.
_UMASK = 0o022

#: Bytes that are read from a pipe at a time.
_CHUNK = 256 * 1024


class Process:
    """A process that was started with `start`, and what it writes.

    asyncio has such a thing too, which takes half as long again to start one, and whose `wait` returns when
    the last pipe is closed: a child that the process leaves behind in the background holds them open.
    """

    def __init__(self, process: subprocess.Popen[bytes], out: Feed, err: Feed) -> None:
        self._loop = asyncio.get_running_loop()
        #: Negative: the signal that ended it.
        self.exit_code: asyncio.Future[int] = self._loop.create_future()
        self._exited: asyncio.Future[None] = self._loop.create_future()
        self._pipes_closed: asyncio.Future[None] = self._loop.create_future()
        self._process = process
        self._pipes: set[IO[bytes]] = set()
        #: Pipes that aren't read for now, as nothing more can be kept.
        self._held: set[IO[bytes]] = set()
        for pipe, feed in ((process.stdout, out), (process.stderr, err)):
            if pipe is not None:
                self._pipes.add(pipe)
                os.set_blocking(pipe.fileno(), False)
                self._loop.add_reader(pipe, self._read, pipe, feed)
        try:
            end = os.pidfd_open(process.pid)
        except (AttributeError, OSError):  # not Linux, or an old one
            threading.Thread(target=self._wait, daemon=True).start()
        else:
            self._loop.add_reader(end, self._ended_by, end)

    @property
    def pid(self) -> int:
        """Its process id, and its group's."""
        return self._process.pid

    async def last_output(self, patience: float, give_up: asyncio.Event | None = None) -> None:
        """Once its group is gone: wait until its pipes are closed, at most `patience` seconds.

        While what it wrote cannot be kept, the wait goes on until it can, or until `give_up` is set.
        """
        await asyncio.wait({self._pipes_closed}, timeout=patience)
        while self._held and not (give_up is not None and give_up.is_set()):
            await asyncio.wait({self._pipes_closed}, timeout=patience)
        await self._exited
        for pipe in tuple(self._pipes):
            self._close(pipe)

    def _ended_by(self, end: int) -> None:
        self._loop.remove_reader(end)
        os.close(end)
        self._ended(self._process.wait())

    def _wait(self) -> None:
        code = self._process.wait()
        with contextlib.suppress(RuntimeError):  # the loop is closed: the server is stopping
            self._loop.call_soon_threadsafe(self._ended, code)

    def _ended(self, code: int) -> None:
        _started.discard(self.pid)
        self._exited.set_result(None)
        self.exit_code.set_result(code)

    def _read(self, pipe: IO[bytes], feed: Feed) -> None:
        try:
            data = os.read(pipe.fileno(), _CHUNK)
        except BlockingIOError:
            return
        if not data:
            self._close(pipe)
            return
        if not feed(data):
            # The process waits at its full pipe, as at a disk that is full for itself.
            self._loop.remove_reader(pipe)
            self._held.add(pipe)
            self._loop.call_later(pause_after(1), self._feed_again, pipe, feed, 1)

    def _feed_again(self, pipe: IO[bytes], feed: Feed, failures: int) -> None:
        if pipe not in self._held:
            return
        if feed(b""):
            self._held.remove(pipe)
            self._loop.add_reader(pipe, self._read, pipe, feed)
        else:
            failures += 1
            self._loop.call_later(pause_after(failures), self._feed_again, pipe, feed, failures)

    def _close(self, pipe: IO[bytes]) -> None:
        self._loop.remove_reader(pipe)
        self._held.discard(pipe)
        pipe.close()
        self._pipes.remove(pipe)
        if not self._pipes and not self._pipes_closed.done():
            self._pipes_closed.set_result(None)


def start(
    command: Sequence[str],
    folder: Path,
    environment: Mapping[str, str],
    out: Feed,
    err: Feed,
) -> Process:
    """Start a process in `folder`, with nothing but `environment`; `out` and `err` are fed what it writes.

    A feed that answers False is given no more until it takes an empty piece and answers True.

    The running event loop follows it.

    Raises:
        OSError: it can't be started.
        ValueError: the command or the environment has something in it that no process can be given.
    """
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=folder,
        env=environment,
        start_new_session=True,
        umask=_UMASK,
    )
    _started.add(process.pid)
    try:
        return Process(process, out, err)
    except BaseException:
        send(process.pid, signal.SIGKILL)
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                asyncio.get_running_loop().remove_reader(pipe)
                pipe.close()
        process.wait()
        _started.discard(process.pid)
        raise


def started() -> frozenset[int]:
    """The processes that `start` has started and whose end isn't known yet."""
    return frozenset(_started)


def began(pid: int) -> float | None:
    """When a process started, in seconds since 1970; with its pid it names a process for good."""
    try:
        return psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        return None


def send(group: int, number: int) -> bool:
    """Send a signal (0: none) to a whole process group; False if nothing is left of it."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):  # macOS says the latter of a group of zombies
        return False
    return True


async def end(group: int, grace: float) -> None:
    """End a process group: SIGTERM, SIGKILL after `grace` seconds; returns when all of it is gone."""
    send(group, signal.SIGTERM)
    try:
        async with asyncio.timeout(grace):
            await _gone(group)
    except TimeoutError:
        send(group, signal.SIGKILL)
        await _gone(group)


async def end_left_over(group: int, leader_began: float) -> None:
    """Kill what an earlier life left running; a group number that was given out again is left alone."""
    leader = began(group)
    if leader is not None and abs(leader - leader_began) > _SAME_START:
        return
    send(group, signal.SIGKILL)
    await _gone(group)


async def end_marked(variable: str, values: Collection[str]) -> None:
    """Kill every process in whose environment `variable` has one of these values.

    That finds what no group leads to: what was started in the instant before its group was recorded, and
    what has left its group.
    """
    while strays := await _repeated(lambda: asyncio.to_thread(_marked, variable, values)):
        for stray in strays:
            with contextlib.suppress(psutil.NoSuchProcess):
                stray.kill()
        await asyncio.sleep(0.01)


def _marked(variable: str, values: Collection[str]) -> list[psutil.Process]:
    return [process for process in psutil.process_iter() if _environment(process).get(variable) in values]


def _environment(process: psutil.Process) -> Mapping[str, str]:
    try:
        return process.environ() if _is_running(process) else {}
    except psutil.Error:  # gone, or another user's
        return {}
    except OSError as error:
        if is_outage(error):  # it may be marked, and could not be looked at
            raise
        return {}


async def _gone(group: int) -> None:
    # No system call waits for a process group to be empty, so this looks, a little less often each time.
    pause = 0.01
    while await _repeated(lambda: _lives(group)):
        await asyncio.sleep(pause)
        pause = min(pause * 1.5, 0.25)


async def _repeated(look: Callable[[], Awaitable[_T]]) -> _T:
    """What `look` answers, once there are descriptors and memory to look with."""
    failures = 0
    while True:
        try:
            return await look()
        except (OSError, MemoryError, RuntimeError) as error:
            if not is_outage(error):
                raise
            failures += 1
            await asyncio.sleep(pause_after(failures))


async def _lives(group: int) -> bool:
    if not send(group, 0):
        return False
    # Zombies take signals too, so what is left must be looked at.
    return any(_is_running(process) for process in psutil.process_iter() if _group_of(process.pid) == group)


def _is_running(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _group_of(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except (ProcessLookupError, PermissionError):
        return None
