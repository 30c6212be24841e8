"""The official SDK as referee: what our client makes, it understands, and the other way round."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from airflow_invocations.models import InvocationStatus, StatusSnapshot
from airflow_invocations.platforms.flyte import FlytePlatform
from airflow_invocations.waiters import cancel_and_confirm, log_pages

from ...platforms.flyte_server import DOMAIN, PROJECT, FlyteServer
from .conftest import ended, request, running

pytestmark = pytest.mark.anyio
S = InvocationStatus
PLACE = f"{PROJECT}/{DOMAIN}"


class Sdk:
    """Asks the SDK, each time in a new process."""

    def __init__(self, endpoint: str, home: Path) -> None:
        self._endpoint = endpoint
        self._home = home

    async def __call__(self, *commands: Sequence[str]) -> Any:
        """What each command brought."""
        environment = os.environ | {
            "HOME": str(self._home),
            "DO_NOT_TRACK": "1",
            "FLYTE_DISABLE_TELEMETRY": "1",
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.integration.flyte.sdk", self._endpoint, json.dumps(commands),
            env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        async with asyncio.timeout(100):
            out, errors = await process.communicate()
        assert process.returncode == 0, errors.decode()
        return json.loads(out.decode().splitlines()[-1])


@pytest.fixture
def sdk(server: FlyteServer, tmp_path: Path) -> Sdk:
    return Sdk(server.endpoint, tmp_path)


def name_of(invocation_id: str) -> str:
    return invocation_id.rpartition("/")[2]


class TestOurRuns:
    async def test_are_gotten_listed_watched_tailed_and_read(self, flyte: FlytePlatform, sdk: Sdk) -> None:
        record = await flyte.invoke("env.greet", request(count=3))
        name = name_of(record.invocation_id)
        watched, gotten, *rest = await sdk(
            ["watch", name], ["get", name], ["list"], ["logs", name], ["inputs", name], ["outputs", name]
        )
        assert watched == {"phase": "SUCCEEDED"}
        assert (gotten["phase"], gotten["done"]) == ("SUCCEEDED", True)
        assert gotten["url"] == flyte.url(record.invocation_id)
        assert rest == [
            [name],
            [f"hello ada {number}" for number in range(3)],
            {"who": "ada", "count": 3, "trouble": "none"},
            {"o0": ["hello ada"]},
        ]

    async def test_that_fail_or_are_aborted_say_the_same_on_both_sides(
        self, flyte: FlytePlatform, sdk: Sdk
    ) -> None:
        failed = await flyte.invoke("env.greet", request("fails", trouble="fails"))
        await ended(flyte, failed.invocation_id)
        theirs = await flyte.invoke("env.greet", request("theirs", trouble="hangs"))
        await running(flyte, theirs.invocation_id)
        ours = await flyte.invoke("env.greet", request("ours", trouble="hangs"))
        await cancel_and_confirm(flyte, ours.invocation_id, 5.0)
        of_failed, of_theirs, of_ours = await sdk(
            ["get", name_of(failed.invocation_id)],
            ["abort", name_of(theirs.invocation_id), "by hand"],
            ["get", name_of(ours.invocation_id)],
        )
        assert (of_failed["phase"], of_failed["error"]) == ("FAILED", "no such topic")
        assert (of_theirs["phase"], of_theirs["abort"]) == ("ABORTED", "by hand")
        seen = await flyte.get(theirs.invocation_id)
        assert (seen.current.status, seen.current.detail) == (S.Cancelled, "by hand")
        assert of_ours["phase"] == "ABORTED"
        assert "DAG fleet" in of_ours["abort"]


class TestTheirRuns:
    async def test_are_gotten_watched_tailed_read_and_aborted(self, flyte: FlytePlatform, sdk: Sdk) -> None:
        inputs = {"who": "grace", "count": 2, "trouble": "none"}
        created = await sdk(
            *(
                ["create", "env.greet", json.dumps(inputs | {"trouble": trouble})]
                for trouble in ("none", "fails", "hangs")
            )
        )
        good, failed, hanging = (f"{PLACE}/{one['name']}" for one in created)
        async with asyncio.timeout(20), flyte.watch([good, failed], {}, None) as watching:
            ends: dict[str, InvocationStatus] = {}
            async for told in watching:
                if isinstance(told, StatusSnapshot) and told.status.is_terminal:
                    ends[told.invocation_id] = told.status
                if len(ends) == 2:
                    break
        assert ends == {good: S.Completed, failed: S.Failed}
        record = await flyte.get(good)
        assert record.provenance.action.name == f"{PLACE}/env.greet"
        assert record.idempotency_id is None
        lines = [line.log async for page in log_pages(flyte, good) for line in page.items]
        assert lines == ["hello grace 0", "hello grace 1"]
        assert await flyte.outputs(good) == ["hello grace"]
        assert (await flyte.get(failed)).current.detail == "ValueError: no such topic"
        await running(flyte, hanging)
        confirmed = await cancel_and_confirm(flyte, hanging, 5.0)
        assert confirmed is not None
        assert confirmed.current.detail == "cancelled from Airflow"
