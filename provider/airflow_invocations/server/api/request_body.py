"""Request bodies: their maximum size, and strict JSON."""

from __future__ import annotations

from typing import Any

import pydantic_core
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ...models.base import require_plain_json
from ..errors import InvalidRequestError

#: Levels of lists and objects in a body: more than any single field may have.
MAX_BODY_DEPTH = 100


class BodyLimit:
    """ASGI middleware that rejects larger bodies with 413, whether or not they announce their length.

    :param app: handles the other requests.
    :param limit: the maximum size in bytes.
    """

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app = app
        self._limit = limit
        self._error = InvalidRequestError(f"the request is larger than {limit} bytes")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI scope."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if announced.isdigit() and int(announced) > self._limit:
            await JSONResponse(self._error.body(), status_code=413)(scope, receive, send)
            return
        received = 0

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._limit:
                # The only exception that FastAPI doesn't replace while it reads a body.
                raise HTTPException(413, self._error.message)
            return message

        await self._app(scope, limited, send)


class JsonRequest(Request):
    """A request whose body is read strictly: UTF-8, no NaN or Infinity, no unpaired surrogate."""

    async def json(self) -> Any:
        """Return the body's JSON.

        :raises HTTPException: 400, the body is not JSON or exceeds a limit.
        """
        body = await self.body()
        try:
            content = pydantic_core.from_json(body, allow_inf_nan=False)
            require_plain_json(content, MAX_BODY_DEPTH)
        except ValueError as error:
            raise HTTPException(400, f"the body is not JSON that can be stored: {error}") from None
        return content
