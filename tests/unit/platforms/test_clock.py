"""A platform whose clock is wrong: times are compared by its own clock."""

from __future__ import annotations

import asyncio
import datetime
import email.utils
from typing import Any

import httpx
import pytest

from airflow_invocations.platforms.clock import PlatformClock

from ...support.records import (
    INVOCATION,
)
from ...support.scripted_server import (
    Script,
    answer,
)

pytestmark = pytest.mark.anyio

MINUTES = datetime.timedelta(minutes=1)
SECONDS = datetime.timedelta(seconds=1)


def now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def platform_whose_clock_is_off(script: Script, by: datetime.timedelta, created: datetime.timedelta) -> Any:
    """An answer to a query for the newest: one invocation, created so long ago, if the query asks for it."""

    def found(body: Any) -> list[dict[str, Any]]:
        (since,) = [one["value"] for one in body["condition"]["conditions"] if one["field"] == "created"]
        at = now() + by - created
        record = {**INVOCATION, "created": at.isoformat()}
        return [record] if datetime.datetime.fromisoformat(since) <= at else []

    async def reply(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        body = script.seen[-1].body
        date = email.utils.format_datetime(now() + by, usegmt=True)
        content = {"data": {"items": found(body), "next_token": None}}
        await answer(200, content, date=date)(reader, writer)

    return reply


@pytest.mark.parametrize(
    "by", [-10 * MINUTES, -20 * SECONDS, -SECONDS, 0 * SECONDS, 20 * SECONDS, 10 * MINUTES]
)
async def test_newest_since_a_time_is_right_whatever_the_platforms_clock_says(
    script: Script, by: datetime.timedelta, caplog: pytest.LogCaptureFixture
) -> None:
    for created, is_found in ((10 * SECONDS, True), (2 * MINUTES, False)):
        script.answers = [platform_whose_clock_is_off(script, by, created)]
        async with script.client() as platform:
            for _ in range(2):  # the first answer tells what the clock says
                newest = await platform.newest("scan", now() - MINUTES)
                assert (newest is not None) is is_found
    assert ("platform's clock differs" in caplog.text) is (abs(by) > 5 * SECONDS)


async def test_a_slow_answer_is_no_wrong_clock(script: Script) -> None:
    """`Date` is older than the answer's arrival by as long as the answer takes."""
    clock = PlatformClock("http://platform.example")
    request = httpx.Request("GET", "http://platform.example")
    await clock._sending(request)
    request.extensions["airflow_invocations.sent"] = now() - MINUTES
    for age in (0, 30, 60):
        date = email.utils.format_datetime(now() - age * SECONDS, usegmt=True)
        await clock._answered(httpx.Response(200, headers={"date": date}, request=request))
    assert clock.offset == datetime.timedelta(0)


async def test_a_clock_that_is_set_right_is_believed_again(script: Script) -> None:
    clock = PlatformClock("http://platform.example")
    for by in (10 * MINUTES, 0 * MINUTES):
        request = httpx.Request("GET", "http://platform.example")
        await clock._sending(request)
        date = email.utils.format_datetime(now() + by, usegmt=True)
        await clock._answered(httpx.Response(200, headers={"date": date}, request=request))
        assert abs(clock.offset - by) < 2 * SECONDS


@pytest.mark.parametrize("date", [None, "yesterday", ""])
async def test_an_answer_without_a_date_says_nothing(date: str | None) -> None:
    clock = PlatformClock("http://platform.example")
    request = httpx.Request("GET", "http://platform.example")
    await clock._sending(request)
    headers = {} if date is None else {"date": date}
    await clock._answered(httpx.Response(200, headers=headers, request=request))
    assert clock.offset == datetime.timedelta(0)
