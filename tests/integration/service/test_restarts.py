"""Stops and crashes of the service while actions run: everything runs again, nothing runs twice at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ...published import actions as published
from ..conftest import Service
from .conftest import client_of, end_of, invoke, is_gone, lines, says, script, steps

#: Runs once as long as nobody stops it, and to its end when it is run again.
FIRST_LONG_THEN_SHORT = "[ -e {mark} ] && {{ echo second; exit 0; }}; touch {mark}; {first}"


@pytest.fixture
def service(start_service: Callable[..., Service]) -> Service:
    """A service of the test's own: it is going to be stopped."""
    return start_service("--slots", "2", "--grace", "0.5")


def again(service: Service, invocation: Any) -> Any:
    """The invocation, asked for at the service's present address."""
    return published.Invocation.from_id(invocation.id, roboto_client=client_of(service))


def long_then_short(service: Service, tmp_path: Path, first: str) -> Any:
    text = FIRST_LONG_THEN_SHORT.format(mark=tmp_path / "mark", first=first)
    invocation = invoke(script(client_of(service), text))
    says(invocation, "up")
    return invocation


def test_a_clean_stop_ends_what_runs_and_it_runs_again_at_the_next_start(
    service: Service, tmp_path: Path
) -> None:
    invocation = long_then_short(service, tmp_path, "sh -c 'sleep 60 & wait' & echo up; wait")
    running = service.action_processes()
    assert len(running) >= 3
    assert service.stop() == 0
    assert all(is_gone(process) for process in running)
    service.start()
    invocation = again(service, invocation)
    assert end_of(invocation) == ("Completed", None)
    assert lines(invocation) == ["up", "second"]
    assert steps(invocation) == [
        "Queued", "Scheduled", "Downloading", "Processing", "Failed", "Queued",
        "Scheduled", "Downloading", "Processing", "Uploading", "Completed",
    ]  # fmt: skip
    stopped = invocation.status_log[4]
    assert stopped.detail == "the service was stopped while this ran"


def test_a_crash_leaves_nothing_running_after_the_next_start(service: Service, tmp_path: Path) -> None:
    invocation = long_then_short(service, tmp_path, "trap '' TERM; sh -c 'sleep 60 & wait' & echo up; wait")
    running = service.action_processes()
    assert len(running) >= 3
    service.kill()
    assert [process for process in running if process.is_running()] == running
    service.start()
    assert all(is_gone(process) for process in running)
    invocation = again(service, invocation)
    assert end_of(invocation) == ("Completed", None)
    assert lines(invocation) == ["up", "second"]
    assert steps(invocation)[4:6] == ["Failed", "Queued"]
    assert invocation.status_log[4].detail == "the service ended while this ran"


def test_what_had_ended_does_not_run_again(service: Service, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    client = client_of(service)
    ends = {"true": "Completed", "false": "Failed", "sleep 60": "Cancelled"}
    invocations = []
    for command, status in ends.items():
        invocation = invoke(script(client, f"echo {status} >> {ran}; echo up; {command}"))
        says(invocation, "up")
        if status == "Cancelled":
            invocation.cancel()
        assert end_of(invocation)[0] == status
        invocations.append(invocation)
    before = [again(service, one).record for one in invocations]
    service.kill()
    service.start()
    # Whatever were to run again would be claimed before one that is asked for now.
    assert end_of(invoke(script(client_of(service), "true")))[0] == "Completed"
    assert [again(service, one).record for one in invocations] == before
    assert ran.read_text().split() == list(ends.values())


def test_a_cancel_holds_over_a_crash(service: Service, tmp_path: Path) -> None:
    invocation = long_then_short(service, tmp_path, "trap '' TERM; echo up; while :; do sleep 0.05; done")
    running = service.action_processes()
    invocation.cancel()
    service.kill()
    service.start()
    assert end_of(again(service, invocation)) == ("Cancelled", "cancelled by local")
    assert all(is_gone(process) for process in running)
    assert lines(again(service, invocation)) == ["up"]
