"""The local server as a real process, for every test of something that talks to it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil
import pytest

from ..support.waiting import until

T = TypeVar("T")


class LocalServer:
    """One local server on one data folder, that outlives its processes: start, stop or kill, start.

    `descriptors` is how many the process may have open, where that isn't the tests' own limit.
    """

    def __init__(self, data_dir: Path, *options: str, descriptors: int | None = None) -> None:
        self.data_dir = data_dir
        self.options = options
        self.descriptors = descriptors
        self.process: subprocess.Popen[bytes]
        self.endpoint = ""
        self.token = ""

    def start(self) -> None:
        """Start the process; returns when it accepts requests, fails the test if it doesn't."""
        with self._errors.open("wb") as errors:
            command = [sys.executable, "-m", "airflow_invocations.cli", "serve", "--port", "0"]
            command += ["--data-dir", str(self.data_dir), *self.options]
            if self.descriptors is not None:
                command = ["sh", "-c", f'ulimit -n {self.descriptors}; exec "$@"', "sh", *command]
            self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)
        announced = until(self._announced, within=60.0)
        self.endpoint, self.token = announced["endpoint"], announced["token"]

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Stop the process as a person would; its exit code."""
        self.process.send_signal(number)
        try:
            return self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the server didn't stop in 30 s: {self.errors}") from None

    def kill(self) -> None:
        """End the process as a crash would."""
        self.process.kill()
        self.process.wait()

    def restart(self, *options: str) -> None:
        """Stop and start again, with other options if any are given."""
        assert self.stop() == 0
        self.options = options or self.options
        self.start()

    @property
    def errors(self) -> str:
        """What the process has written to stderr since it was started last."""
        return self._errors.read_text(errors="replace")

    @property
    def is_running(self) -> bool:
        return self.process.poll() is None

    def request(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        """Send a request with the token."""
        headers = {"Authorization": f"Bearer {self.token}", **arguments.pop("headers", {})}
        # Without TLS there are no certificates, and loading them takes longer than the request.
        return httpx.request(
            method, f"{self.endpoint}/{path}", headers=headers, timeout=30, verify=False, **arguments
        )

    def action_processes(self) -> list[psutil.Process]:
        """What runs on behalf of this server's invocations."""
        mine = str(self.data_dir)
        return [
            process
            for process in psutil.process_iter()
            if _environment_of(process).get("ROBOTO_OUTPUT_DIR", "").startswith(mine)
        ]

    def end(self) -> None:
        """Stop the process if it runs; fails the test if an action outlives it."""
        try:
            if self.is_running:
                self.stop()
        finally:
            left = self.action_processes()
            for process in left:
                process.kill()
        assert not left, f"left running: {left}"

    @property
    def _errors(self) -> Path:
        return self.data_dir.with_name(f"{self.data_dir.name}.stderr")

    def _announced(self) -> dict[str, Any] | None:
        if not self.is_running:
            raise AssertionError(f"the server ended with {self.process.returncode}: {self.errors}")
        try:
            announced: dict[str, Any] = json.loads((self.data_dir / "server.json").read_text())
        except FileNotFoundError:
            return None
        return announced if announced["pid"] == self.process.pid else None


def _environment_of(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ() if process.status() != psutil.STATUS_ZOMBIE else {}
    except psutil.Error:
        return {}


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    """One server for all tests that leave it as they found it: eight slots, and half a second of grace."""
    server = LocalServer(tmp_path_factory.mktemp("server") / "data", "--slots", "8", "--grace", "0.5")
    server.start()
    yield server
    server.end()


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[Callable[..., LocalServer]]:
    """Start a server of the test's own, on a folder of its own, with the options it wants."""
    started: list[LocalServer] = []

    def start(*options: str) -> LocalServer:
        server = LocalServer(tmp_path / f"data-{len(started)}", *options)
        started.append(server)
        server.start()
        return server

    yield start
    for server in started:
        server.end()
