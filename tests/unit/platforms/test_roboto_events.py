"""Events of the invocation API: pushed by the local server, asked for where there is no push."""

from __future__ import annotations

import datetime
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from airflow_invocations.models import (
    CaughtUp,
    EventFilter,
    InvocationEvent,
    InvocationRecord,
    InvocationStatus,
    UnreadableItem,
    is_time,
)
from airflow_invocations.platforms import UnavailableError
from airflow_invocations.platforms.roboto.events import RobotoLister

from ...support.records import (
    INVOCATION,
)
from ...support.scripted_server import (
    Script,
    answer,
    data,
    error,
    raw,
)

pytestmark = pytest.mark.anyio
S = InvocationStatus
NOON = datetime.datetime(2026, 1, 31, 12, tzinfo=datetime.UTC)
LATER = NOON + datetime.timedelta(minutes=2)
ENDS = EventFilter("count", frozenset({S.Completed, S.Failed}))


def stream(*events: tuple[str, int | None, str]) -> Any:
    """An answer with these server-sent events, that then breaks off."""
    text = "".join(
        f"event: {name}\n{f'id: {number}' + chr(10) if number is not None else ''}data: {body}\n\n"
        for name, number, body in events
    )
    return raw(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n" + text.encode())


def changed(number: int, status: int = 5, **changes: Any) -> tuple[str, int, str]:
    body = {
        "number": number, "invocation_id": f"iv_{number}", "action": "count", "attempt": 1, "status": status,
        "detail": None, "timestamp": NOON.isoformat(), **changes,
    }  # fmt: skip
    return "status", number, json.dumps(body)


async def heard(opened: Any) -> list[Any]:
    """Everything that a stream tells until it breaks."""
    told: list[Any] = []
    try:
        async with opened as events:
            async for one in events:
                told += [one]
    except UnavailableError:
        return told
    raise AssertionError("it ended just so")


async def test_pushed_events_are_read_and_unreadable_ones_reported(script: Script) -> None:
    script.answers = [
        stream(
            ("open", None, '{"watch_id": "wt_1"}'),
            changed(7),
            ("status", 8, "{half"),
            ("status", None, '{"number": 9}'),
            changed(10, status=998),
            ("ready", 10, '{"number": 10}'),
            changed(11, status=4711),
            ("lost", 11, '{"number": 11, "reason": "slow"}'),
            changed(12),
        )
    ]
    async with script.client() as platform:
        told = await heard(platform.events(ENDS, 6))
    assert script.seen[0].path == "/v1/actions/invocations/watch"
    assert script.seen[0].body == {"action": "count", "statuses": [5, 998], "since": 6}
    assert told[0] == InvocationEvent("iv_7", S.Completed, "count", NOON, 7)
    assert [type(one) for one in told[1:3]] == [UnreadableItem, UnreadableItem]
    assert (told[3].cursor, told[3].status, told[4]) == (10, S.Failed, CaughtUp(10))
    assert not told[5].status.is_known
    assert len(told) == 6


async def test_a_platform_that_has_pushed_and_answers_404_is_away_not_without_events(script: Script) -> None:
    script.answers = [error(404, "RobotoNotFoundException")]
    async with script.client() as platform:
        with pytest.raises(UnavailableError, match="but it had one before"):
            async with platform.events(ENDS, 6):
                raise AssertionError("it was opened")


async def test_where_there_is_no_push_it_is_asked(script: Script) -> None:
    script.answers = [error(404, "RobotoNotFoundException"), data({"items": [], "next_token": None})]
    async with script.client() as platform, platform.events(ENDS, None) as events:
        told = await anext(aiter(events))
    assert isinstance(told, CaughtUp)
    assert is_time(told.cursor)
    body = script.seen[1].body
    assert body["condition"]["conditions"][1] == {
        "field": "provenance.action.name", "comparator": "EQUALS", "value": "count",
    }  # fmt: skip
    assert (body["sort_by"], body["sort_direction"]) == ("created", "ASC")


async def test_a_place_that_is_a_time_is_never_sent_to_a_stream(script: Script) -> None:
    script.answers = [data({"items": [], "next_token": None})]
    async with script.client() as platform, platform.events(ENDS, 2**51) as events:
        assert await anext(aiter(events)) == CaughtUp(2**51)
    assert [seen.path for seen in script.seen] == ["/v1/actions/invocations/query"]


async def test_one_record_that_cannot_be_read_hides_no_other(script: Script) -> None:
    script.answers = [data({"items": [INVOCATION, {"invocation_id": "iv_2"}], "next_token": None})]
    async with script.client() as platform:
        found = await platform.records(["iv_1", "iv_2"])
    assert isinstance(found[0], InvocationRecord)
    assert isinstance(found[1], UnreadableItem)
    assert "Field required" in found[1].reason


async def test_other_errors_are_not_taken_for_a_missing_stream(script: Script) -> None:
    script.answers = [answer(503, b"try later")]
    async with script.client() as platform:
        with pytest.raises(UnavailableError):
            async with platform.events(ENDS, None):
                raise AssertionError("it was opened")


async def test_records_are_listed_as_they_are_and_what_cannot_be_read_by_its_id() -> None:
    asked: list[dict[str, Any]] = []

    async def items(condition: dict[str, Any]) -> AsyncIterator[Any]:
        asked.append(condition)
        steps = [
            {"status": 3, "timestamp": NOON.isoformat()},
            {"status": 998, "timestamp": LATER.isoformat()},
        ]
        yield {
            "invocation_id": "iv_1", "created": NOON.isoformat(), "last_status": 998, "status": steps[::-1],
            "provenance": {"action": {"name": "count"}},
        }  # fmt: skip
        yield {"invocation_id": "iv_2", "created": NOON.isoformat()}

    listing = RobotoLister(items, None)
    for listed in (
        [one async for one in listing.since(NOON)],
        [one async for one in listing.ended(["iv_1"])],
    ):
        readable, unreadable = listed
        assert (readable.invocation_id, readable.moment) == ("iv_1", NOON)
        assert readable.event == InvocationEvent("iv_1", S.Failed, "count", LATER, 1769860920000000)
        assert (unreadable.invocation_id, unreadable.moment) == ("iv_2", None)
        assert isinstance(unreadable.event, UnreadableItem)
    created, ended = asked
    assert [one["field"] for one in created["conditions"]] == ["created"]
    assert [one["value"] for one in ended["conditions"][0]["conditions"]] == ["iv_1"]
    assert ended["conditions"][1]["comparator"] == "GREATER_THAN_OR_EQUAL"
