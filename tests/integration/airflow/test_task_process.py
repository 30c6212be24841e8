"""A task process on the task SDK's own channel: who asks it, and what a kill does while it is busy."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from airflow_invocations.hooks import RobotoHook
from airflow_invocations.models import InvocationStatus

from ...support.airflow_version import since
from ...support.waiting import until
from .conftest import script

ROOT = Path(__file__).parents[3]

pytestmark = since("3.3", "the messages of this channel")


class Process:
    """A task process, and what it says."""

    def __init__(self, server: Any, action: str, arguments: dict[str, Any], stops_at: str) -> None:
        connection = {
            "conn_type": "roboto",
            "host": server.endpoint,
            "password": server.token,
            "extra": '{"timeout": "20"}',
        }
        module = "tests.integration.airflow.task_process"
        options = [json.dumps(connection), action, json.dumps(arguments), stops_at]
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, *options], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )

    def next(self, key: str) -> Any:
        """The next thing it says about `key`; fails the test if it ends without that."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(f'{{"{key}"'):
                return json.loads(line)[key]
        raise AssertionError(f"the process ended ({self.process.wait()}) and didn't say {key!r}")


@contextmanager
def started(server: Any, action: str, stops_at: str = "", **arguments: Any) -> Iterator[Process]:
    process = Process(server, action, {"poll_interval": 0.1, **arguments}, stops_at)
    try:
        yield process
    finally:
        process.process.kill()
        process.process.communicate()


@pytest.mark.parametrize(
    "arguments", [{}, {"deferrable": True, "defer_after": 0.5}], ids=["worker", "deferred"]
)
def test_nothing_that_can_be_cancelled_asks_the_sdk(
    server: Any, hook: RobotoHook, arguments: dict[str, Any]
) -> None:
    with started(server, script(hook, "echo a; sleep 1"), **arguments) as process:
        asked = process.next("asked")
    assert {"GetConnection", "MaskSecret", "SetXCom"} <= {one["type"] for one in asked}
    assert [one for one in asked if one["in_task"]] == []


def invocations_of(hook: RobotoHook, action: str) -> list[str]:
    return [one.invocation_id for one in hook.find("fleet") if one.provenance.action.name == action]


@pytest.mark.parametrize("key", ["invocation_id", "_link_InvocationLink"])
def test_a_kill_while_the_channel_is_stuck_cancels_nothing(server: Any, hook: RobotoHook, key: str) -> None:
    action = script(hook, "echo begun; sleep 60")
    with started(server, action, stops_at=key) as process:
        process.next("held")
        process.process.send_signal(signal.SIGTERM)
        assert process.next("asks") == "GetTaskStates"
        (invocation,) = invocations_of(hook, action)
        process.process.kill()  # as Airflow does, 5 s later
        process.process.wait()
    until(lambda: hook.get(invocation).current.status is InvocationStatus.Processing, within=20.0)


def test_a_kill_asks_airflow_outside_of_its_handler(server: Any, hook: RobotoHook) -> None:
    action = script(hook, "echo begun; sleep 60")
    with started(server, action) as process:
        # Its process takes its time to import Airflow.
        until(lambda: any(map(hook.logs, invocations_of(hook, action))), within=60.0)
        process.process.send_signal(signal.SIGTERM)
        asked = process.next("asked")
    assert [one for one in asked if one["in_handler"]] == []
    assert [one["type"] for one in asked if one["thread"] == "invocations-guard"] == ["GetTaskStates"]
    (invocation,) = invocations_of(hook, action)
    assert hook.get(invocation).current.status is InvocationStatus.Cancelled
