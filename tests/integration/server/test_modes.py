"""Files of the server and of its actions, whatever umask it is started with: closed to all other users."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from ...support.waiting import until
from ..conftest import Service


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    service = Service(tmp_path / "data", "--slots", "1", "--grace", "0.2")
    former = os.umask(0)
    try:
        service.start()
    finally:
        os.umask(former)
    yield service
    service.end()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def test_nothing_is_open_to_others(service: Service, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    command = f"echo hello; touch {outside} $ROBOTO_OUTPUT_DIR/result; umask"
    action = {"name": "a", "container_parameters": {"command": ["sh", "-c", command]}}
    service.request("POST", "v1/actions", json=action).raise_for_status()
    dataset = service.request("POST", "v1/datasets", json={"name": "results"}).json()["data"]
    body = {
        "invocation_source": "Manual",
        "upload_destination": {"destination_type": "Dataset", "destination_id": dataset["dataset_id"]},
    }
    asked = service.request("POST", "v1/actions/a/invoke", json=body).json()["data"]
    path = f"v1/actions/invocations/{asked['invocation_id']}"
    until(lambda: service.request("GET", path).json()["data"]["last_status"] == 5)
    made = [service.data_dir, *service.data_dir.rglob("*")]
    theirs = service.data_dir / "workspaces" / asked["invocation_id"] / "output" / "result"
    assert {f"{each}: {mode(each):o}" for each in made if mode(each) & 0o077 and each != theirs} == set()
    # What an action makes has the usual mode, here and elsewhere; its workspace is closed to others.
    assert (mode(theirs), mode(outside)) == (0o644, 0o644)
