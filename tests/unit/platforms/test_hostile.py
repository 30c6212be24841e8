"""A platform, or something in its place, that answers with what nobody should have to read."""

from __future__ import annotations

import asyncio
import gzip
import json
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from airflow_invocations import invocation_api
from airflow_invocations.models import EventFilter
from airflow_invocations.platforms import (
    InvalidRequestError,
    PermanentError,
    Platform,
    TransientError,
    UnavailableError,
    http,
)
from airflow_invocations.platforms.flyte import FlytePlatform, FlyteSettings
from airflow_invocations.platforms.flyte import client as connect
from airflow_invocations.platforms.http import TooLargeError
from airflow_invocations.platforms.roboto import server_sent_events
from airflow_invocations.platforms.roboto.client import RobotoSettings
from airflow_invocations.platforms.roboto.platform import RobotoPlatform

from ...support.records import (
    INVOCATION,
)
from ...support.scripted_server import (
    Answer,
    Script,
    answer,
    data,
    raw,
)

pytestmark = pytest.mark.anyio

MB = 1024 * 1024

#: How each platform is asked for something that a wait asks for.
POLLS: dict[str, Callable[[Script], tuple[Platform, str]]] = {
    "roboto": lambda script: (script.client(), "iv_1"),
    "flyte": lambda script: (FlytePlatform(FlyteSettings(script.endpoint, timeout=5.0)), "p/d/r"),
}


@pytest.fixture(autouse=True)
def once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(invocation_api, "ATTEMPTS", 1)
    monkeypatch.setattr(connect, "ATTEMPTS", 1)


def bomb(size: int) -> bytes:
    packed = gzip.compress(b'{"data": "' + b" " * size + b'"}')
    return answer_of(packed, "content-encoding: gzip")


def answer_of(content: bytes, *headers: str) -> bytes:
    head = [f"HTTP/1.1 200 OK\r\ncontent-length: {len(content)}\r\ncontent-type: application/json", *headers]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + content


DEEP = b"[" * 500_000 + b"]" * 500_000
DIGITS = b"9" * 100_000

HOSTILE: dict[str, Answer] = {
    "deep JSON": answer(200, b'{"data": ' + DEEP + b"}"),
    "deep error": answer(400, DEEP),
    "an integer of 100,000 digits": answer(200, b'{"data": ' + DIGITS + b"}"),
    "packed with something else": raw(answer_of(b"x" * 1000, "content-encoding: br")),
    "packed twice": raw(answer_of(gzip.compress(gzip.compress(b"{}")), "content-encoding: gzip, gzip")),
    "packed and broken": raw(answer_of(b"no gzip", "content-encoding: gzip")),
    "not UTF-8": answer(200, b'{"data": "\xff\xfe"}'),
    "no object": answer(200, b"[]"),
}


@pytest.mark.parametrize("poll", POLLS)
@pytest.mark.parametrize("said", HOSTILE)
async def test_a_poll_that_can_not_be_read_is_never_a_verdict(script: Script, poll: str, said: str) -> None:
    script.answers = [HOSTILE[said]]
    platform, invocation_id = POLLS[poll](script)
    async with platform:
        for ask in (lambda: platform.get(invocation_id), lambda: platform.statuses([invocation_id])):
            with pytest.raises(TransientError):
                await ask()


async def test_an_answer_of_other_types_is_an_outage(script: Script) -> None:
    for content in ({}, 5, [], {"invocation_id": {"a": [1]}}, {**INVOCATION, "status": [5]}, {"items": 5}):
        script.answers = [data(content)]
        async with script.client() as platform:
            for ask in (lambda: platform.get("iv_1"), lambda: platform.statuses(["iv_1"])):
                with pytest.raises(TransientError):
                    await ask()


@pytest.mark.parametrize("poll", POLLS)
async def test_an_answer_that_unpacks_to_more_than_is_read_is_an_outage(
    script: Script, poll: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "MAX_ANSWER", 8 * MB)
    script.answers = [raw(bomb(600 * MB))]
    platform, invocation_id = POLLS[poll](script)
    async with platform:
        tracemalloc.start()
        with pytest.raises(TooLargeError, match="more than 8,388,608 bytes"):
            await platform.get(invocation_id)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert most < 160 * MB


async def test_a_page_of_large_records_is_asked_for_in_smaller_ones(
    script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "MAX_ANSWER", 100_000)
    records = [{**INVOCATION, "invocation_id": f"iv_{n}", "idempotency_id": "x" * 200} for n in range(1000)]

    async def page(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        body = script.seen[-1].body
        begin = int(body.get("after", 0))
        end = begin + body["limit"]
        items = records[begin:end]
        content = json.dumps({"data": {"items": items, "next_token": str(end) if end < 1000 else None}})
        writer.write(answer_of(content.encode(), "connection: close"))
        await writer.drain()

    script.answers = [page]
    async with script.client() as platform:
        found = await platform.statuses([record["invocation_id"] for record in records])
    assert [one.invocation_id for one in found] == [record["invocation_id"] for record in records]
    assert {seen.body["limit"] for seen in script.seen} == {1000, 250, 62}


@pytest.mark.parametrize("status", [400, 403, 503])
async def test_texts_of_a_platform_are_shortened_without_control_characters(
    script: Script, status: int
) -> None:
    evil = "\x1b[31mFAKE\x1b[0m\r\n2026-01-01 INFO all is well\0\x07" + "x" * 2_000_000
    script.answers = [answer(status, {"error": {"error_code": "E", "message": evil}})]
    async with script.client() as platform:
        with pytest.raises((PermanentError, TransientError)) as raised:
            await platform.get("iv_1")
    message = str(raised.value)
    assert len(message) <= 2_000
    assert "\x1b" not in message
    assert "\r" not in message
    assert message.startswith("FAKE")


async def endless(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send a stream of which no line ends."""
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n")
    try:
        while True:
            writer.write(b"data: " + b"x" * 65536)
            await writer.drain()
    except ConnectionError:
        pass


def streamed(*lines: bytes) -> Answer:
    content = b"\n".join(lines) + b"\n\n"
    return raw(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n" + content)


@asynccontextmanager
async def watch(platform: RobotoPlatform) -> AsyncIterator[Any]:
    async with platform.watch(["iv_1"], {}, None) as stream:
        yield stream


@asynccontextmanager
async def events(platform: RobotoPlatform) -> AsyncIterator[Any]:
    async with platform.events(EventFilter(None, None), 7) as stream:
        yield stream


@pytest.mark.parametrize("opened", [watch, events], ids=["watch", "events"])
async def test_a_line_of_a_stream_that_never_ends_breaks_the_stream(
    script: Script, monkeypatch: pytest.MonkeyPatch, opened: Any
) -> None:
    monkeypatch.setattr(server_sent_events, "MAX_LINE", MB)
    script.answers = [endless]
    async with script.client() as platform, opened(platform) as stream:
        with pytest.raises(UnavailableError, match="a line of more than 1,048,576 bytes"):
            async for _ in stream:
                pass


@pytest.mark.parametrize(
    "lines",
    [
        (b"event: status", b"data: " + DEEP),
        (b"event: status", b"data: 5"),
        (b"event: status", b'data: {"invocation_id": 5, "status": {}}'),
        (b"event: open", b"data: {}"),
        (b"event: open", b"data: []"),
        (b"event: log", b'data: {"invocation_id": "iv_1"}'),
        (b"event: unreadable", b"data: {}"),
        (b"event: ready", b'data: {"number": "x"}'),
        (b"event: ready", b'data: {"number": 1e400}'),
        (b"event: lost", b'data: {"number": ' + DIGITS + b"}"),
        (b"event: lost", b"data: null"),
        (b"event: status", b"data: \xff\xfe"),
    ],
    ids=lambda lines: b" ".join(lines)[:40].decode(errors="replace"),
)
async def test_an_event_that_is_none_breaks_the_stream_and_nothing_else(
    script: Script, lines: tuple[bytes, ...]
) -> None:
    script.answers = [streamed(*lines)]
    async with script.client() as platform, watch(platform) as stream:
        with pytest.raises(UnavailableError):
            async for _ in stream:
                pass


@pytest.mark.parametrize(
    "number", [DIGITS, "\uff15".encode() * 30, b"-1", b"x"], ids=["long", "wide", "neg", "x"]
)
async def test_an_id_that_is_no_number_counts_as_none(script: Script, number: bytes) -> None:
    script.answers = [streamed(b"event: open", b"id: " + number, b'data: {"watch_id": "w"}')]
    async with script.client() as platform, watch(platform) as stream:
        with pytest.raises(UnavailableError, match="closed the stream"):
            async for _ in stream:
                pass
        assert stream.cursor is None


async def test_a_line_separator_of_unicode_ends_no_line(script: Script) -> None:
    text = json.dumps({"invocation_id": "iv\u2028\x85", "reason": "no"}, ensure_ascii=False)
    script.answers = [streamed(b"event: unreadable\r", b"data: " + text.encode() + b"\r")]
    async with script.client() as platform, watch(platform) as stream:
        told = await anext(aiter(stream))
    assert told.invocation_id == "iv\u2028\x85"


async def test_an_answer_that_trickles_in_ends(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    async def trickle(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n")
        try:
            while True:
                writer.write(b"x")
                await writer.drain()
                await asyncio.sleep(0.02)
        except ConnectionError:
            pass

    monkeypatch.setattr(http, "MAX_ANSWER_TIME", 0.5)
    script.answers = [trickle]
    async with script.client() as platform:
        with pytest.raises(UnavailableError, match=r"took longer than 0\.5 s to send its response"):
            await platform.get("iv_1")


@pytest.mark.parametrize(
    "changes",
    [
        {"endpoint": "http://h:port"},
        {"endpoint": "gopher://h"},
        {"token": "a\nb"},
    ],
    ids=str,
)
async def test_a_request_that_can_not_be_sent_is_no_outage(script: Script, changes: dict[str, str]) -> None:
    script.answers = [data(INVOCATION)]
    settings: dict[str, Any] = {"endpoint": script.endpoint, "token": "t", "timeout": 5.0, **changes}

    async def ask(operation: Callable[[RobotoPlatform], Awaitable[Any]]) -> None:
        with pytest.raises(InvalidRequestError, match="can't be sent"):
            async with RobotoPlatform(RobotoSettings(**settings)) as platform:
                await operation(platform)

    async def watched(platform: RobotoPlatform) -> None:
        async with watch(platform):
            pass

    await ask(lambda platform: platform.get("iv_1"))
    await ask(watched)


async def test_a_good_answer_is_read_packed_or_not(script: Script) -> None:
    packed = gzip.compress(json.dumps({"data": INVOCATION}).encode())
    for said in (data(INVOCATION), raw(answer_of(packed, "content-encoding: gzip", "connection: close"))):
        script.answers = [said]
        async with script.client() as platform:
            assert (await platform.get("iv_1")).invocation_id == "iv_1"
    assert script.seen[-1].headers["accept-encoding"] == "gzip, deflate"
