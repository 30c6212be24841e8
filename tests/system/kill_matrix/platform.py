"""The local server and its own records, independent of Airflow's."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from airflow_invocations.models import InvocationStatus
from airflow_invocations.server.admin import add_token, revoke_token

from ...integration.conftest import LocalServer

#: Waits until its gate is open (a FIFO with a writer), and fails once for each `.fail` file.
GATED = (
    'echo "begun"; : < "$ROBOTO_PARAM_gate"; echo "let through"; '
    'if rm "$ROBOTO_PARAM_gate.fail" 2>/dev/null; then echo "told to fail" >&2; exit 1; fi; echo "done"'
)


@dataclass(frozen=True, slots=True)
class Invocation:
    """One invocation in the server's database."""

    invocation_id: str
    idempotency_id: str | None
    status: InvocationStatus


class Platform(LocalServer):
    """A local server with actions that wait for the test."""

    def __init__(self, folder: Path, *options: str) -> None:
        super().__init__(folder / "data", *options)
        self._organisation = ""
        self._gates = folder / "gates"
        self._gates.mkdir(parents=True)

    def start(self) -> None:
        """Start the server; later starts use the same port."""
        super().start()
        self.options = (*self.options, "--port", self.endpoint.rpartition(":")[2])

    def repair(self) -> None:
        """Restore the server to running."""
        if not self.is_running:
            self.start()

    def register(self) -> None:
        """Create the action `gated`."""
        action = {
            "name": "gated",
            "parameters": [{"name": "gate", "required": True}],
            "container_parameters": {"command": ["sh", "-c", GATED]},
        }
        answer = self.request("POST", "v1/actions", json=action).raise_for_status()
        self._organisation = str(answer.json()["data"]["org_id"])

    def new_gate(self, name: str) -> Gate:
        """Create a closed gate."""
        return Gate(self._gates / name)

    def new_token(self, name: str) -> str:
        """Create a separate token that may invoke."""
        return add_token(self.data_dir, name, self._organisation, "invoke")

    def revoke_token(self, name: str) -> None:
        """Revoke a token."""
        revoke_token(self.data_dir, name)

    def invocations_of(self, dag_id: str, run_id: str, task_id: str) -> list[Invocation]:
        """Return all invocations of a task, oldest first."""
        source = f"airflow:dags/{dag_id}/runs/{run_id}/tasks/{task_id}"
        query = (
            "SELECT invocation_id, idempotency_id, last_status FROM invocations "
            "WHERE instr(source_id, ?) = 1 OR instr(source_id, ?) = 1 ORDER BY number"
        )
        with self._database() as database:
            rows = database.execute(query, (f"{source}?", f"{source}/")).fetchall()
        return [Invocation(row[0], row[1], InvocationStatus(row[2])) for row in rows]

    def delete(self, invocation_id: str) -> None:
        """Delete an invocation, as restoring a backup does."""
        with self._database() as database:
            for table in ("events", "states", "invocations"):
                database.execute(f"DELETE FROM {table} WHERE invocation_id = ?", (invocation_id,))
            database.commit()

    def cancel(self, invocation_id: str) -> None:
        """Cancel an invocation outside of Airflow."""
        self.request("POST", f"v1/actions/invocations/{invocation_id}/cancel").raise_for_status()

    def ended_at(self, invocation_id: str) -> float | None:
        """Return when an invocation reached its terminal status (seconds since 1970)."""
        query = "SELECT max(timestamp) FROM events WHERE invocation_id = ? AND status >= 5"
        with self._database() as database:
            (moment,) = database.execute(query, (invocation_id,)).fetchone()
        return None if moment is None else moment / 1e6

    @contextmanager
    def _database(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self.data_dir / "server.db", timeout=30)) as database:
            yield database


class Gate:
    """A gate that blocks an action until the test opens it: a FIFO without a writer."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.path = path
        self._writer: int | None = None

    def open(self) -> None:
        """Open the gate for waiting and later actions."""
        if self._writer is None:
            self._writer = os.open(self.path, os.O_RDWR)

    def fail_once(self) -> None:
        """Make the next action that passes fail."""
        self.path.with_name(f"{self.path.name}.fail").touch()

    def close(self) -> None:
        """Close the gate."""
        if self._writer is not None:
            os.close(self._writer)
            self._writer = None
