"""Refuses request bodies over a limit, whether they announce their length or not."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import InvalidRequestError


class BodyLimit:
    """ASGI middleware: a body over `limit` bytes is answered with 413 and the error envelope."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app = app
        self._limit = limit
        self._refusal = InvalidRequestError(f"the request is larger than {limit} bytes")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI scope."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if announced.isdigit() and int(announced) > self._limit:
            await JSONResponse(self._refusal.body(), status_code=413)(scope, receive, send)
            return
        seen = 0

        async def limited() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._limit:
                # The one exception that FastAPI lets through while it reads a body.
                raise HTTPException(413, self._refusal.message)
            return message

        await self._app(scope, limited, send)
