"""What the local server is told when it starts, and the limits that it keeps to."""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path

from ..runtime.secrets import write_private

#: The largest request body, in bytes.
MAX_BODY = 8 * 1024 * 1024

#: Minutes that an action may take when neither the action nor the invocation says.
DEFAULT_TIMEOUT = 12 * 60


def identity_of(data_dir: Path) -> str:
    """The random name of a data folder; the first call makes it."""
    path = data_dir / "identity"
    if not path.exists():
        write_private(path, f"{secrets.token_hex(8)}\n")
    return path.read_text(encoding="ascii").strip()


@dataclass(frozen=True, slots=True)
class ServiceSettings:
    """The options of `invocations serve`."""

    #: Everything the server keeps: database, logs, workspaces, server.json.
    data_dir: Path
    host: str = "127.0.0.1"
    #: 0: any free one.
    port: int = 0
    #: Names that requests may be sent to, beside addresses, localhost and this machine's name.
    allowed_hosts: tuple[str, ...] = ()
    #: How many actions run at once; 0 accepts invocations and runs none.
    slots: int = field(default_factory=lambda: os.cpu_count() or 1)
    #: A folder whose subfolders with an action.json are registered at the start.
    actions_dir: Path | None = None
    #: Days for which the workspace of an invocation that has ended is kept.
    keep_workspaces: float = 7.0
    #: Seconds between SIGTERM and SIGKILL when an action is stopped.
    grace: float = 5.0
    #: Whether the role invoke may change what an action runs, see `overrides`.
    allow_overrides: bool = False

    @property
    def database(self) -> Path:
        """The SQLite file."""
        return self.data_dir / "server.db"

    @property
    def datasets(self) -> Path:
        """The folder of those datasets' folders that aren't linked to one."""
        return self.data_dir / "datasets"

    @property
    def secrets_key(self) -> Path:
        """The key that secrets are sealed with."""
        return self.data_dir / "secrets.key"

    @property
    def identity(self) -> str:
        """What tells this data folder from every other, also from a copy of it elsewhere."""
        return f"{identity_of(self.data_dir)} {self.data_dir}"

    @property
    def announcement(self) -> Path:
        """Where endpoint, token and pid stand while the server accepts requests."""
        return self.data_dir / "server.json"

    @property
    def logs(self) -> Path:
        """The folder of log files, one an invocation."""
        return self.data_dir / "logs"

    @property
    def workspaces(self) -> Path:
        """The folder of workspaces, one an invocation."""
        return self.data_dir / "workspaces"
