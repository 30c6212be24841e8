"""Many statuses at once: a batch in one query, a stream of events, and what stands in for a stream."""

from __future__ import annotations

import datetime
import json
from typing import Any

import pytest

from airflow_invocations.models import (
    CaughtUp,
    InvocationEvent,
    InvocationStatus,
    NewLines,
    QuerySpecification,
    StatusSnapshot,
    UnreadableLog,
    WatchMessage,
)
from airflow_invocations.platforms import (
    NotFoundError,
    PermanentError,
    PlatformError,
    RateLimitedError,
    TransientError,
    UnauthorizedError,
    UnavailableError,
    UnsupportedError,
)

from ...support.scripted_server import (
    Answer,
    Script,
    answer,
    data,
    error,
    hang_up,
    raw,
)

pytestmark = pytest.mark.anyio
S = InvocationStatus


def item(invocation_id: str, status: int) -> dict[str, Any]:
    return {"invocation_id": invocation_id, "last_status": status, "whatever": "else"}


async def test_a_batch_is_one_query_that_the_api_has(script: Script) -> None:
    script.answers = [data({"items": [item("iv_1", 3), item("iv_2", 5)], "next_token": None})]
    async with script.client() as platform:
        found = await platform.statuses(["iv_1", "iv_2", "iv_3"])
    assert found == [StatusSnapshot("iv_1", S.Processing), StatusSnapshot("iv_2", S.Completed)]
    (seen,) = script.seen
    assert (seen.method, seen.path) == ("POST", "/v1/actions/invocations/query")
    spec = QuerySpecification.model_validate(seen.body)
    assert len(spec.condition.conditions) == 3  # type: ignore[union-attr]


async def test_ended_queries_terminal_statuses_only_page_by_page(script: Script) -> None:
    script.answers = [
        data({"items": [item("iv_1", 998)], "next_token": "next"}),
        data({"items": [item("iv_2", 4711)], "next_token": None}),
    ]
    async with script.client() as platform:
        found = await platform.ended(["iv_1", "iv_2"])
    assert [snapshot.status.name for snapshot in found] == ["Failed", "unknown status 4711"]
    assert all(snapshot.status.is_terminal for snapshot in found)
    first, second = (seen.body for seen in script.seen)
    assert first["condition"]["conditions"][1] == {
        "field": "last_status", "comparator": "GREATER_THAN_OR_EQUAL", "value": 5,
    }  # fmt: skip
    assert second == {**first, "after": "next"}


async def test_active_invocations_are_found_by_idempotency_ids(script: Script) -> None:
    script.answers = [data({"items": [item("iv_1", 3)], "next_token": None})]
    async with script.client() as platform:
        assert await platform.active(["a", "b"]) == [StatusSnapshot("iv_1", S.Processing)]
    (seen,) = script.seen
    any_of, under_way = seen.body["condition"]["conditions"]
    assert [one["field"] for one in any_of["conditions"]] == ["idempotency_id"] * 2
    assert (under_way["comparator"], under_way["value"]) == ("LESS_THAN", 5)


def stream_of(*events: str, end: bytes = b"") -> Answer:
    body = "".join(f"{event}\n\n" for event in events).encode() + end
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\nconnection: close\r\n\r\n"
    return raw(head + body)


def event(name: str, content: object, cursor: int | None = None) -> str:
    at = "" if cursor is None else f"id: {cursor}\n"
    return f"event: {name}\n{at}data: {json.dumps(content)}"


NOON = datetime.datetime(2026, 1, 31, 12, tzinfo=datetime.UTC)


def status_content(number: int, status: int, detail: str | None = None) -> dict[str, Any]:
    return {
        "number": number, "invocation_id": "iv_1", "action": "count", "attempt": 1, "status": status,
        "detail": detail, "timestamp": NOON.isoformat(),
    }  # fmt: skip


LINE = {"log": "a", "process": "action", "timestamp": "2026-01-31T12:00:01Z"}


async def test_a_stream_is_read_as_what_it_tells(script: Script) -> None:
    script.answers = [
        stream_of(
            event("open", {"watch_id": "wt_1"}),
            event("status", status_content(6, 0)),
            event("ready", {"number": 7}, 7),
            ": heartbeat",
            event("log", {"invocation_id": "iv_1", "items": [LINE], "has_next": False, "last_read": "2"}),
            event("unreadable", {"invocation_id": "iv_2", "reason": "no such cursor"}),
            event("invented_tomorrow", {"x": 1}),
            event("status", status_content(9, 998, "exit code 3"), 9),
        ),
        data({"watching": 2}),
    ]
    told: list[WatchMessage] = []
    async with script.client() as platform, platform.watch(["iv_1"], {"iv_1": None}, None) as watch:

        async def read() -> None:
            async for thing in watch:
                told.append(thing)
                if isinstance(thing, CaughtUp):
                    await watch.change(["iv_2"], ["iv_3"], {"iv_2": "5"})

        with pytest.raises(TransientError, match="closed the stream"):
            await read()
        assert watch.cursor == 9
    assert told[:2] == [
        InvocationEvent("iv_1", S.Queued, "count", NOON, 6, is_snapshot=True),
        CaughtUp(7),
    ]
    assert isinstance(told[2], NewLines)
    assert [entry.log for entry in told[2].page.items] == ["a"]
    assert told[3:] == [
        UnreadableLog("iv_2", "no such cursor"),
        InvocationEvent("iv_1", S.Failed, "count", NOON, 9, detail="exit code 3"),
    ]
    opened, changed = script.seen
    assert (opened.method, opened.path) == ("POST", "/v1/actions/invocations/watch")
    assert opened.body == {"ids": ["iv_1"], "logs": {"iv_1": None}, "since": None}
    assert (changed.method, changed.path) == ("PATCH", "/v1/actions/invocations/watch/wt_1")
    assert changed.body == {"add": ["iv_2"], "remove": ["iv_3"], "logs": {"iv_2": "5"}}


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        (answer(404, {"message": "no such route"}), UnsupportedError),
        (answer(403, {"message": "Missing Authentication Token"}), UnsupportedError),
        (answer(405, b"Method Not Allowed"), UnsupportedError),
        (error(400, "RobotoInvalidRequestException", "too many ids"), UnsupportedError),
        (error(401, "RobotoUnauthorizedException"), UnauthorizedError),
        (answer(503, b"<html>maintenance</html>"), UnavailableError),
        (answer(200, b"<html>log in</html>", content_type="text/html"), UnavailableError),
        (hang_up, UnavailableError),
        (stream_of("event: status\ndata: {half a"), UnavailableError),
        (stream_of(event("status", {"invocation_id": "iv_1"})), UnavailableError),
    ],
)
async def test_response_that_is_not_a_stream_is_described(
    script: Script, given: Answer, kind: type[PlatformError]
) -> None:
    script.answers = [given]

    async def read() -> None:
        async with script.client() as platform, platform.watch(["iv_1"], {}, None) as watch:
            async for _ in watch:
                pass

    with pytest.raises(kind):
        await read()


async def test_a_stream_that_cannot_be_changed_any_more_is_opened_anew_or_given_up(script: Script) -> None:
    opening = stream_of(event("open", {"watch_id": "wt_1"}), event("ready", {"number": 1}, 1))
    for rejection, kind in (
        (error(404, "RobotoNotFoundException"), TransientError),
        (error(400, "RobotoInvalidRequestException", "at most 20,000"), UnsupportedError),
    ):
        script.answers = [opening, rejection]
        async with script.client() as platform, platform.watch(["iv_1"], {}, None) as watch:
            with pytest.raises(TransientError):
                await watch.change(["iv_2"], [], {})  # it isn't open yet
            assert await anext(aiter(watch)) == CaughtUp(1)
            with pytest.raises(kind):
                await watch.change(["iv_2"], [], {})


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        (error(404, "RobotoNotFoundException"), NotFoundError),
        (answer(404, b"<html>no such page</html>"), UnavailableError),
        (answer(400, b"<html>bad request</html>"), UnavailableError),
        (answer(403, b"<html>forbidden</html>"), UnavailableError),
        (answer(401, b"<html>log in</html>"), UnauthorizedError),
        (answer(429, b"slow down"), RateLimitedError),
        (answer(302, b"", location="http://elsewhere/"), PermanentError),
    ],
)
async def test_only_the_api_itself_can_say_that_something_is_not_there(
    script: Script, no_pauses: list[float], given: Answer, kind: type[PlatformError]
) -> None:
    script.answers = [given]
    async with script.client() as platform:
        with pytest.raises(PlatformError) as raised:
            await platform.get("iv_1")
    assert type(raised.value) is kind


async def test_how_long_the_platform_wants_to_be_left_alone_is_in_the_error(
    script: Script, no_pauses: list[float]
) -> None:
    script.answers = [error(429, "RobotoLimitExceededException", retry_after="17"), answer(503, b"")]
    async with script.client() as platform:
        with pytest.raises(PlatformError):
            await platform.get("iv_1")
        with pytest.raises(UnavailableError) as unavailable:
            await platform.get("iv_1")
    assert unavailable.value.retry_after is None
    script.answers = [answer(503, b"", retry_after="17")]
    async with script.client() as platform:
        with pytest.raises(UnavailableError) as asked:
            await platform.get("iv_1")
    assert asked.value.retry_after == 17
