"""The envelope of every answer that isn't an error."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pydantic_core
from fastapi.responses import Response

from ...models.base import WireModel


def answered(record: WireModel) -> Response:
    """A record as `{"data": ...}`, written by pydantic at once: FastAPI would walk through it all again."""
    return Response(b'{"data":%b}' % record.model_dump_json().encode(), media_type="application/json")


def answered_data(data: Any) -> Response:
    """Plain JSON as `{"data": ...}`."""
    return Response(b'{"data":%b}' % pydantic_core.to_json(data), media_type="application/json")


def answered_page(items: Sequence[str], next_token: str | None) -> Response:
    """A page of what is JSON already as `{"data": {"items": [...], "next_token": ...}}`."""
    following = pydantic_core.to_json(next_token)
    page = b'{"data":{"items":[%b],"next_token":%b}}' % (",".join(items).encode(), following)
    return Response(page, media_type="application/json")
