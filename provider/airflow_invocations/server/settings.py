"""Settings of the local server, and the limits that no option changes."""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path

from ..runtime.secrets import write_private

#: The largest request body, in bytes.
MAX_BODY = 8 * 1024 * 1024

#: Minutes that an action may take if neither the action nor the invocation sets a timeout.
DEFAULT_TIMEOUT = 12 * 60


class StartError(Exception):
    """The server, or a command on its data folder, can't start; the message gives the reason and a remedy."""


def identity_of(data_dir: Path) -> str:
    """Return the random name of a data folder; the first call creates it."""
    path = data_dir / "identity"
    if not path.exists():
        write_private(path, f"{secrets.token_hex(8)}\n")
    return path.read_text(encoding="ascii").strip()


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """The options of `invocations serve`, and the server's intervals."""

    #: The folder of everything that the server stores: database, logs, workspaces, server.json.
    data_dir: Path
    host: str = "127.0.0.1"
    #: 0: any free port.
    port: int = 0
    #: Host names that requests may use, besides addresses, localhost and the machine's name.
    allowed_hosts: tuple[str, ...] = ()
    #: How many actions run at the same time; 0: invocations are accepted and none runs.
    slots: int = field(default_factory=lambda: os.cpu_count() or 1)
    #: A folder whose subfolders with an action.json are registered at the start.
    actions_dir: Path | None = None
    #: Days to keep the workspace of an invocation that has ended.
    keep_workspaces: float = 7.0
    #: Seconds between SIGTERM and SIGKILL when an action is stopped.
    grace: float = 5.0
    #: Whether the role `invoke` may change what an action runs; see `overrides`.
    allow_overrides: bool = False
    #: Seconds between two heartbeats of the runner.
    heartbeat_interval: float = 5.0
    #: Seconds without a heartbeat after which a runner is considered dead.
    heartbeat_timeout: float = 30.0
    #: Seconds between two passes of the reconciler.
    reconcile_interval: float = 5.0
    #: Seconds until an abort is attempted again, at most; the pauses grow exponentially with full jitter.
    abort_retry_max: float = 300.0
    #: Seconds between two removals of old workspaces.
    cleanup_interval: float = 600.0
    #: Seconds that open requests may take when the server stops.
    shutdown_timeout: int = 3

    @property
    def database(self) -> Path:
        """The SQLite file."""
        return self.data_dir / "server.db"

    @property
    def datasets(self) -> Path:
        """The folder of the datasets without a linked folder."""
        return self.data_dir / "datasets"

    @property
    def uploads(self) -> Path:
        """The folder of uploads that aren't complete."""
        return self.data_dir / "uploads"

    @property
    def secrets_key(self) -> Path:
        """The file of the key that encrypts secrets."""
        return self.data_dir / "secrets.key"

    @property
    def identity(self) -> str:
        """A text that identifies this data folder; a copy of the folder elsewhere has another one."""
        return f"{identity_of(self.data_dir)} {self.data_dir}"

    @property
    def announcement(self) -> Path:
        """The file with endpoint, token and pid, which exists while the server accepts requests."""
        return self.data_dir / "server.json"

    @property
    def logs(self) -> Path:
        """The folder of log files, one per invocation."""
        return self.data_dir / "logs"

    @property
    def workspaces(self) -> Path:
        """The folder of workspaces, one per invocation."""
        return self.data_dir / "workspaces"
