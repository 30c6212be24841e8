"""A real triggerer shows the lines of many actions at the same time, each exactly once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from airflow_invocations.action_log import ShownLog
from airflow_invocations.hooks import RobotoHook
from airflow_invocations.waiters import UnshownRecords, log_pages

from .conftest import SystemServer
from .real_triggerer import RealTriggerer

ACTIONS = 40
LINES = 300

#: Prints a line, and all other lines when a file exists.
BURST = {
    "name": "burst",
    "parameters": [{"name": "go", "required": True}],
    "container_parameters": {
        "command": [
            "sh",
            "-c",
            f'echo ready; while [ ! -e "$ROBOTO_PARAM_go" ]; do sleep 0.2; done; seq 1 {LINES}',
        ]
    },
}


def invoke(server: SystemServer, action: str, parameters: dict[str, Any]) -> str:
    answer = httpx.post(
        f"{server.endpoint}/v1/actions/{action}/invoke",
        json={"invocation_source": "Manual", "parameter_values": parameters},
        headers={"Authorization": f"Bearer {server.token}"},
        trust_env=False,
    )
    return str(answer.raise_for_status().json()["data"]["invocation_id"])


def connection_to(server: SystemServer) -> dict[str, Any]:
    return {"conn_type": "roboto", "host": server.endpoint, "password": server.token}


def rest_of(invocation_id: str, shown: ShownLog, conn_id: str = "roboto_default") -> list[str]:
    """Return the lines that the worker shows after the trigger."""

    async def read() -> list[str]:
        unshown = UnshownRecords(shown.position)
        async with await RobotoHook(conn_id).connect() as platform:
            pages = [page async for page in log_pages(platform, invocation_id, shown.position.cursor)]
        return [record.log for page in pages for record, _ in unshown.of_page(page.items, page.last_read)]

    return asyncio.run(read())


def events_of(log: Sequence[dict[str, Any]]) -> list[str]:
    return [record["event"] for record in log]


def test_no_line_of_a_burst_at_the_end_is_lost_or_shown_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = tmp_path / "go"
    actions = tmp_path / "actions"
    (actions / "burst").mkdir(parents=True)
    (actions / "burst" / "action.json").write_text(json.dumps(BURST))
    with SystemServer(tmp_path / "server", actions, slots=ACTIONS) as server:
        server.start()
        connection = connection_to(server)
        monkeypatch.setenv("AIRFLOW_CONN_ROBOTO_DEFAULT", json.dumps(connection))
        ids = [invoke(server, "burst", {"go": str(go)}) for _ in range(ACTIONS)]
        with RealTriggerer(tmp_path / "airflow", {"roboto_default": connection}) as airflow:
            airflow.wait_for([("roboto_default", each) for each in ids])
            airflow.start()
            numbers = range(ACTIONS)
            airflow.until("first lines", lambda: all(events_of(airflow.log(each)) for each in numbers))
            go.touch()
            airflow.until("ends", lambda: len(airflow.ended()) == ACTIONS)
            ended = airflow.ended()
            logs = {number: airflow.log(number) for number in numbers}
            expected = ["ready", *(str(line) for line in range(1, LINES + 1))]
            shown_live = 0
            for number, invocation_id in enumerate(ids):
                shown = ShownLog.from_event(ended[number].event)
                live = events_of(logs[number])
                assert live + rest_of(invocation_id, shown) == expected
                assert shown.last == live[-20:]
                # Airflow sorts by timestamp, and drops equal lines with equal timestamps.
                times = [record["timestamp"] for record in logs[number]]
                assert len(set(times)) == len(times)
                assert times == sorted(times)
                shown_live += len(live)
            assert shown_live >= ACTIONS
