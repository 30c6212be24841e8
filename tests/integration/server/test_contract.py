"""What scripts may rely on: server.json, the options, clear lines, and clean ends."""

from __future__ import annotations

import json
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from ...support.published import actions as published
from ...support.waiting import until
from ..conftest import LocalServer
from .conftest import client_of, end_of, invoke, lines, says, script


def serve(data_dir: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Try to run a server that is not to start."""
    command = [sys.executable, "-m", "airflow_invocations.cli", "serve", "--port", "0"]
    return subprocess.run(
        [*command, "--data-dir", str(data_dir), *options],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def refuses_to_start(data_dir: Path, *options: str) -> str:
    """The one line that says why."""
    attempt = serve(data_dir, *options)
    assert attempt.returncode == 1
    assert attempt.stdout == ""
    (line,) = attempt.stderr.splitlines()
    assert line.startswith("invocations serve: ")
    return line.removeprefix("invocations serve: ")


def described(folder: Path, name: str, **fields: Any) -> Path:
    """An action.json; its path."""
    path = folder / name / "action.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    container = {"command": ["sh", "-c", "cat told"]}
    path.write_text(json.dumps({"name": name, "container_parameters": container, **fields}))
    return path


class TestAnnouncement:
    def test_it_says_where_with_which_token_and_who(self, server: LocalServer) -> None:
        path = server.data_dir / "server.json"
        assert json.loads(path.read_text()) == {
            "endpoint": server.endpoint,
            "token": server.token,
            "pid": server.process.pid,
        }
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert server.endpoint.startswith("http://127.0.0.1:")
        assert server.request("POST", "v1/actions/query", json={}).status_code == 200

    def test_the_data_folder_is_for_its_owner_only(self, server: LocalServer) -> None:
        assert stat.S_IMODE(server.data_dir.stat().st_mode) == 0o700

    def test_it_is_gone_after_a_clean_stop(self, start_server: Callable[..., LocalServer]) -> None:
        server = start_server()
        endpoint = server.endpoint
        host, port = endpoint.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))), httpx.Client() as idle:
            idle.get(f"{endpoint}/v1/actions/x")
            assert server.stop() == 0  # clients that say nothing don't hold it up
        assert not (server.data_dir / "server.json").exists()
        assert "Traceback" not in server.errors
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{endpoint}/v1/actions/x")

    def test_the_token_outlives_restarts_and_an_old_announcement_does_not(
        self, start_server: Callable[..., LocalServer]
    ) -> None:
        server = start_server("--host", "0.0.0.0")
        token, endpoint = server.token, server.endpoint
        assert endpoint.startswith("http://127.0.0.1:")
        assert server.request("POST", "v1/actions/query", json={}).status_code == 200
        server.kill()
        path = server.data_dir / "server.json"
        assert json.loads(path.read_text())["endpoint"] == endpoint
        server.start()
        assert server.token == token
        assert json.loads(path.read_text())["pid"] == server.process.pid


class TestOptions:
    def test_no_slots_accept_everything_and_run_nothing(
        self, start_server: Callable[..., LocalServer]
    ) -> None:
        server = start_server("--slots", "0")
        action = script(client_of(server), "true")
        waiting, cancelled = invoke(action), invoke(action)
        cancelled.cancel()
        assert end_of(cancelled)[0] == "Cancelled"
        server.restart("--slots", "1")
        found = published.Invocation.from_id(waiting.id, roboto_client=client_of(server))
        assert end_of(found) == ("Completed", None)

    def test_actions_of_a_folder_are_registered_and_upgraded(
        self, start_server: Callable[..., LocalServer], tmp_path: Path
    ) -> None:
        folder = tmp_path / "actions"
        described(folder, "teller", description="old", timeout=5)
        (folder / "teller" / "told").write_text("told by a file beside it")
        described(folder, "imaged", image_uri="registry/image:1")
        (folder / "no-action").mkdir()
        server = start_server("--actions", str(folder))
        assert "actions: imaged, teller" in server.errors

        def action(name: str) -> Any:
            return published.Action.from_name(name, roboto_client=client_of(server))

        first = action("teller")
        assert (first.record.description, first.timeout) == ("old", 5)
        assert action("imaged").uri == "registry/image:1"
        told = invoke(first)
        assert end_of(told) == ("Completed", None)
        assert lines(told) == ["told by a file beside it"]

        described(folder, "teller", description="new")
        server.restart()
        assert action("teller").record.description == "new"
        assert action("teller").digest != first.digest
        assert action("teller").created == first.created


class TestClearLines:
    """One line and exit code 1; what else can be wrong is tested without a process (unit: test_serve)."""

    def test_a_broken_action_json(self, tmp_path: Path) -> None:
        path = described(tmp_path / "actions", "broken", timeout=0)
        line = refuses_to_start(tmp_path / "data", "--actions", str(tmp_path / "actions"))
        assert line == f"{path}: timeout: Input should be greater than or equal to 1"
        assert not (tmp_path / "data" / "server.json").exists()

    def test_a_second_service_on_the_same_folder(self, server: LocalServer) -> None:
        line = refuses_to_start(server.data_dir)
        assert (
            line == f"another server already runs on {server.data_dir}; stop it or choose another --data-dir"
        )
        assert json.loads((server.data_dir / "server.json").read_text())["pid"] == server.process.pid
        assert server.request("POST", "v1/actions/query", json={}).status_code == 200

    def test_a_port_that_is_taken(self, server: LocalServer, tmp_path: Path) -> None:
        port = server.endpoint.rpartition(":")[2]
        line = refuses_to_start(tmp_path / "data", "--port", port)
        taken = f"can't listen on 127.0.0.1:{port}: Address already in use"
        assert line == f"{taken}; choose another --port (0: any)"
        assert server.request("POST", "v1/actions/query", json={}).status_code == 200


class TestStopping:
    def test_a_request_that_is_being_answered_is_answered(
        self, start_server: Callable[..., LocalServer]
    ) -> None:
        server = start_server("--slots", "0")
        host, port = server.endpoint.removeprefix("http://").split(":")
        body = b'{"name": "late"}'
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            head = f"POST /v1/actions HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {server.token}\r\n"
            head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            connection.sendall(head.encode() + body[:5])
            server.process.send_signal(signal.SIGINT)
            until(lambda: not accepts(host, int(port)))
            connection.sendall(body[5:])
            answer = connection.recv(65536)
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert server.process.wait(20) == 0
        assert "Traceback" not in server.errors

    def test_a_second_signal_changes_nothing(self, start_server: Callable[..., LocalServer]) -> None:
        server = start_server("--slots", "1", "--grace", "0.5")
        invocation = invoke(script(client_of(server), "trap '' TERM; echo up; while :; do sleep 0.05; done"))
        says(invocation, "up")
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
            server.process.send_signal(number)
        assert server.process.wait(20) == 0
        assert "Traceback" not in server.errors
        assert server.action_processes() == []


def accepts(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=1):
            return True
    except OSError:
        return False
