"""Read request bodies as JSON that can be stored, in bounded time and memory."""

from __future__ import annotations

from typing import Any

import pydantic_core
from starlette.exceptions import HTTPException
from starlette.requests import Request

from ...models.base import require_plain_json

#: Levels of lists and objects that a body may have: more than any part of it may have by itself.
MAX_BODY_DEPTH = 100


class JsonRequest(Request):
    """A request whose body is read strictly: UTF-8, no NaN or Infinity, no half of a surrogate pair."""

    async def json(self) -> Any:
        """Return what the body holds.

        :raises HTTPException: 400, the body is no JSON or exceeds a limit.
        """
        body = await self.body()
        try:
            content = pydantic_core.from_json(body, allow_inf_nan=False)
            require_plain_json(content, MAX_BODY_DEPTH)
        except ValueError as error:
            raise HTTPException(400, f"the body is not JSON that can be stored: {error}") from None
        return content
