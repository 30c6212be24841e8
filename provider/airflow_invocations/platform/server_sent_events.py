"""Reads server-sent events (WHATWG HTML, section 9.2), as far as the local service writes them."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx


async def server_sent_events(answer: httpx.Response) -> AsyncIterator[tuple[str, int | None, str]]:
    """Name, id and data of each event; ids that aren't numbers count as none."""
    name, place = "", None
    async for line in answer.aiter_lines():
        field, _, value = line.partition(": ")
        if field == "event":
            name, place = value, None
        elif field == "id":
            place = int(value) if value.isdecimal() else None
        elif field == "data":
            yield name, place, value
