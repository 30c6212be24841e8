"""Read server-sent events (WHATWG HTML, section 9.2) in the form that the local server writes."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx

from ..errors import UnavailableError
from ..http import chunks_of

#: Bytes of one line of a stream; a longer one ends it.
MAX_LINE = 16 * 1024 * 1024

#: Digits of an event's id.
_ID_DIGITS = 18


async def server_sent_events(answer: httpx.Response) -> AsyncIterator[tuple[str, int | None, str]]:
    """Yield name, id and data of each event; ids that aren't numbers count as none.

    :raises UnavailableError: a line is longer than MAX_LINE.
    """
    name, cursor = "", None
    async for line in _lines(answer):
        field, _, value = line.partition(": ")
        if field == "event":
            name, cursor = value, None
        elif field == "id":
            cursor = int(value) if value.isdecimal() and len(value) <= _ID_DIGITS else None
        elif field == "data":
            yield name, cursor, value


async def _lines(answer: httpx.Response) -> AsyncIterator[str]:
    received = bytearray()
    seen = 0
    async for chunk in chunks_of(answer):
        received += chunk
        while (end := received.find(b"\n", seen)) >= 0:
            line = bytes(received[:end])
            del received[: end + 1]
            seen = 0
            yield line.removesuffix(b"\r").decode("utf-8", errors="replace")
        seen = len(received)
        if seen > MAX_LINE:
            raise UnavailableError(f"{answer.request.url.host} sent a line of more than {MAX_LINE:,} bytes")
