"""A command in a session of its own, so that everything it starts can be found and ended, even later."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil


class Session:
    """A command, and the processes that it starts, whether or not their parents still live.

    Its number is kept in a file until all of it has ended: the next one in the same folder ends what a
    demo that was killed left running.

    :param command: the command line; nothing secret is on it.
    :param folder: where it runs; nothing else may run there.
    :param log_file: where everything that it prints goes, after what is there.
    :param environment: None: that of this process.
    """

    def __init__(
        self,
        command: Sequence[str],
        folder: Path,
        log_file: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._command = command
        self._folder = folder
        self._log_file = log_file
        self._environment = environment
        self._leader: subprocess.Popen[bytes] | None = None

    @property
    def number(self) -> int | None:
        """The session's number, which is the command's process id; None: it isn't started."""
        return None if self._leader is None else self._leader.pid

    @property
    def has_ended(self) -> bool:
        """Whether the command itself has ended; what it started may still run."""
        return self._leader is None or self._leader.poll() is not None

    def start(self, grace: float) -> None:
        """End what an earlier session in this folder left running, and start the command."""
        self._end_left_over(grace)
        with self._log_file.open("ab") as log:
            self._leader = subprocess.Popen(
                self._command,
                cwd=self._folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._number_file.write_text(str(self._leader.pid), encoding="ascii")

    def stop(self, grace: float) -> None:
        """End all of it: SIGTERM to each process, SIGKILL after `grace` seconds; returns when it is gone."""
        if self._leader is None:
            return
        _end(self._leader.pid, grace)
        self._leader.wait()
        self._leader = None
        self._number_file.unlink(missing_ok=True)

    @property
    def _number_file(self) -> Path:
        return self._folder / "session"

    def _end_left_over(self, grace: float) -> None:
        try:
            number = int(self._number_file.read_text(encoding="ascii"))
        except (FileNotFoundError, ValueError):
            return
        # A number may have been given out again since: ours is the session that works in this folder.
        if any(_works_in(process, self._folder) for process in _members(number)):
            _end(number, grace)
        self._number_file.unlink(missing_ok=True)


def _end(session: int, grace: float) -> None:
    for number, patience in ((signal.SIGTERM, grace), (signal.SIGKILL, grace)):
        told: set[psutil.Process] = set()
        deadline = time.monotonic() + patience
        # No system call waits for a session to be empty. Who is started meanwhile is told too.
        while members := _members(session):
            for process in members - told:
                _send(process, number)
            told |= members
            if time.monotonic() > deadline:
                break
            time.sleep(0.05)


def _members(session: int) -> set[psutil.Process]:
    return {process for process in psutil.process_iter() if _is_in(process, session)}


def _is_in(process: psutil.Process, session: int) -> bool:
    try:
        # A zombie has ended; whether anybody asks for its exit code isn't ours to wait for.
        return os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE
    except (ProcessLookupError, PermissionError, psutil.Error):
        return False


def _works_in(process: psutil.Process, folder: Path) -> bool:
    try:
        return Path(process.cwd()) == folder
    except psutil.Error:
        return False


def _send(process: psutil.Process, number: signal.Signals) -> None:
    try:
        process.send_signal(number)
    except psutil.Error:
        return
