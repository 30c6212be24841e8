"""Events of the real server: pushed, or asked for as where there is no stream; through its restarts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio.to_thread
import pytest
from airflow.sdk import Asset, AssetAlias
from airflow.sdk.execution_time.context import OutletEventAccessors

from airflow_invocations.assets import dataset_asset
from airflow_invocations.hooks import RobotoHook
from airflow_invocations.models import InvocationRequest, InvocationSource, InvocationStatus
from airflow_invocations.operators import InvokeActionOperator
from airflow_invocations.platforms import UnsupportedError
from airflow_invocations.platforms import polling as polled_events
from airflow_invocations.platforms.roboto.client import RobotoClient
from airflow_invocations.triggers import InvocationEventTrigger
from airflow_invocations.triggers._event_delivery import DeliverySettings
from airflow_invocations.waiters import event_stream

from .conftest import Task, connect_to, dataset, script
from .watcher import State, Watcher

pytestmark = pytest.mark.anyio
S = InvocationStatus


@pytest.fixture(params=["pushed", "asked for"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to hear of events, with pauses of a test's length."""
    monkeypatch.setattr(
        InvocationEventTrigger,
        "settings",
        DeliverySettings(linger=0.05, spacing=0.05, unacknowledged_spacing=0.1),
    )
    monkeypatch.setattr(polled_events, "POLL_INTERVAL", 0.1)
    if request.param == "asked for":

        @asynccontextmanager
        async def none(self: RobotoClient, body: dict[str, Any]) -> AsyncIterator[Any]:
            raise UnsupportedError("no watch here")
            yield

        monkeypatch.setattr(RobotoClient, "stream", none)
    return str(request.param)


async def invoke(hook: RobotoHook, action: str) -> str:
    request = InvocationRequest(invocation_source=InvocationSource.Manual)
    record = await anyio.to_thread.run_sync(hook.invoke, action, request)
    return record.invocation_id


async def test_ends_without_a_watcher_are_delivered_when_it_returns(hook: RobotoHook, way: str) -> None:
    good = await anyio.to_thread.run_sync(script, hook, "true")
    bad = await anyio.to_thread.run_sync(script, hook, "exit 3")
    state = State()
    watcher = Watcher(state, statuses=["Completed"])
    async with asyncio.timeout(20):
        await state.noted.wait()
    first = await invoke(hook, good)
    failed = await invoke(hook, bad)
    (told,) = [one for one in await watcher.hears(first) if one["invocation_id"] == first]
    assert (told["action"], told["status"], told["source_type"]) == (good, "Completed", "Manual")
    assert told["url"] == hook.url(first)
    await watcher.stop()
    missed = [await invoke(hook, good) for _ in range(3)]
    again = Watcher(state, statuses=["Completed"])
    heard = await again.hears(*missed)
    await again.stop()
    assert failed not in {one["invocation_id"] for one in heard}


async def test_a_service_that_restarts_in_between_loses_nothing(
    start_server: Any, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setattr(event_stream, "LONGEST_PAUSE", 0.2)
    server = await anyio.to_thread.run_sync(start_server)
    connect_to(server, monkeypatch)
    hook = RobotoHook()
    action = await anyio.to_thread.run_sync(script, hook, "sleep 0.3")
    state = State()
    watcher = Watcher(state)
    async with asyncio.timeout(20):
        await state.noted.wait()
    ids = [await invoke(hook, action) for _ in range(3)]
    await anyio.to_thread.run_sync(server.restart)
    connect_to(server, monkeypatch)
    heard = await watcher.hears(*ids)
    await watcher.stop()
    assert {one["invocation_id"] for one in heard} >= set(ids)


async def test_the_outlet_of_an_actions_dataset_names_the_invocation(
    server: Any, hook: RobotoHook, task: Task
) -> None:
    dataset_id = await anyio.to_thread.run_sync(dataset, server)
    action = await anyio.to_thread.run_sync(script, hook, 'echo 1 > "$ROBOTO_OUTPUT_DIR/one.txt"')
    asset, alias = dataset_asset("roboto_default", dataset_id), AssetAlias("outputs")
    operator = InvokeActionOperator(
        task_id="ask",
        action=action,
        upload_destination=dataset_id,
        poll_interval=0.1,
        outlets=[asset, alias, Asset("plain")],
    )
    task.context["outlet_events"] = OutletEventAccessors()
    result = await anyio.to_thread.run_sync(operator.execute, task.context)
    expected = {name: result[name] for name in ("invocation_id", "url", "action", "digest")}
    assert task.context["outlet_events"][asset].extra == expected
    (event,) = task.context["outlet_events"][alias].asset_alias_events
    assert (event.dest_asset_key.uri, event.extra) == (asset.uri, expected)


async def test_an_action_that_fails_tells_no_outlet(server: Any, hook: RobotoHook, task: Task) -> None:
    dataset_id = await anyio.to_thread.run_sync(dataset, server)
    action = await anyio.to_thread.run_sync(script, hook, "exit 3")
    asset = dataset_asset("roboto_default", dataset_id)
    operator = InvokeActionOperator(
        task_id="ask", action=action, upload_destination=dataset_id, poll_interval=0.1, outlets=[asset]
    )
    task.context["outlet_events"] = OutletEventAccessors()
    with pytest.raises(Exception, match="exit code 3"):
        await anyio.to_thread.run_sync(operator.execute, task.context)
    assert task.context["outlet_events"][asset].extra == {}
