"""`invocations serve` as a process of the demo's: started, and stopped with SIGTERM."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from .session import Session

#: Seconds that the server is given to accept requests, and to stop.
PATIENCE = 30.0


class ServiceError(Exception):
    """The server didn't start; the message holds what it said."""


class LocalServer:
    """The local server on a data folder, on any free port. Use it with `with`.

    :param data_dir: everything it keeps.
    :param actions: the folder of the actions to register.
    :param slots: actions that run at once.
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
        # Of its own, also so that Ctrl-C in a terminal leaves it there until Airflow has stopped.
        self._session = Session(command, self.data_dir, self.log_file)

    @property
    def log_file(self) -> Path:
        """Where everything that it prints goes."""
        return self.data_dir / "server.log"

    def folder_of(self, dataset_id: str) -> Path:
        """The folder of a dataset that the server keeps itself."""
        return self.data_dir / "datasets" / dataset_id

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start it and wait until it accepts requests. Raises ServiceError."""
        self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._session.start(PATIENCE)
        deadline = time.monotonic() + PATIENCE
        while (announced := self._announced()) is None:
            if self._session.has_ended or time.monotonic() > deadline:
                said = self.log_file.read_text(encoding="utf-8", errors="replace").splitlines()[-10:]
                raise ServiceError("\n".join([*said, f"(from {self.log_file})"]))
            time.sleep(0.05)
        self.endpoint, self.token = announced["endpoint"], announced["token"]

    def stop(self) -> None:
        """Stop it: SIGTERM, and SIGKILL if that doesn't help."""
        self._session.stop(PATIENCE)

    def _announced(self) -> dict[str, str] | None:
        """What this server has announced; None while there is nothing, or only an earlier one's."""
        try:
            announced = json.loads((self.data_dir / "server.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return announced if announced["pid"] == self._session.number else None
