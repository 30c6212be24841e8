"""The local server's stream of status changes and log lines."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping

import httpx

from ...invocation_api import parse_json
from ...models import (
    CaughtUp,
    CursorLost,
    NewLines,
    StatusSnapshot,
    StreamOpened,
    UnreadableLog,
    WatchMessage,
    decode_message,
)
from ..errors import InvalidRequestError, NotFoundError, UnavailableError, UnsupportedError
from .client import WATCH, RobotoClient, segment
from .server_sent_events import server_sent_events


class RobotoWatch:
    """An open stream of server-sent events (WHATWG HTML, section 9.2)."""

    def __init__(self, client: RobotoClient, answer: httpx.Response, cursor: int | None) -> None:
        self.cursor = cursor
        self._client = client
        self._answer = answer
        self._watch_id: str | None = None

    async def __aiter__(self) -> AsyncIterator[WatchMessage]:
        """Yield messages in order. Raises TransientError when the stream ends."""
        async for name, cursor, text in server_sent_events(self._answer):
            self.cursor = self.cursor if cursor is None else cursor
            try:
                message = decode_message(name, parse_json(text), cursor)
            except ValueError as error:
                raise UnavailableError(f"the stream sent a malformed event: {error}") from None
            match message:
                case StreamOpened(watch_id):
                    self._watch_id = watch_id
                case CursorLost(cursor):
                    self.cursor = cursor
                case StatusSnapshot() | NewLines() | UnreadableLog() | CaughtUp():
                    yield message
        raise UnavailableError(f"{self._answer.request.url.host} closed the stream")

    async def change(
        self, add: Collection[str], remove: Collection[str], logs: Mapping[str, str | None]
    ) -> None:
        """Add and remove invocations.

        :raises TransientError: the stream isn't open.
        :raises UnsupportedError: a stream can't have this many.
        """
        if self._watch_id is None:
            raise UnavailableError("the stream isn't open yet")
        try:
            body = {"add": list(add), "remove": list(remove), "logs": dict(logs)}
            path = f"{WATCH}/{segment(self._watch_id)}"
            await self._client.call("PATCH", path, body=body, idempotent=True)
        except NotFoundError as error:
            raise UnavailableError(str(error)) from error
        except InvalidRequestError as error:
            raise UnsupportedError(str(error)) from error
