"""`invocations serve` as a process of the demo's: started, and stopped with SIGTERM."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO

#: Seconds that the service is given to accept requests, and to stop.
PATIENCE = 30.0


class ServiceError(Exception):
    """The service didn't start; the message holds what it said."""


class LocalService:
    """The local service on a data folder, on any free port. Use it with `with`.

    :param data_dir: everything it keeps.
    :param actions: the folder of the actions to register.
    :param slots: actions that run at once.
    """

    def __init__(self, data_dir: Path, actions: Path, slots: int) -> None:
        self.data_dir = data_dir
        self.endpoint = ""
        self.token = ""
        self._command = [
            *(sys.executable, "-m", "airflow_invocations.cli", "serve"),
            *("--port", "0", "--data-dir", str(data_dir), "--actions", str(actions), "--slots", str(slots)),
        ]
        self._process: subprocess.Popen[bytes] | None = None
        self._log: TextIO | None = None

    @property
    def log_file(self) -> Path:
        """Where everything that it prints goes."""
        return self.data_dir / "service.log"

    def output_of(self, invocation_id: str) -> Path:
        """The folder in which an invocation has left its results."""
        return self.data_dir / "workspaces" / invocation_id / "output"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start it and wait until it accepts requests. Raises ServiceError."""
        self.data_dir.mkdir(parents=True, exist_ok=True)
        announcement = self.data_dir / "service.json"
        announcement.unlink(missing_ok=True)  # of a service that was killed
        self._log = self.log_file.open("a", encoding="utf-8")
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.DEVNULL, stdout=self._log, stderr=subprocess.STDOUT
        )
        deadline = time.monotonic() + PATIENCE
        while not announcement.exists():
            if self._process.poll() is not None or time.monotonic() > deadline:
                said = self.log_file.read_text(encoding="utf-8", errors="replace").splitlines()[-10:]
                raise ServiceError("\n".join([*said, f"(from {self.log_file})"]))
            time.sleep(0.05)
        announced = json.loads(announcement.read_text(encoding="utf-8"))
        self.endpoint, self.token = announced["endpoint"], announced["token"]

    def stop(self) -> None:
        """Stop it: SIGTERM, and SIGKILL if that doesn't help."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
        if self._log is not None:
            self._log.close()
            self._log = None
