"""Files of the server and of its actions, whatever umask it is started with: closed to all other users."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from ...support.waiting import until
from ..conftest import LocalServer


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LocalServer]:
    server = LocalServer(tmp_path / "data", "--slots", "1", "--grace", "0.2")
    former = os.umask(0)
    try:
        server.start()
    finally:
        os.umask(former)
    yield server
    server.end()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def test_nothing_is_open_to_others(server: LocalServer, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    command = f"echo hello; touch {outside} $ROBOTO_OUTPUT_DIR/result; umask"
    action = {"name": "a", "container_parameters": {"command": ["sh", "-c", command]}}
    server.request("POST", "v1/actions", json=action).raise_for_status()
    dataset = server.request("POST", "v1/datasets", json={"name": "results"}).json()["data"]
    body = {
        "invocation_source": "Manual",
        "upload_destination": {"destination_type": "Dataset", "destination_id": dataset["dataset_id"]},
    }
    asked = server.request("POST", "v1/actions/a/invoke", json=body).json()["data"]
    path = f"v1/actions/invocations/{asked['invocation_id']}"
    until(lambda: server.request("GET", path).json()["data"]["last_status"] == 5)
    made = [server.data_dir, *server.data_dir.rglob("*")]
    theirs = server.data_dir / "workspaces" / asked["invocation_id"] / "output" / "result"
    assert {f"{each}: {mode(each):o}" for each in made if mode(each) & 0o077 and each != theirs} == set()
    # What an action makes has the usual mode, here and elsewhere; its workspace is closed to others.
    assert (mode(theirs), mode(outside)) == (0o644, 0o644)
