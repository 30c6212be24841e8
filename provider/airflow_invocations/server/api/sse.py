"""Send the messages of a stream as server-sent events (WHATWG HTML, section 9.2)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

from ...models import StreamMessage, encode_message

#: Seconds of silence after which a heartbeat is sent.
HEARTBEAT = 15.0

_HEARTBEAT = b": heartbeat\n\n"


async def server_sent_events(
    messages: AsyncIterator[StreamMessage], heartbeat: float = HEARTBEAT
) -> AsyncIterator[bytes]:
    """Encode messages, with a comment as a heartbeat after each `heartbeat` seconds without a message."""
    following = asyncio.ensure_future(anext(messages, None))
    try:
        while True:
            done, _ = await asyncio.wait({following}, timeout=heartbeat)
            if not done:
                yield _HEARTBEAT
                continue
            message = following.result()
            if message is None:
                return
            yield _encoded(message)
            following = asyncio.ensure_future(anext(messages, None))
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await messages.aclose()  # type: ignore[attr-defined]


def _encoded(message: StreamMessage) -> bytes:
    name, content, cursor = encode_message(message)
    cursor_line = "" if cursor is None else f"id: {cursor}\n"
    data = json.dumps(content, separators=(",", ":"))
    return f"event: {name}\n{cursor_line}data: {data}\n\n".encode()
