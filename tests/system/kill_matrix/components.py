"""One component of Airflow as a session of processes, which can be stopped, killed, frozen and thawed."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil

from airflow_invocations.server.execution.termination import ProcessSession

#: Seconds between SIGTERM and SIGKILL when a component is stopped.
GRACE = 20.0


class Component:
    """`airflow <arguments>` with all its processes; the output is written to `<name>.log`.

    :param name: name of the component in the matrix.
    :param arguments: the command line behind `airflow`.
    :param home: AIRFLOW_HOME.
    :param environment: the complete environment.
    """

    def __init__(
        self, name: str, arguments: Sequence[str], home: Path, environment: Mapping[str, str], python: str
    ) -> None:
        self.name = name
        self._command = [python, "-m", *arguments]
        self._home = home
        self._environment = environment
        self._leader: subprocess.Popen[bytes] | None = None

    @property
    def log_file(self) -> Path:
        """The file with its output, over all restarts."""
        return self._home / f"{self.name}.log"

    @property
    def session(self) -> int | None:
        """The id of the session of all its processes; None if it isn't started."""
        return None if self._leader is None else self._leader.pid

    @property
    def was_started(self) -> bool:
        """Whether the test has started it and not ended it."""
        return self._leader is not None

    @property
    def is_running(self) -> bool:
        return self._leader is not None and self._leader.poll() is None

    def wait(self) -> int:
        """Wait until it exits; return its exit code."""
        assert self._leader is not None
        return self._leader.wait(120)

    def start(self) -> None:
        with self.log_file.open("ab") as log:
            self._leader = subprocess.Popen(
                self._command,
                cwd=self._home,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def stop(self) -> None:
        """End it as a deployment does: SIGTERM to its first process, then SIGKILL to remaining ones."""
        if self._leader is None:
            return
        self._leader.terminate()
        _until(lambda: not self._members(), GRACE)
        self.kill()

    def terminate_all(self) -> None:
        """Send SIGTERM to all its processes at the same time, as some process managers do."""
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL to all its processes at the same time, like a crash of the machine."""
        if self._leader is None:
            return
        _until(lambda: not self._send(signal.SIGKILL), GRACE)
        self._leader.wait()
        self._leader = None

    def freeze(self) -> None:
        """Suspend its processes (SIGSTOP)."""
        self._send(signal.SIGSTOP)

    def thaw(self) -> None:
        """Resume suspended processes (SIGCONT)."""
        self._send(signal.SIGCONT)

    def log_tail(self, lines: int = 20) -> str:
        text = self.log_file.read_text(errors="replace") if self.log_file.exists() else ""
        return "\n".join([f"--- {self.log_file}", *text.splitlines()[-lines:]])

    def _send(self, number: signal.Signals) -> list[psutil.Process]:
        members = self._members()
        for process in members:
            send(process, number)
        return members

    def _members(self) -> list[psutil.Process]:
        if self._leader is None:
            return []
        self._leader.poll()  # reap the leader if it has ended
        return ProcessSession(self._leader.pid).members()


def send(process: psutil.Process, number: signal.Signals) -> None:
    """Send a signal to a process that may have ended."""
    try:
        process.send_signal(number)
    except psutil.Error:
        return


def _until(done: Callable[[], bool], patience: float) -> None:
    # No system call waits for a session to be empty.
    deadline = time.monotonic() + patience
    while not done() and time.monotonic() < deadline:
        time.sleep(0.05)
