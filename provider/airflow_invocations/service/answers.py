"""The envelope of every answer that isn't an error."""

from __future__ import annotations

from typing import Any

import pydantic_core
from fastapi.responses import Response

from ..model.wire import WireModel


def answered(record: WireModel) -> Response:
    """A record as `{"data": ...}`, written by pydantic at once: FastAPI would walk through it all again."""
    return Response(b'{"data":%b}' % record.model_dump_json().encode(), media_type="application/json")


def answered_data(data: Any) -> Response:
    """Plain JSON as `{"data": ...}`."""
    return Response(b'{"data":%b}' % pydantic_core.to_json(data), media_type="application/json")
