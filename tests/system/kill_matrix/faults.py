"""The faults of the matrix, as behaviour of a proxy."""

from __future__ import annotations

import asyncio
import json
import re

from .proxy import Exchange, Fault

#: Seconds between the chunks of a slow body, and their number.
_SLOW_PAUSE, _SLOW_PIECES = 0.4, 8

_HTML = b"<html><head><title>Bad Gateway</title></head><body><h1>502</h1><hr>gateway</body></html>"


def rejection(status: int, retry_after: float | None = None) -> Fault:
    """Respond with an error of the API, and with Retry-After in seconds if given."""
    body = json.dumps(
        {"error": {"error_code": "RobotoServiceException", "message": f"{status}, by the test"}}
    )
    headers = [] if retry_after is None else [("Retry-After", str(retry_after))]

    async def reject(exchange: Exchange) -> None:
        await exchange.answer(status, body.encode(), headers=headers)

    return reject


async def hang(exchange: Exchange) -> None:
    """Never answer, and never forward: the client's timeout ends it."""
    await exchange.client_gone()


async def break_connection(exchange: Exchange) -> None:
    """Reset the connection before anything was forwarded."""
    exchange.reset()


async def lose_answer(exchange: Exchange) -> None:
    """Forward, wait for the complete response, and reset instead of responding."""
    async with exchange.forwarded() as response:
        if response.headers.get("content-type", "").startswith("text/event-stream"):
            await anext(response.aiter_raw())
        else:
            await response.aread()
    exchange.reset()


async def slow_body(exchange: Exchange) -> None:
    """Send the response in small chunks with pauses; of a stream, its beginning, and then its end."""
    async with exchange.forwarded() as response:
        if "content-length" not in response.headers:
            await exchange.answer(200, await anext(response.aiter_raw()), response.headers["content-type"])
            return
        body = await response.aread()
    step = len(body) // _SLOW_PIECES + 1
    await exchange.head(response.status_code, [("Content-Length", str(len(body)))])
    for start in range(0, len(body), step):
        await exchange.write(body[start : start + step])
        await asyncio.sleep(_SLOW_PAUSE)


async def half_json(exchange: Exchange) -> None:
    """Forward, and respond with 200 and only the first half of the body."""
    async with exchange.forwarded() as response:
        if "content-length" in response.headers:
            body = await response.aread()
        else:
            body = await anext(response.aiter_raw())
    await exchange.answer(response.status_code, body[: len(body) // 2], response.headers["content-type"])


async def html_page(exchange: Exchange) -> None:
    """Respond with a gateway's HTML page."""
    await exchange.answer(502, _HTML, "text/html")


async def not_found(exchange: Exchange) -> None:
    """Respond as a platform without this route."""
    body = {"error": {"error_code": "RobotoNotFoundException", "message": "no such route"}}
    await exchange.answer(404, json.dumps(body).encode())


async def unknown_status(exchange: Exchange) -> None:
    """Replace the status Completed (5) by an unknown status (777)."""
    async with exchange.forwarded() as response:
        await exchange.relay(response, _with_unknown_status)


def _with_unknown_status(body: bytes) -> bytes:
    return re.sub(rb'("(?:last_)?status"\s*:\s*)5\b', rb"\g<1>777", body)


#: By their name in the matrix.
FAULTS: dict[str, Fault] = {
    "429": rejection(429, retry_after=1),
    "500": rejection(500),
    "503": rejection(503),
    "timeout": hang,
    "reset": break_connection,
    "slow body": slow_body,
    "half JSON": half_json,
    "HTML": html_page,
}
