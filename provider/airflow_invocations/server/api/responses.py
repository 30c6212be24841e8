"""Responses of the API: the envelope of data, and the errors of all routes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import pydantic_core
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.exceptions import HTTPException

from ...models.base import WireModel, problems_of
from ..errors import (
    ApiError,
    InvalidRequestError,
    RangeError,
    UnauthorizedError,
    UnavailableError,
)
from ..execution.logs import InvalidCursorError
from ..outages import is_outage
from .unknown_operations import unknown_operation

#: Seconds after which a client may retry during an outage.
RETRY_AFTER = 2

_log = logging.getLogger(__name__)


def data_response(record: WireModel) -> Response:
    """Return a record as `{"data": ...}`. Pydantic writes it at once; FastAPI would walk through it again."""
    return Response(b'{"data":%b}' % record.model_dump_json().encode(), media_type="application/json")


def json_response(data: Any) -> Response:
    """Return plain JSON types as `{"data": ...}`."""
    return Response(b'{"data":%b}' % pydantic_core.to_json(data), media_type="application/json")


def page_response(items: Sequence[str], next_token: str | None) -> Response:
    """Return a page of JSON documents as `{"data": {"items": [...], "next_token": ...}}`."""
    following = pydantic_core.to_json(next_token)
    page = b'{"data":{"items":[%b],"next_token":%b}}' % (",".join(items).encode(), following)
    return Response(page, media_type="application/json")


def add_error_handlers(app: FastAPI) -> None:
    """Make an application return every error in the API's envelope, without internals."""
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(InvalidCursorError, _cursor_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    for outage in (OSError, MemoryError, OperationalError, PoolTimeoutError):
        app.add_exception_handler(outage, _outage)
    app.add_exception_handler(Exception, _internal_error)


def _error_response(error: ApiError) -> JSONResponse:
    headers = {"WWW-Authenticate": "Bearer"} if isinstance(error, UnauthorizedError) else None
    if isinstance(error, UnavailableError):
        headers = {"Retry-After": str(RETRY_AFTER)}
    if isinstance(error, RangeError):
        headers = {"Content-Range": f"bytes */{error.size}"}
    return JSONResponse(error.body(), status_code=error.status, headers=headers)


def _api_error(_: Request, error: Exception) -> JSONResponse:
    return _error_response(error if isinstance(error, ApiError) else ApiError("internal error"))


def _cursor_error(_: Request, error: Exception) -> JSONResponse:
    return _error_response(InvalidRequestError(str(error)))


def _validation_error(request: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, RequestValidationError):
        return _internal_error(request, error)
    return _error_response(InvalidRequestError(problems_of(error.errors())))


def _http_error(request: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, HTTPException):
        return _internal_error(request, error)
    if error.status_code in (404, 405):
        unknown = unknown_operation(request.method, request.url.path.lstrip("/"))
        # 405 tells which methods the path has.
        status = 405 if error.status_code == 405 and unknown.status == 404 else unknown.status
        return JSONResponse(unknown.body(), status_code=status, headers=error.headers)
    invalid = InvalidRequestError(str(error.detail))
    return JSONResponse(invalid.body(), status_code=error.status_code, headers=error.headers)


def _outage(request: Request, error: Exception) -> JSONResponse:
    if not is_outage(error):
        raise error
    _log.warning("cannot respond to %s %s: %s", request.method, request.url.path, error)
    return _error_response(UnavailableError("the server is temporarily unavailable; its log has the reason"))


def _internal_error(_: Request, __: Exception) -> JSONResponse:
    # The server's log has the error with its traceback. Clients don't see internals.
    return _error_response(ApiError("the server failed to process this request; its log has the reason"))
