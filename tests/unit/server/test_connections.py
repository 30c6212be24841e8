"""Bounds of connections: how many, and how long a request may take to arrive."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import uvicorn
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from airflow_invocations.server import connections
from airflow_invocations.server.connections import BoundedConfig, RareReports, max_connections

pytestmark = pytest.mark.anyio

Serve = Callable[..., Any]
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
WHOLE = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
HALF = b"GET / HTTP/1.1\r\nHost:"


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with the body."""
    body = await Request(scope, receive).body()
    await PlainTextResponse(body or b"empty")(scope, receive, send)


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Serve an application; where it listens."""
    async with contextlib.AsyncExitStack() as stack:

        async def serve(most: int = 100) -> tuple[str, int]:
            config = BoundedConfig(echo, most, host="127.0.0.1", port=0, log_config=None, lifespan="off")
            server = uvicorn.Server(config)
            config.load()
            server.lifespan = config.lifespan_class(config)
            await server.startup()
            stack.push_async_callback(server.shutdown)
            address: tuple[str, int] = server.servers[0].sockets[0].getsockname()
            return address

        yield serve


@contextlib.asynccontextmanager
async def opened(address: tuple[str, int]) -> AsyncIterator[Streams]:
    """A connection for as long as a test wants it."""
    reader, writer = await asyncio.open_connection(*address)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def answer(reader: asyncio.StreamReader) -> bytes:
    async with asyncio.timeout(10):
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        return await reader.readexactly(length)


async def closed(reader: asyncio.StreamReader) -> bool:
    """Whether the other side closes the connection within some seconds, having said nothing."""
    async with asyncio.timeout(10):
        try:
            return await reader.read() == b""
        except ConnectionError:
            return True


async def test_a_request_whose_headers_do_not_arrive_in_time_is_given_up(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "HEADERS_TIMEOUT", 0.2)
    address = await serve()
    for sent in (b"", HALF):
        async with opened(address) as (reader, writer):
            writer.write(sent)
            assert await closed(reader)


async def test_a_body_that_does_not_arrive_in_time_is_given_up(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "BODY_TIMEOUT", 0.2)
    async with opened(await serve()) as (reader, writer):
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nab")
        assert await closed(reader)


async def test_requests_one_after_another_and_at_once_are_answered_on_one_connection(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "HEADERS_TIMEOUT", 0.3)
    async with opened(await serve()) as (reader, writer):
        for _ in range(4):  # longer in all than one request's headers may take
            await asyncio.sleep(0.1)
            writer.write(WHOLE)
            assert await answer(reader) == b"empty"
        writer.write(WHOLE + b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nab" + HALF)
        assert [await answer(reader), await answer(reader)] == [b"empty", b"ab"]
        assert await closed(reader)


async def test_the_connection_that_has_waited_longest_makes_room(serve: Serve) -> None:
    address = await serve(3)
    async with contextlib.AsyncExitStack() as stack:
        first, *others = [await stack.enter_async_context(opened(address)) for _ in range(3)]
        last = await stack.enter_async_context(opened(address))
        assert await closed(first[0])
        for reader, writer in (last, *others):
            writer.write(WHOLE)
            assert await answer(reader) == b"empty"


def test_connections_leave_descriptors_to_the_runner() -> None:
    assert max_connections(1024, slots=8) == 400
    assert max_connections(64, slots=8) == 16
    assert 2 * max_connections(4096, slots=64) < 4096 - 12 * 64


async def test_connections_that_cannot_be_accepted_are_reported_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    reports = RareReports()
    loop = asyncio.get_running_loop()
    error = OSError(24, "Too many open files")
    for _ in range(100):
        reports(loop, {"message": "socket.accept() out of system resource", "exception": error})
    assert [record.getMessage() for record in caplog.records] == [
        "cannot accept connections: [Errno 24] Too many open files"
    ]
