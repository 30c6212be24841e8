"""What the server writes about its own faults: never a token, never a secret's value."""

from __future__ import annotations

import os
import pty
import re
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from airflow_invocations.server.admin import add_token, set_secret

from ...support.waiting import until
from ..conftest import LocalServer

SECRET = "S3cr3t/of-the-map+server"


def break_table(server: LocalServer, table: str) -> None:
    """Take a table away: what reads it fails from now on."""
    with sqlite3.connect(server.data_dir / "server.db") as connection:
        connection.execute(f"ALTER TABLE {table} RENAME TO {table}_away")
    connection.close()


def break_record(server: LocalServer, action: str) -> None:
    """Damage an action's record: every request that reads it is a 500 from now on."""
    body = {"name": action, "container_parameters": {"command": ["true"]}}
    assert server.request("POST", "v1/actions", json=body).status_code == 200
    with sqlite3.connect(server.data_dir / "server.db") as connection:
        connection.execute("UPDATE actions SET record = '17' WHERE name = ?", (action,))
    connection.close()


class OnTerminal(LocalServer):
    """A server whose stderr is a terminal, as where a person has started it."""

    def start(self) -> None:
        self._screen, terminal = pty.openpty()
        command = [sys.executable, "-m", "airflow_invocations.cli", "serve", "--port", "0"]
        self.process = subprocess.Popen(
            [*command, "--data-dir", str(self.data_dir), *self.options],
            stdout=subprocess.DEVNULL,
            stderr=terminal,
        )
        os.close(terminal)
        threading.Thread(target=self._record, daemon=True).start()
        announced = until(self._announced, within=60.0)
        self.endpoint, self.token = announced["endpoint"], announced["token"]

    def _record(self) -> None:
        with self._errors.open("wb", buffering=0) as file:
            while True:
                try:
                    file.write(os.read(self._screen, 65536))
                except OSError:  # the process has ended
                    break
        os.close(self._screen)


@contextmanager
def running(server: LocalServer) -> Iterator[LocalServer]:
    server.start()
    try:
        yield server
    finally:
        server.end()


@pytest.mark.parametrize("kind", [LocalServer, OnTerminal], ids=["programs", "people"])
def test_a_500_writes_no_token(kind: type[LocalServer], tmp_path: Path) -> None:
    with running(kind(tmp_path / "data")) as server:
        tokens = {server.token, add_token(server.data_dir, "ada", "og_local", "read")}
        break_record(server, "broken")
        for token in tokens:
            answer = server.request("GET", "v1/actions/broken", headers={"Authorization": f"Bearer {token}"})
            assert answer.status_code == 500
            assert token not in answer.text
        errors = until(
            lambda: server.errors if len(re.findall("Traceback|exc_type", server.errors)) > 1 else ""
        )
        assert "Traceback" in errors or "exc_type" in errors
        assert not [token for token in tokens if token in errors]
        assert "Bearer" not in errors


def test_an_invocation_that_breaks_writes_no_secret(
    start_server: Callable[..., LocalServer], tmp_path: Path
) -> None:
    server = start_server("--slots", "1")
    set_secret(server.data_dir, "map_server", SECRET, "og_local")
    (tmp_path / "drives").mkdir()
    dataset = server.request("POST", "v1/datasets", json={"name": "drives"}).json()["data"]["dataset_id"]
    gate = tmp_path / "gate"
    _create(server, "waits", f"while [ ! -e {gate} ]; do sleep 0.05; done")
    _create(server, "reads", "true")
    _invoke(server, "waits")
    broken = _invoke(
        server, "reads", data_source_id=dataset, input_data=["*.csv"],
        parameter_values={"password": "roboto-secret://map_server"},
    )  # fmt: skip
    break_table(server, "datasets")
    gate.touch()
    until(lambda: "no such table" in server.errors)
    assert SECRET not in server.errors
    server.request("POST", f"v1/actions/invocations/{broken}/cancel")


def _create(server: LocalServer, name: str, command: str) -> None:
    container = {"command": ["sh", "-c", command]}
    server.request(
        "POST", "v1/actions", json={"name": name, "container_parameters": container}
    ).raise_for_status()


def _invoke(server: LocalServer, name: str, **fields: Any) -> str:
    body = {"invocation_source": "Manual", **fields}
    answer: httpx.Response = server.request("POST", f"v1/actions/{name}/invoke", json=body)
    return str(answer.raise_for_status().json()["data"]["invocation_id"])
