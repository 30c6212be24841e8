"""A server that answers exactly what a test tells it to, over a real socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from airflow_invocations.platforms.roboto.client import RobotoSettings
from airflow_invocations.platforms.roboto.platform import RobotoPlatform

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def raw(content: bytes) -> Answer:
    """Send these bytes and hang up."""

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(content)
        await writer.drain()

    return answer


def answer(status: int, body: object = None, **headers: str) -> Answer:
    """A well-formed HTTP answer; a body that isn't bytes is sent as JSON."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} Whatever", f"content-length: {len(content)}", "connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return raw("\r\n".join(lines).encode() + b"\r\n\r\n" + content)


def data(content: object) -> Answer:
    """A 200 with the API's envelope."""
    return answer(200, {"data": content})


def error(status: int, code: str, message: str = "no", **headers: str) -> Answer:
    """An error in the API's envelope."""
    return answer(status, {"error": {"error_code": code, "message": message}}, **headers)


async def hang_up(_: asyncio.StreamReader, __: asyncio.StreamWriter) -> None:
    """Close the connection without a word."""


@dataclass
class Seen:
    """A request that arrived."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any


@dataclass
class Script:
    """What the server answers, in order, and what it was asked. The last answer is repeated."""

    endpoint: str
    answers: list[Answer] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)

    def settings(self, **changes: Any) -> RobotoSettings:
        return RobotoSettings(
            **{"endpoint": self.endpoint, "token": "s3cret-token", "timeout": 5.0, **changes}
        )

    def client(self, **changes: Any) -> RobotoPlatform:
        return RobotoPlatform(self.settings(**changes))


def _read(body: bytes) -> Any:
    try:
        return json.loads(body) if body else None
    except ValueError:
        return body


@asynccontextmanager
async def scripted_server() -> AsyncIterator[Script]:
    script = Script("")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            first, *lines = head.strip().split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            method, path, _ = first.split(" ")
            script.seen.append(Seen(method, path, headers, _read(body)))
            reply = script.answers.pop(0) if len(script.answers) > 1 else script.answers[0]
            await reply(reader, writer)
        except asyncio.IncompleteReadError:
            pass  # a client that has connected, and then had nothing that can be sent
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=32 * 1024 * 1024)
    async with server:
        script.endpoint = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        yield script
