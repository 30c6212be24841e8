"""The server's own outages, with a real full disk: repeated or queued again, never an action's verdict."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ...support.waiting import until
from ..conftest import LocalServer
from .conftest import client_of, end_of, invoke, lines, script, steps


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MB, on which a server can be run."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system takes root")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


@pytest.fixture
def server(small_disk: Path) -> Iterator[LocalServer]:
    server = LocalServer(small_disk / "data", "--slots", "2", "--grace", "0.5")
    server.start()
    yield server
    server.end()


def fill(disk: Path) -> Path:
    """A file that takes all the room there is."""
    filling = disk / "filling"
    with filling.open("wb", buffering=0) as file:
        for size in (65536, 4096, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue
    return filling


@pytest.mark.parametrize("says", [":", "echo out; echo err >&2"], ids=["silent", "printing"])
def test_an_action_that_ends_while_the_disk_is_full_has_ended_once_there_is_room(
    server: LocalServer, small_disk: Path, tmp_path: Path, says: str
) -> None:
    up, go, ran = tmp_path / "up", tmp_path / "go", tmp_path / "ran"
    text = f"touch {up}; until [ -e {go} ]; do sleep 0.02; done; {says}; echo ran >> {ran}"
    invocation = invoke(script(client_of(server), text))
    until(up.exists)
    filling = fill(small_disk)
    go.touch()
    until(ran.exists)
    until(lambda: "cannot" in server.errors or "Could not write" in server.errors)
    filling.unlink()
    assert end_of(invocation) == ("Completed", None)
    assert sorted(lines(invocation)) == ([] if says == ":" else ["err", "out"])
    assert ran.read_text() == "ran\n"
    assert steps(invocation) == [
        "Queued", "Scheduled", "Downloading", "Processing", "Uploading", "Completed",
    ]  # fmt: skip


def test_an_action_that_prints_while_the_disk_is_full_waits_and_loses_no_line(
    server: LocalServer, small_disk: Path, tmp_path: Path
) -> None:
    up, go = tmp_path / "up", tmp_path / "go"
    text = (
        f"touch {up}; until [ -e {go} ]; do sleep 0.02; done; "
        "i=0; while [ $i -lt 20000 ]; do echo $i; i=$((i+1)); done"
    )
    invocation = invoke(script(client_of(server), text))
    until(up.exists)
    filling = fill(small_disk)
    go.touch()
    until(lambda: "Could not write" in server.errors)
    filling.unlink()
    assert end_of(invocation) == ("Completed", None)
    assert lines(invocation) == [str(number) for number in range(20000)]


def test_a_request_that_the_disk_has_no_room_for_is_answered_with_503_and_changes_nothing(
    server: LocalServer, small_disk: Path
) -> None:
    filling = fill(small_disk)
    body = {"name": "late", "container_parameters": {"command": ["true"]}, "description": "x" * 20_000}
    rejected = server.request("POST", "v1/actions", json=body)
    assert rejected.status_code == 503
    assert int(rejected.headers["Retry-After"]) > 0
    assert server.request("GET", "v1/actions/late").status_code == 404
    filling.unlink()
    assert server.request("POST", "v1/actions", json=body).status_code == 200
