"""Stops and crashes of the server while actions run: everything runs again, nothing runs twice at once."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from airflow_invocations.cli.main import main
from airflow_invocations.server.admin import set_secret

from ...support.published import actions as published
from ...support.waiting import until
from ..conftest import LocalServer
from .conftest import client_of, end_of, invoke, is_gone, lines, says, script, steps

#: Runs once as long as nobody stops it, and to its end when it is run again.
FIRST_LONG_THEN_SHORT = "[ -e {mark} ] && {{ echo second; exit 0; }}; touch {mark}; {first}"


@pytest.fixture
def server(start_server: Callable[..., LocalServer]) -> LocalServer:
    """A server of the test's own: it is going to be stopped."""
    return start_server("--slots", "2", "--grace", "0.5")


def again(server: LocalServer, invocation: Any) -> Any:
    """The invocation, asked for at the server's present address."""
    return published.Invocation.from_id(invocation.id, roboto_client=client_of(server))


def long_then_short(server: LocalServer, tmp_path: Path, first: str) -> Any:
    text = FIRST_LONG_THEN_SHORT.format(mark=tmp_path / "mark", first=first)
    invocation = invoke(script(client_of(server), text))
    says(invocation, "up")
    return invocation


def test_a_clean_stop_ends_what_runs_and_it_runs_again_at_the_next_start(
    server: LocalServer, tmp_path: Path
) -> None:
    invocation = long_then_short(server, tmp_path, "sh -c 'sleep 60 & wait' & echo up; wait")
    running = server.action_processes()
    assert len(running) >= 3
    assert server.stop() == 0
    assert all(is_gone(process) for process in running)
    server.start()
    invocation = again(server, invocation)
    assert end_of(invocation) == ("Completed", None)
    again_as = "attempt 2, from the beginning: the server was stopped while this invocation ran"
    assert lines(invocation) == ["up", again_as, "second"]
    assert steps(invocation) == [
        "Queued", "Scheduled", "Downloading", "Processing", "Failed", "Queued",
        "Scheduled", "Downloading", "Processing", "Uploading", "Completed",
    ]  # fmt: skip
    stopped = invocation.status_log[4]
    assert stopped.detail == "the server was stopped while this invocation ran"


def test_a_crash_leaves_nothing_running_after_the_next_start(server: LocalServer, tmp_path: Path) -> None:
    invocation = long_then_short(server, tmp_path, "trap '' TERM; sh -c 'sleep 60 & wait' & echo up; wait")
    running = server.action_processes()
    assert len(running) >= 3
    server.kill()
    assert [process for process in running if process.is_running()] == running
    server.start()
    assert all(is_gone(process) for process in running)
    invocation = again(server, invocation)
    assert end_of(invocation) == ("Completed", None)
    again_as = "attempt 2, from the beginning: the server stopped while this invocation ran"
    assert lines(invocation) == ["up", again_as, "second"]
    assert steps(invocation)[4:6] == ["Failed", "Queued"]
    assert invocation.status_log[4].detail == "the server stopped while this invocation ran"


def test_ended_invocation_does_not_run_again(server: LocalServer, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    client = client_of(server)
    ends = {"true": "Completed", "false": "Failed", "sleep 60": "Cancelled"}
    invocations = []
    for command, status in ends.items():
        invocation = invoke(script(client, f"echo {status} >> {ran}; echo up; {command}"))
        says(invocation, "up")
        if status == "Cancelled":
            invocation.cancel()
        assert end_of(invocation)[0] == status
        invocations.append(invocation)
    before = [again(server, one).record for one in invocations]
    server.kill()
    server.start()
    # Whatever were to run again would be claimed before one that is asked for now.
    assert end_of(invoke(script(client_of(server), "true")))[0] == "Completed"
    assert [again(server, one).record for one in invocations] == before
    assert ran.read_text().split() == list(ends.values())


def test_a_cancel_holds_over_a_crash(server: LocalServer, tmp_path: Path) -> None:
    invocation = long_then_short(server, tmp_path, "trap '' TERM; echo up; while :; do sleep 0.05; done")
    running = server.action_processes()
    invocation.cancel()
    server.kill()
    server.start()
    assert end_of(again(server, invocation)) == ("Cancelled", "cancelled by local")
    assert all(is_gone(process) for process in running)
    assert lines(again(server, invocation)) == ["up"]


class TestOrphans:
    """What leaves its action's process group, its environment, or its database."""

    @pytest.mark.parametrize("leaves", ["setsid", "setsid env -i", "env -i setsid setsid"])
    @pytest.mark.parametrize("where", [".", "/"])
    def test_processes_of_an_action_end_with_it(
        self, server: LocalServer, tmp_path: Path, leaves: str, where: str
    ) -> None:
        child = tmp_path / "child"
        sleeping = f"/bin/sh -c 'echo $$ > {child}; exec /bin/sleep 600'"
        text = f"cd {where}; {leaves} {sleeping} & until [ -s {child} ]; do sleep 0.02; done"
        assert end_of(invoke(script(client_of(server), text))) == ("Completed", None)
        assert not psutil.pid_exists(int(child.read_text()))

    def test_processes_of_another_action_continue(self, server: LocalServer, tmp_path: Path) -> None:
        child, go = tmp_path / "child", tmp_path / "go"
        sleeping = f"/bin/sh -c 'echo $$ > {child}; exec /bin/sleep 600'"
        text = f"cd /; setsid env -i {sleeping} & echo up; until [ -e {go} ]; do sleep 0.02; done"
        client = client_of(server)
        first = invoke(script(client, text))
        until(lambda: child.exists() and child.read_text().strip())
        orphan = psutil.Process(int(child.read_text()))
        assert end_of(invoke(script(client, "true"))) == ("Completed", None)
        assert orphan.status() != psutil.STATUS_ZOMBIE
        go.touch()
        assert end_of(first) == ("Completed", None)
        assert not orphan.is_running()

    def test_orphans_that_end_by_themselves_are_reaped(self, server: LocalServer) -> None:
        client = client_of(server)
        for _ in range(3):
            assert end_of(invoke(script(client, "setsid env -i /bin/sh -c 'exit 0' & sleep 0.2"))) == (
                "Completed", None,
            )  # fmt: skip
        children = psutil.Process(server.process.pid).children()
        assert [child for child in children if child.status() == psutil.STATUS_ZOMBIE] == []

    def test_processes_unknown_to_the_database_are_ended_at_start(
        self, server: LocalServer, tmp_path: Path
    ) -> None:
        before = invoke(script(client_of(server), "echo kept"))
        assert end_of(before) == ("Completed", None)
        backup = tmp_path / "backup"
        assert main(["backup", "--data-dir", str(server.data_dir), str(backup)]) == 0
        invocation = invoke(script(client_of(server), "trap '' TERM; echo up; sleep 600 & wait; sleep 600"))
        says(invocation, "up")
        running = server.action_processes()
        assert running
        server.kill()
        server.data_dir.rename(tmp_path / "moved away")
        backup.rename(server.data_dir)
        server.start()
        assert all(is_gone(process) for process in running)
        assert server.request("GET", f"v1/actions/invocations/{invocation.id}").status_code == 404
        assert lines(again(server, before)) == ["kept"]

    def test_a_service_on_a_copy_of_the_folder_leaves_the_other_ones_processes_alone(
        self, server: LocalServer, tmp_path: Path
    ) -> None:
        invocation = invoke(script(client_of(server), "echo up; sleep 600"))
        says(invocation, "up")
        running = server.action_processes()
        copy = tmp_path / "copy"
        copy.mkdir()
        shutil.copy(server.data_dir / "identity", copy)
        other = LocalServer(copy)
        other.start()
        try:
            assert all(process.is_running() for process in running)
        finally:
            other.end()
        invocation.cancel()
        assert end_of(invocation)[0] == "Cancelled"


class TestSecretsOfEndedActions:
    """The values that an action read, once nothing of it runs any more."""

    def secrets_files(self, server: LocalServer) -> list[Path]:
        return list((server.data_dir / "workspaces").glob("*/config/secrets.json"))

    def reading(self, server: LocalServer, text: str) -> Any:
        set_secret(server.data_dir, "crown", "jewels", "og_local")
        parameters = [published.ActionParameter(name="crown", default="roboto-secret://crown")]
        action = script(client_of(server), text, parameters=parameters)
        return invoke(action)

    @pytest.mark.parametrize("end", ["true", "exit 3"])
    def test_they_are_removed_at_its_end(self, server: LocalServer, end: str) -> None:
        invocation = self.reading(server, f'cat "$ROBOTO_ACTION_RUNTIME_CONFIG_DIR"/*; {end}')
        end_of(invocation)
        assert "***" in "".join(lines(invocation))
        assert self.secrets_files(server) == []

    def test_they_are_removed_at_the_next_start_after_a_crash(self, server: LocalServer) -> None:
        invocation = self.reading(server, "trap '' TERM; echo up; sleep 600 & wait")
        says(invocation, "up")
        assert len(self.secrets_files(server)) == 1
        invocation.cancel()
        server.kill()
        server.start()
        assert end_of(again(server, invocation))[0] == "Cancelled"
        assert self.secrets_files(server) == []
