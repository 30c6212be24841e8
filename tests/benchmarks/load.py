"""A minimal load generator: prepared bytes on kept-alive connections.

A client that costs more than the server, as httpx does on two processors, would measure itself.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit


class Connection:
    """One kept-alive HTTP/1.1 connection."""

    def __init__(self, endpoint: str, token: str = "") -> None:
        parts = urlsplit(endpoint)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 80
        self._token = token

    async def __aenter__(self) -> Connection:
        self._reader, self._writer = await asyncio.open_connection(self._host, self._port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()
        await self._writer.wait_closed()

    async def post(self, path: str, body: dict[str, Any]) -> bytes:
        """Return the response's body. Raises RuntimeError unless the status is 200."""
        content = json.dumps(body).encode()
        self._writer.write(
            (
                f"POST /{path} HTTP/1.1\r\nHost: {self._host}\r\nAuthorization: Bearer {self._token}\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
            ).encode()
            + content
        )
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
        answer = await self._reader.readexactly(length)
        if not head.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"{path}: {head.splitlines()[0].decode()}: {answer[:300].decode()}")
        return answer


async def post_many(
    endpoint: str,
    token: str,
    path: str,
    body: Callable[[int], dict[str, Any]],
    count: int,
    connections: int,
) -> float:
    """Post `count` bodies over several connections at the same time; return the requests per second."""
    numbers = iter(range(count))

    async def post_on_one() -> None:
        async with Connection(endpoint, token) as connection:
            for number in numbers:
                await connection.post(path, body(number))

    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(connections):
            group.create_task(post_on_one())
    return count / (time.perf_counter() - began)
