"""Run `invocations serve` as a child process of the demo."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from .session import Session

#: Longest time for the server to accept requests, and to stop, in seconds.
TIMEOUT = 30.0


class LocalServerError(Exception):
    """The local server didn't start; the message has the end of its log."""


class LocalServer:
    """The local server with a data folder, on any free port. Use it as a context manager, which stops it.

    :param data_dir: folder of the server's data.
    :param actions: folder of the actions to register.
    :param slots: number of actions that run at the same time.
    """

    def __init__(self, data_dir: Path, actions: Path, slots: int) -> None:
        self.data_dir = data_dir.resolve()
        self.endpoint = ""
        self.token = ""
        command = [
            *(sys.executable, "-m", "airflow_invocations.cli", "serve"),
            *("--port", "0", "--data-dir", str(self.data_dir)),
            *("--actions", str(actions.resolve()), "--slots", str(slots)),
        ]
        # In a separate session Ctrl-C doesn't reach it, so it runs until Airflow has stopped.
        self._session = Session(command, self.data_dir, self.log_file)

    @property
    def log_file(self) -> Path:
        """The file with its output."""
        return self.data_dir / "server.log"

    def folder_of(self, dataset_id: str) -> Path:
        """Return the folder of a dataset that the server stores itself."""
        return self.data_dir / "datasets" / dataset_id

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start the server and wait until it accepts requests. Raises LocalServerError."""
        self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._session.start(TIMEOUT)
        deadline = time.monotonic() + TIMEOUT
        while (announcement := self._read_announcement()) is None:
            if self._session.has_ended or time.monotonic() > deadline:
                lines = self.log_file.read_text(encoding="utf-8", errors="replace").splitlines()[-10:]
                raise LocalServerError("\n".join([*lines, f"(from {self.log_file})"]))
            time.sleep(0.05)
        self.endpoint, self.token = announcement["endpoint"], announcement["token"]

    def stop(self) -> None:
        """Stop the server: SIGTERM, then SIGKILL after TIMEOUT seconds."""
        self._session.stop(TIMEOUT)

    def _read_announcement(self) -> dict[str, str] | None:
        """Return the address and token that this server has written; None before that."""
        try:
            announcement = json.loads((self.data_dir / "server.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return announcement if announcement["pid"] == self._session.id else None
