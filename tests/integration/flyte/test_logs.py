"""Pages of a run's log: each line once, whatever the server begins anew."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from flyteidl2.logs.dataplane import payload_pb2
from google.protobuf.timestamp_pb2 import Timestamp

from airflow_invocations.models import LogProcess
from airflow_invocations.platforms import InvalidRequestError, NotFoundError
from airflow_invocations.platforms.flyte import FlytePlatform, logs
from airflow_invocations.waiters import log_pages

from ...platforms.flyte_server import DOMAIN, PROJECT, FlyteServer
from .conftest import ended, request, running

pytestmark = pytest.mark.anyio

#: After every test, in seconds since 1970.
LATER = 4_000_000_000


async def everything(
    flyte: FlytePlatform, run: str, cursor: str | None = None
) -> tuple[list[str], list[Any]]:
    """All lines, and the pages that they came in."""
    pages = [page async for page in log_pages(flyte, run, cursor)]
    return [line.log for page in pages for line in page.items], pages


async def test_a_log_of_several_pages_is_read_to_its_end(
    flyte: FlytePlatform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "PAGE_LINES", 200)
    run = (await flyte.invoke("env.greet", request(count=1050))).invocation_id
    await ended(flyte, run)
    lines, pages = await everything(flyte, run)
    assert lines == [f"hello ada {number}" for number in range(1050)]
    assert [page.has_next for page in pages] == [True] * 5 + [False]
    assert max(len(page.items) for page in pages) < 300
    assert (await everything(flyte, run, pages[-1].last_read))[0] == []


async def test_later_lines_are_read_from_the_cursor(flyte: FlytePlatform, server: FlyteServer) -> None:
    run = (await flyte.invoke("env.greet", request(trouble="hangs"))).invocation_id
    await running(flyte, run)
    first, pages = await everything(flyte, run)
    assert first == ["hanging"]
    assert not pages[-1].has_next
    (row,) = server.backend.runs.values()
    row.logs[1] += [_line("at one time", LATER), _line("and another", LATER), _line("without", None)]
    second, more = await everything(flyte, run, pages[-1].last_read)
    assert second == ["at one time", "and another", "without"]
    # Of one time, too, each comes once.
    row.logs[1] += [_line("too late to be in order", 1), _line("last", LATER + 1)]
    assert (await everything(flyte, run, more[-1].last_read))[0] == ["last"]


def _line(text: str, seconds: int | None) -> payload_pb2.LogLine:
    timestamp = None if seconds is None else Timestamp(seconds=seconds, nanos=7)
    return payload_pb2.LogLine(timestamp=timestamp, message=f"{text}\r\n", originator=payload_pb2.SYSTEM)


async def test_the_platforms_own_lines_are_told_apart(flyte: FlytePlatform, server: FlyteServer) -> None:
    run = (await flyte.invoke("env.greet", request(trouble="hangs"))).invocation_id
    await running(flyte, run)
    (row,) = server.backend.runs.values()
    row.logs[1].append(_line("pulled the image", LATER))
    page = await flyte.logs(run)
    assert [(one.log, one.process) for one in page.items] == [
        ("hanging", LogProcess.Action),
        ("pulled the image", LogProcess.Monitor),
    ]


async def test_attempts_follow_one_another(flyte: FlytePlatform) -> None:
    run = (await flyte.invoke("env.greet", request(trouble="once"))).invocation_id
    await ended(flyte, run)
    assert (await everything(flyte, run))[0] == ["the first try", "hello ada 0"]


async def test_attempt_without_a_pod_is_skipped_and_the_next_one_is_read(
    flyte: FlytePlatform, server: FlyteServer
) -> None:
    run = (await flyte.invoke("env.greet", request(trouble="once"))).invocation_id
    await ended(flyte, run)
    (row,) = server.backend.runs.values()
    del row.logs[1]
    assert (await everything(flyte, run))[0] == ["hello ada 0"]
    server.backend.collect_garbage()
    lines, pages = await everything(flyte, run, "2|2026-01-31T12:00:00.000000000|1")
    assert lines == []
    assert pages[-1].last_read == "2|2026-01-31T12:00:00.000000000|1"


async def test_before_there_is_a_pod_there_is_nothing(flyte: FlytePlatform, server: FlyteServer) -> None:
    server.backend.stop_workers()
    run = (await flyte.invoke("env.greet", request())).invocation_id
    page = await flyte.logs(run)
    assert (page.items, page.has_next, page.last_read) == ([], False, "1||0")


async def test_a_run_or_a_cursor_that_is_none_is_rejected(flyte: FlytePlatform) -> None:
    with pytest.raises(NotFoundError):
        await flyte.logs(f"{PROJECT}/{DOMAIN}/no-such-run")
    run = (await flyte.invoke("env.greet", request())).invocation_id
    with pytest.raises(InvalidRequestError, match="not a cursor of Flyte's logs"):
        await flyte.logs(run, "17")


async def test_a_page_of_a_log_that_goes_on_comes_soon_and_leaves_no_stream(
    flyte: FlytePlatform, server: FlyteServer
) -> None:
    run = (await flyte.invoke("env.greet", request(trouble="hangs"))).invocation_id
    await running(flyte, run)
    async with asyncio.timeout(3):
        page = await flyte.logs(run)
    assert len(page.items) == 1
