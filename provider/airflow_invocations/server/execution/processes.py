"""Start a process in a new session, and follow its output and its end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

from ..outages import pause_after
from .termination import send_to_group

#: Takes output of a process; returns False while it can't store more.
Feed = Callable[[bytes], bool]

#: Process ids that `start` has started and that have not been waited for.
_started: set[int] = set()

#: The usual umask for an action's files; its workspace is closed to other users.
_UMASK = 0o022

#: Bytes that are read from a pipe at a time.
_CHUNK = 256 * 1024


class Process:
    """A process that was started with `start`, and its output.

    asyncio's own Process takes half as long again to start, and its `wait` returns only when the last pipe is
    closed; a child that the process leaves in the background holds the pipes open.
    """

    def __init__(self, process: subprocess.Popen[bytes], out: Feed, err: Feed) -> None:
        self._loop = asyncio.get_running_loop()
        #: The exit code; negative: the signal that ended the process.
        self.exit_code: asyncio.Future[int] = self._loop.create_future()
        self._exited: asyncio.Future[None] = self._loop.create_future()
        self._pipes_closed: asyncio.Future[None] = self._loop.create_future()
        self._process = process
        self._pipes: set[IO[bytes]] = set()
        #: Pipes that aren't read now, because their feed can't store more.
        self._held: set[IO[bytes]] = set()
        for pipe, feed in ((process.stdout, out), (process.stderr, err)):
            if pipe is not None:
                self._pipes.add(pipe)
                os.set_blocking(pipe.fileno(), False)
                self._loop.add_reader(pipe, self._read, pipe, feed)
        try:
            descriptor = os.pidfd_open(process.pid)
        except (AttributeError, OSError):  # not Linux, or an old kernel
            threading.Thread(target=self._wait, daemon=True).start()
        else:
            self._loop.add_reader(descriptor, self._exit_readable, descriptor)

    @property
    def pid(self) -> int:
        """Process id, which is also the id of the process's group and session."""
        return self._process.pid

    async def last_output(self, limit: float, give_up: asyncio.Event | None = None) -> None:
        """Wait until the pipes are closed, after the process's group has ended.

        :param limit: seconds, because a process outside the group may hold a pipe. While a feed can't store
            output, the wait continues.
        :param give_up: ends the wait for the feeds when it is set.
        """
        await asyncio.wait({self._pipes_closed}, timeout=limit)
        while self._held and not (give_up is not None and give_up.is_set()):
            await asyncio.wait({self._pipes_closed}, timeout=limit)
        await self._exited
        for pipe in tuple(self._pipes):
            self._close(pipe)

    def _exit_readable(self, descriptor: int) -> None:
        self._loop.remove_reader(descriptor)
        os.close(descriptor)
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
            # The process blocks when its pipe is full, as if its own disk were full.
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
    """Start a process that the running event loop follows.

    :param environment: the process's whole environment.
    :param out: gets the standard output. After it returns False it gets no more output until it returns True
        for an empty piece.
    :param err: gets the standard error in the same way.
    :raises OSError: the process can't be started.
    :raises ValueError: the command or the environment contains a null byte or other invalid text.
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
        send_to_group(process.pid, signal.SIGKILL)
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                asyncio.get_running_loop().remove_reader(pipe)
                pipe.close()
        process.wait()
        _started.discard(process.pid)
        raise


def started() -> frozenset[int]:
    """Return the ids of the processes that `start` has started and whose end isn't known yet."""
    return frozenset(_started)
