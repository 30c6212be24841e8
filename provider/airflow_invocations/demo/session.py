"""Run a command in a separate session, so that all its processes can be found and ended, even later."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from ..server.execution.termination import ProcessSession, terminate_blocking


class Session:
    """A command and all processes that it starts, also those whose parents have ended.

    The session id is stored in a file until all processes have ended. After a killed demo, the next session
    in the same folder ends the processes that are left.

    :param command: the command line, without secrets.
    :param folder: working directory; no other command may run in it.
    :param log_file: file to which the output is appended.
    :param environment: environment variables; None: those of this process.
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
    def id(self) -> int | None:
        """The session id, which is the command's process id; None if it isn't started."""
        return None if self._leader is None else self._leader.pid

    @property
    def has_ended(self) -> bool:
        """Whether the command itself has ended; processes that it started may still run."""
        return self._leader is None or self._leader.poll() is not None

    def start(self, grace: float) -> None:
        """End processes that an earlier session in this folder left, then start the command.

        :param grace: seconds between SIGTERM and SIGKILL.
        """
        self._end_orphans(grace)
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
        self._id_file.write_text(str(self._leader.pid), encoding="ascii")

    def stop(self, grace: float) -> None:
        """End all processes: SIGTERM, then SIGKILL after `grace` seconds. Returns when they have ended."""
        if self._leader is None:
            return
        terminate_blocking(ProcessSession(self._leader.pid), grace)
        self._leader.wait()
        self._leader = None
        self._id_file.unlink(missing_ok=True)

    @property
    def _id_file(self) -> Path:
        return self._folder / "session"

    def _end_orphans(self, grace: float) -> None:
        try:
            session_id = int(self._id_file.read_text(encoding="ascii"))
        except (FileNotFoundError, ValueError):
            return
        # The id may have been reused: only a session that runs in this folder is an earlier one of it.
        session = ProcessSession(session_id)
        if any(_runs_in(process, self._folder) for process in session.members()):
            terminate_blocking(session, grace)
        self._id_file.unlink(missing_ok=True)


def _runs_in(process: psutil.Process, folder: Path) -> bool:
    try:
        return Path(process.cwd()) == folder
    except psutil.Error:
        return False
