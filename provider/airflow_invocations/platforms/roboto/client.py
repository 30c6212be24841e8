"""Client of the invocation API: sends requests, retries them and opens streams."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import httpx

from ...invocation_api import (
    DEFAULT_TIMEOUT,
    ApiError,
    ApiRequest,
    FailureKind,
    Repeatable,
    client_headers,
    read_data,
    read_error,
    unanswered,
)
from ...models import MAX_PAGE_SIZE
from ..errors import (
    ConflictError,
    InvalidRequestError,
    LimitExceededError,
    NotFoundError,
    PermanentError,
    PlatformError,
    RateLimitedError,
    TransientError,
    UnauthorizedError,
    UnavailableError,
    UnsupportedError,
)
from ..http import NO_ANSWER, UNSENDABLE, HttpPool, TooLargeError, body_of, cause_of, request_error
from .records import PageT, read

#: Seconds of silence after which an open stream counts as broken; the local server sends a heartbeat
#: every 15 s.
STREAM_SILENCE = 45.0

#: The path of the stream of status changes and log lines, which the local server has.
WATCH = "v1/actions/invocations/watch"

#: The statuses with which a platform without a stream answers; also for too many invocations.
_NO_WATCH = frozenset({400, 403, 404, 405, 501})

#: The error that each kind of failure is raised as.
_ERRORS: dict[FailureKind, type[PlatformError]] = {
    FailureKind.UNAUTHORIZED: UnauthorizedError,
    FailureKind.NOT_FOUND: NotFoundError,
    FailureKind.INVALID_REQUEST: InvalidRequestError,
    FailureKind.CONFLICT: ConflictError,
    FailureKind.LIMIT_EXCEEDED: LimitExceededError,
    FailureKind.UNSUPPORTED: UnsupportedError,
    FailureKind.REJECTED: PermanentError,
    FailureKind.RATE_LIMITED: RateLimitedError,
    FailureKind.UNAVAILABLE: UnavailableError,
}


@dataclass(frozen=True, slots=True)
class RobotoSettings:
    """The API's address and credentials, as an Airflow connection has them."""

    #: For example https://api.roboto.ai, without a trailing slash.
    endpoint: str
    token: str = field(repr=False)
    #: The organisation to act in; None: the token's own.
    org_id: str | None = None
    #: Verify TLS certificates: True, False, or the path of a CA bundle.
    verify: bool | str = True
    #: Seconds for a connection, and for each wait for data.
    timeout: float = DEFAULT_TIMEOUT
    #: Base URL of the invocations' pages; None: derived from the endpoint.
    link_base: str | None = None


class RobotoClient:
    """Requests to the invocation API over one connection pool.

    A request is retried as the platform's own client does it: after 429, 502 and 503 always; after 408, 500,
    504 and broken connections if it is idempotent. Pauses honour Retry-After, else they have full jitter.

    :raises PlatformError: every method.
    """

    def __init__(self, settings: RobotoSettings) -> None:
        self._settings = settings
        self.pool = HttpPool(
            settings.endpoint,
            client_headers(settings.token, settings.org_id),
            verify=settings.verify,
            timeout=settings.timeout,
        )

    async def call(
        self,
        method: str,
        path: str,
        *,
        body: object = None,
        query: dict[str, str] | None = None,
        idempotent: bool | None = None,
    ) -> Any:
        """Return the `data` of the response. GETs are idempotent."""
        request = ApiRequest(method, path, query, body, idempotent)
        attempt = 0
        while True:
            try:
                return await self._send(request)
            except ApiError as error:
                pause = request.pause_after(error, attempt)
                if pause is None:
                    raise _platform_error(error) from error.__cause__
            await asyncio.sleep(pause)
            attempt += 1

    async def query(self, body: dict[str, Any]) -> Any:
        """Return the first page of a query over invocations."""
        return await self.call("POST", "v1/actions/invocations/query", body=body, idempotent=True)

    async def pages(
        self, kind: type[PageT], query: dict[str, Any], size: int = MAX_PAGE_SIZE
    ) -> AsyncIterator[PageT]:
        """Yield all pages of a query over invocations.

        :param size: items of a page; where records are large, pages get smaller.
        """
        body = {**query, "limit": size}
        while True:
            try:
                data = await self.query(body)
            except TooLargeError:
                if body["limit"] == 1:
                    raise
                body["limit"] = max(1, body["limit"] // 4)
                continue
            page = read(kind, data)
            yield page
            if page.next_token is None:
                return
            body["after"] = page.next_token

    @asynccontextmanager
    async def stream(self, body: dict[str, Any]) -> AsyncIterator[httpx.Response]:
        """Open the local server's stream. Raises UnsupportedError on entering if there is none."""
        client = self.pool.client
        silence = httpx.Timeout(self._settings.timeout, read=STREAM_SILENCE)
        try:
            request = client.build_request("POST", WATCH, json=body, timeout=silence)
            async with asyncio.timeout(self._settings.timeout):
                answer = await client.send(request, stream=True)
            try:
                if answer.status_code in _NO_WATCH:
                    raise UnsupportedError(f"{self._settings.endpoint} has no watch stream")
                if not answer.is_success:
                    raise _platform_error(read_error(answer, await body_of(answer)))
                if not answer.headers.get("content-type", "").startswith("text/event-stream"):
                    raise UnavailableError(f"{request.url} did not respond with a stream")
                yield answer
            finally:
                await answer.aclose()
        except (*NO_ANSWER, TimeoutError) as error:
            raise request_error(self._settings.endpoint, error) from cause_of(error)

    async def _send(self, request: ApiRequest) -> Any:
        client = self.pool.client
        try:
            answer = await client.send(request.build(client), stream=True)
            try:
                return read_data(answer, await body_of(answer))
            finally:
                await answer.aclose()
        except TooLargeError:
            raise
        except UnavailableError as error:
            raise ApiError(FailureKind.UNAVAILABLE, str(error), Repeatable.IF_IDEMPOTENT) from None
        except UNSENDABLE as error:
            raise request_error(self._settings.endpoint, error) from None
        except httpx.RequestError as error:
            raise unanswered(self._settings.endpoint, error) from error


def segment(text: str) -> str:
    """Return a text as one segment of a path. Raises InvalidRequestError for an empty one and for dots."""
    if text in ("", ".", ".."):
        raise InvalidRequestError(f"{text!r} is not the name of an action or the id of an invocation")
    return quote(text, safe="")


def invocation_path(invocation_id: str) -> str:
    """Return the path of an invocation."""
    return f"v1/actions/invocations/{segment(invocation_id)}"


def _platform_error(failure: ApiError) -> PlatformError:
    error = _ERRORS[failure.kind](str(failure))
    if isinstance(error, TransientError):
        error.retry_after = failure.retry_after
    return error
