"""Lines of what runs are shown soon where they have to be asked for, however many wait beside it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import anyio.to_thread
import pytest

from airflow_invocations.hooks import RobotoHook
from airflow_invocations.models import InvocationRequest, InvocationSource
from airflow_invocations.platforms.roboto import client as roboto
from airflow_invocations.platforms.roboto.platform import RobotoPlatform

from .conftest import connect_to, script
from .test_waits import event_of, trigger

pytestmark = pytest.mark.anyio

WAITS = 2000
RUNNING = 8

#: The longest until a line of each that runs is shown, in seconds.
SOON = 15.0


def invoke_all(hook: RobotoHook) -> list[str]:
    """Invoke as many as run at once, then the others, which stay queued; their ids in this order."""
    says = script(hook, 'while :; do echo "$ROBOTO_INVOCATION_ID"; sleep 1; done')
    request = InvocationRequest(invocation_source=InvocationSource.Manual)

    async def several(platform: RobotoPlatform) -> list[str]:
        return [(await platform.invoke(says, request)).invocation_id for _ in range(WAITS)]

    return hook.call(several)


async def test_two_thousand_polled_waits_show_the_lines_of_what_runs_within_fifteen_seconds(
    start_server: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, action_log: list[str]
) -> None:
    server = await anyio.to_thread.run_sync(lambda: start_server("--slots", str(RUNNING), "--grace", "0.5"))
    connect_to(server, monkeypatch)
    monkeypatch.setattr(roboto, "WATCH", "v1/actions/invocations/no-such-thing")
    hook = RobotoHook()
    ids = await anyio.to_thread.run_sync(invoke_all, hook)
    waits = [asyncio.create_task(event_of(trigger(one, stream_logs=True, poll_interval=5.0))) for one in ids]
    try:
        async with asyncio.timeout(SOON):
            while len(set(action_log)) < RUNNING:  # noqa: ASYNC110 - a list tells nobody
                await asyncio.sleep(0.1)
        assert set(action_log) <= set(ids)
    finally:
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)
