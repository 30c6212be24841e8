"""What a watch is told, as server-sent events (WHATWG HTML, section 9.2)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from ..timestamps import moment
from ..watch_hub import Caught, Changed, Logged, LostPlace, Opened, Stated, Told, Unreadable

#: Seconds of silence after which a heartbeat is sent.
HEARTBEAT = 15.0

_HEARTBEAT = b": heartbeat\n\n"


async def server_sent_events(told: AsyncIterator[Told], heartbeat: float = HEARTBEAT) -> AsyncIterator[bytes]:
    """Encode what is told, with a comment as a heartbeat whenever nothing was for `heartbeat` seconds."""
    following = asyncio.ensure_future(anext(told, None))
    try:
        while True:
            done, _ = await asyncio.wait({following}, timeout=heartbeat)
            if not done:
                yield _HEARTBEAT
                continue
            thing = following.result()
            if thing is None:
                return
            yield _encoded(thing)
            following = asyncio.ensure_future(anext(told, None))
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await told.aclose()  # type: ignore[attr-defined]


def _encoded(thing: Told) -> bytes:
    match thing:
        case Opened(watch_id):
            return _event("open", {"watch_id": watch_id})
        case Changed(event, number):
            data = {
                "number": event.number,
                "invocation_id": event.invocation_id,
                "action": event.action_name,
                "attempt": event.attempt,
                "status": event.status.value,
                "detail": event.detail,
                "timestamp": moment(event.timestamp).isoformat(),
            }
            return _event("status", data, number)
        case Caught(number):
            return _event("ready", {"number": number}, number)
        case Logged(invocation_id, page, begins_at):
            data = {"invocation_id": invocation_id, "begins_at": begins_at, **page.model_dump(mode="json")}
            return _event("log", data)
        case Unreadable(invocation_id, why):
            return _event("unreadable", {"invocation_id": invocation_id, "reason": why})
        case Stated(invocation_id, state):
            return _event("state", {"invocation_id": invocation_id, "state": state})
        case LostPlace(number):
            return _event("lost", {"number": number, "reason": "read too slowly; reopen with Last-Event-ID"})


def _event(name: str, data: dict[str, Any], number: int | None = None) -> bytes:
    place = "" if number is None else f"id: {number}\n"
    return f"event: {name}\n{place}data: {json.dumps(data, separators=(',', ':'))}\n\n".encode()
