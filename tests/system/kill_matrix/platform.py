"""The local server, asked for the truth: its own records, not what Airflow says of them."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from airflow_invocations.models import InvocationStatus
from airflow_invocations.server.admin import add_token, revoke_token

from ...integration.conftest import Service

#: Waits until its gate is open (a FIFO that somebody writes to), fails once for each `.fail` beside it.
GATED = (
    'echo "begun"; : < "$ROBOTO_PARAM_gate"; echo "let through"; '
    'if rm "$ROBOTO_PARAM_gate.fail" 2>/dev/null; then echo "told to fail" >&2; exit 1; fi; echo "done"'
)


@dataclass(frozen=True, slots=True)
class Invocation:
    """One invocation, as the service's database has it."""

    invocation_id: str
    idempotency_id: str | None
    status: InvocationStatus


class Platform(Service):
    """A local server whose actions wait for the test."""

    def __init__(self, folder: Path, *options: str) -> None:
        super().__init__(folder / "data", *options)
        self._organisation = ""
        self._gates = folder / "gates"
        self._gates.mkdir(parents=True)

    def start(self) -> None:
        """Start it; the next time it is started, it listens where it did before."""
        super().start()
        self.options = (*self.options, "--port", self.endpoint.rpartition(":")[2])

    def repair(self) -> None:
        """Have it run again, whatever happened to it."""
        if not self.is_running:
            self.start()

    def register(self) -> None:
        """Make the action `gated`."""
        action = {
            "name": "gated",
            "parameters": [{"name": "gate", "required": True}],
            "container_parameters": {"command": ["sh", "-c", GATED]},
        }
        answer = self.request("POST", "v1/actions", json=action).raise_for_status()
        self._organisation = str(answer.json()["data"]["org_id"])

    def new_gate(self, name: str) -> Gate:
        """A closed gate."""
        return Gate(self._gates / name)

    def new_token(self, name: str) -> str:
        """A token that invokes, and can be revoked without harm to anybody else."""
        return add_token(self.data_dir, name, self._organisation, "invoke")

    def revoke_token(self, name: str) -> None:
        """Make a token worthless."""
        revoke_token(self.data_dir, name)

    def invocations_of(self, dag_id: str, run_id: str, task_id: str) -> list[Invocation]:
        """Everything that a task has ever caused here, oldest first."""
        source = f"airflow:dags/{dag_id}/runs/{run_id}/tasks/{task_id}"
        query = (
            "SELECT invocation_id, idempotency_id, last_status FROM invocations "
            "WHERE instr(source_id, ?) = 1 OR instr(source_id, ?) = 1 ORDER BY number"
        )
        with self._database() as database:
            rows = database.execute(query, (f"{source}?", f"{source}/")).fetchall()
        return [Invocation(row[0], row[1], InvocationStatus(row[2])) for row in rows]

    def delete(self, invocation_id: str) -> None:
        """Lose an invocation, as a platform does that was restored from a backup."""
        with self._database() as database:
            for table in ("events", "states", "invocations"):
                database.execute(f"DELETE FROM {table} WHERE invocation_id = ?", (invocation_id,))
            database.commit()

    def cancel(self, invocation_id: str) -> None:
        """Cancel an invocation, as somebody who isn't Airflow does."""
        self.request("POST", f"v1/actions/invocations/{invocation_id}/cancel").raise_for_status()

    def ended_at(self, invocation_id: str) -> float | None:
        """When an invocation took its terminal status (seconds since 1970)."""
        query = "SELECT max(timestamp) FROM events WHERE invocation_id = ? AND status >= 5"
        with self._database() as database:
            (moment,) = database.execute(query, (invocation_id,)).fetchone()
        return None if moment is None else moment / 1e6

    @contextmanager
    def _database(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self.data_dir / "server.db", timeout=30)) as database:
            yield database


class Gate:
    """What an action stands before until the test opens it: a FIFO without a writer."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.path = path
        self._writer: int | None = None

    def open(self) -> None:
        """Let everybody through who waits, and who comes later."""
        if self._writer is None:
            self._writer = os.open(self.path, os.O_RDWR)

    def fail_once(self) -> None:
        """Have the next one that comes through fail."""
        self.path.with_name(f"{self.path.name}.fail").touch()

    def close(self) -> None:
        """Let nobody through any more."""
        if self._writer is not None:
            os.close(self._writer)
            self._writer = None
