"""Ends of runs from lists: those of the connection's place, by every name of a task, over many pages."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import AsyncIterator
from typing import Any

import pytest

from airflow_invocations.exceptions import RequestRejectedError
from airflow_invocations.models import CaughtUp, EventFilter, InvocationEvent, InvocationStatus, cursor_at
from airflow_invocations.platforms import InvalidRequestError
from airflow_invocations.platforms import polling as polled_events
from airflow_invocations.platforms.flyte import FlytePlatform, platform, runs
from airflow_invocations.tasks.completion import CompletionCriteria, check

from ...platforms.flyte_server import DOMAIN, PROJECT, FlyteServer
from .conftest import TASK, deploy, ended, request, settings

pytestmark = pytest.mark.anyio
S = InvocationStatus


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polled_events, "POLL_INTERVAL", 0.02)


@pytest.fixture
def began(server: FlyteServer) -> datetime.datetime:
    """Before anything was invoked."""
    return datetime.datetime.now(datetime.UTC)


async def told(
    flyte: FlytePlatform, wanted: EventFilter, since: datetime.datetime, count: int
) -> list[InvocationEvent]:
    """The first so many ends of those that are wanted."""
    found: list[InvocationEvent] = []
    async with asyncio.timeout(20), flyte.events(wanted, cursor_at(since)) as stream:
        async for one in stream:
            if isinstance(one, InvocationEvent) and wanted.matches(one):
                found.append(one)
            if len(found) == count:
                return found
    raise AssertionError("the stream ended just so")


@pytest.mark.parametrize("name", ["env.greet", f"{DOMAIN}/env.greet", TASK])
async def test_a_task_is_wanted_by_each_of_its_names_and_by_its_version(
    server: FlyteServer, flyte: FlytePlatform, began: datetime.datetime, name: str
) -> None:
    deploy(server, version="v2")
    first = await flyte.invoke("env.greet@v1", request("a"))
    second = await flyte.invoke("env.greet@v2", request("b"))
    for one in (first, second):
        await ended(flyte, one.invocation_id)
    every = await told(flyte, EventFilter(name), began, 2)
    assert [one.invocation_id for one in every] == [first.invocation_id, second.invocation_id]
    assert {one.action for one in every} == {TASK}
    for version, run in (("v1", first), ("v2", second)):
        (only,) = await told(flyte, EventFilter(f"{name}@{version}"), began, 1)
        assert only.invocation_id == run.invocation_id
        newest = await flyte.newest(f"{name}@{version}", began)
        assert newest is not None
        assert newest.invocation_id == run.invocation_id
    newest = await flyte.newest(name, began)
    assert newest is not None
    assert newest.invocation_id == second.invocation_id
    assert await flyte.newest(f"{name}@v3", began) is None


async def test_it_hears_of_its_own_place_and_a_connection_without_one_of_all(
    server: FlyteServer, flyte: FlytePlatform, began: datetime.datetime
) -> None:
    deploy(server, project="bags")
    theirs = await flyte.invoke(f"bags/{DOMAIN}/env.greet", request("a"))
    await ended(flyte, theirs.invocation_id)
    ours = await flyte.invoke("env.greet", request("b"))
    await ended(flyte, ours.invocation_id)
    (only,) = await told(flyte, EventFilter(), began, 1)
    assert only.invocation_id == ours.invocation_id
    scopes = [asked.project_id for asked in server.calls("ListRuns")]
    assert {(one.name, one.domain) for one in scopes} == {(PROJECT, DOMAIN)}
    async with FlytePlatform(settings(server, project=None, domain=None)) as everywhere:
        both = await told(everywhere, EventFilter(), began, 2)
        assert [one.invocation_id for one in both] == [theirs.invocation_id, ours.invocation_id]


@pytest.mark.parametrize(
    ("action", "hint"),
    [
        ("a/b/c/d", "project/domain/name@version"),
        (f"bags/{DOMAIN}/env.greet", f"a task of bags/{DOMAIN}, and this connection watches {PROJECT}/"),
    ],
)
async def test_action_of_another_scope_is_rejected(flyte: FlytePlatform, action: str, hint: str) -> None:
    with pytest.raises(InvalidRequestError, match=hint):
        async with flyte.events(EventFilter(action), None):
            raise AssertionError("it was opened")


async def test_a_sensor_of_what_is_no_name_of_a_task_is_rejected(server: FlyteServer) -> None:
    async def connect() -> FlytePlatform:
        return FlytePlatform(settings(server))

    with pytest.raises(RequestRejectedError, match="project/domain/name@version"):
        await check(connect, CompletionCriteria(action="a/b/c/d"))


async def test_no_run_is_left_out_between_pages(
    server: FlyteServer, flyte: FlytePlatform, began: datetime.datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "PAGE", 2)
    monkeypatch.setattr(runs.RunService.pages, "__defaults__", (2,))
    invoked = [await flyte.invoke("env.greet", request(str(number))) for number in range(5)]
    ids = [one.invocation_id for one in invoked]
    for one in ids:
        await ended(flyte, one)
    every = await told(flyte, EventFilter(), began, 5)
    assert sorted(one.invocation_id for one in every) == sorted(ids)


async def test_run_created_between_two_pages_hides_no_older_run(
    flyte: FlytePlatform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs.RunService.pages, "__defaults__", (2,))
    ids = {(await flyte.invoke("env.greet", request(str(number)))).invocation_id for number in range(5)}
    ask, asked = flyte._runs.page, 0

    async def and_then_some_are_created(*args: Any, **named: Any) -> Any:
        nonlocal asked
        answer = await ask(*args, **named)
        asked += 1
        if asked == 1:
            # A page of them: the next one shows what this one did.
            for number in range(2):
                await flyte.invoke("env.greet", request(f"later {number}"))
        return answer

    monkeypatch.setattr(flyte._runs, "page", and_then_some_are_created)
    found = await flyte.find("fleet", None, None, None)
    assert {one.invocation_id for one in found} == ids


async def test_a_look_costs_one_list_and_one_for_200_that_are_under_way(
    server: FlyteServer, flyte: FlytePlatform
) -> None:
    hanging = [await flyte.invoke("env.greet", request(str(number), trouble="hangs")) for number in range(3)]
    before = len(server.calls("ListRuns"))
    looks = 0

    async def pause(_: float) -> None:
        nonlocal looks
        looks += 1
        if looks > 3:
            await asyncio.Event().wait()

    async with flyte.events(EventFilter(), None) as stream:
        stream._pause = pause  # type: ignore[attr-defined]
        events: AsyncIterator[Any] = aiter(stream)
        assert isinstance(await anext(events), CaughtUp)
        waiting = asyncio.ensure_future(anext(events))
        async with asyncio.timeout(20):
            while looks <= 3:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    assert len(server.calls("ListRuns")) - before == 1 + 3 * 2
    for one in hanging:
        await flyte.cancel(one.invocation_id)


async def test_a_record_waits_for_the_error_that_comes_after_the_end(
    server: FlyteServer, flyte: FlytePlatform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "WHY_PAUSE", 0.05)
    server.backend.faults.late_events = True
    began = datetime.datetime.now(datetime.UTC)
    invoked = await flyte.invoke("env.greet", request(trouble="fails"))
    (end,) = await told(flyte, EventFilter(), began, 1)
    assert (end.invocation_id, end.status) == (invoked.invocation_id, S.Failed)
    reading = asyncio.ensure_future(flyte.records([invoked.invocation_id, "p/d/none", "no run's name"]))
    await asyncio.sleep(0.02)
    server.do(server.backend.send_late_events)
    (record,) = await reading
    assert "no such topic" in (record.current.detail or "")  # type: ignore[union-attr]
