"""Speaks Connect's JSON over HTTP: calls and server streams, without protobuf (connectrpc.com, protocol)."""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import httpx

from ... import __version__
from ...invocation_api import parse_json, read_retry_after
from ..clock import PlatformClock
from ..errors import (
    ConflictError,
    InvalidRequestError,
    NotFoundError,
    PermanentError,
    PlatformError,
    RateLimitedError,
    TransientError,
    UnauthorizedError,
    UnavailableError,
    UnsupportedError,
)
from ..http import (
    ACCEPT_ENCODING,
    NO_ANSWER,
    UNSENDABLE,
    body_of,
    cause_of,
    request_error,
    tls_for,
)
from ..retry import backoff
from .auth import Authorization
from .settings import FlyteSettings

RUNS = "flyteidl2.workflow.RunService"
TASKS = "flyteidl2.task.TaskService"
DATA = "flyteidl2.dataproxy.DataProxyService"

#: How often a call that may be repeated is tried in all.
ATTEMPTS = 5

#: Seconds that a Retry-After is honoured for at most within one call; waits have their own patience.
MAX_RETRY_AFTER = 60.0

#: The largest message of a stream, in bytes: what is larger is no message.
MAX_MESSAGE = 64 * 1024 * 1024

#: Connections at once: the streams of a watch, and calls beside them.
MAX_CONNECTIONS = 200

#: Flags of a stream's envelope, and its head: flags and length.
_COMPRESSED, _END = 1, 2
_HEAD = struct.Struct(">BI")

_BY_CODE: dict[str, type[PlatformError]] = {
    "canceled": UnavailableError,
    "unknown": UnavailableError,
    "invalid_argument": InvalidRequestError,
    "deadline_exceeded": UnavailableError,
    "not_found": NotFoundError,
    "already_exists": ConflictError,
    "permission_denied": UnauthorizedError,
    "resource_exhausted": RateLimitedError,
    "failed_precondition": InvalidRequestError,
    "aborted": UnavailableError,
    "out_of_range": InvalidRequestError,
    "unimplemented": UnsupportedError,
    "internal": UnavailableError,
    "unavailable": UnavailableError,
    "data_loss": PermanentError,
    "unauthenticated": UnauthorizedError,
}
#: Of an answer that isn't Connect's: something between us and Flyte sent it, or there is no Flyte 2. Only
#: what no stand-in for a Flyte that is away says is about the address: ingresses answer 404 and 405 then, and
#: pages about maintenance 200.
_BY_FOREIGN_STATUS: dict[int, type[PlatformError]] = {
    401: UnauthorizedError,
    413: InvalidRequestError,
    415: InvalidRequestError,
    429: RateLimitedError,
    501: InvalidRequestError,
}
#: What gRPC's gateways, Flyte 1's for one, write as numbers: not_found and unimplemented, here of a method.
_GATEWAY_CODES = (5, 12)


class SilentError(UnavailableError):
    """A stream that says nothing, which may be all that there is to say."""


class Connect:
    """A client of Flyte's services: one connection pool, to be opened and closed.

    Raises:
        PlatformError: each method, one of the tree in `platforms.base`, by Connect's code.
    """

    def __init__(self, settings: FlyteSettings) -> None:
        self._settings = settings
        self._auth = Authorization(settings)
        self._http: httpx.AsyncClient | None = None
        #: Flyte's clock, as its answers tell it.
        self.clock = PlatformClock(settings.endpoint)

    async def open(self) -> None:
        """Make the connection pool."""
        # In a thread: CA bundles take long to read, and that would be felt in a triggerer's loop.
        try:
            self._http = await asyncio.to_thread(self._new_client)
        except UNSENDABLE as error:
            raise request_error(self._settings.endpoint, error) from cause_of(error)

    async def close(self) -> None:
        """Close the connection pool, and every stream that is open."""
        if self._http is not None:
            await self._http.aclose()
            self._http = None

    def _new_client(self) -> httpx.AsyncClient:
        settings = self._settings
        return httpx.AsyncClient(
            base_url=settings.endpoint,
            headers={
                "User-Agent": f"airflow-provider-invocations/{__version__}",
                "Accept-Encoding": ACCEPT_ENCODING,
            },
            timeout=settings.timeout,
            limits=httpx.Limits(max_connections=MAX_CONNECTIONS),
            verify=tls_for(settings.endpoint, settings.verify),
            event_hooks=self.clock.hooks,
        )

    async def call(
        self, method: str, message: dict[str, Any], *, attempts: int | None = None
    ) -> dict[str, Any]:
        """Send a message to a `service/Method`; its answer.

        After a TransientError it is sent again, `attempts` times in all: 1 for what isn't to be repeated,
        None for ATTEMPTS.
        """
        attempts = ATTEMPTS if attempts is None else attempts
        for attempt in range(attempts):
            try:
                return await self._send(method, message)
            except TransientError as error:
                if attempt == attempts - 1:
                    raise
                await asyncio.sleep(pause_after(error, attempt))
        raise AssertionError("unreachable: the last attempt returns or raises")

    async def _send(self, method: str, message: dict[str, Any]) -> dict[str, Any]:
        headers = {"Content-Type": "application/json", "Connect-Protocol-Version": "1"}
        try:
            answer, content = await self._post(method, headers, json.dumps(message).encode())
            if answer.status_code == httpx.codes.UNAUTHORIZED and self._auth.renew():
                answer, content = await self._post(method, headers, json.dumps(message).encode())
        except NO_ANSWER as error:
            raise request_error(self._settings.endpoint, error) from cause_of(error)
        if not answer.is_success:
            raise self._error(method, answer, content)
        data = _json(content)
        if not isinstance(data, dict):
            raise UnavailableError(self._foreign(method, answer))
        return data

    async def _post(
        self, method: str, headers: dict[str, str], content: bytes
    ) -> tuple[httpx.Response, bytes]:
        http = self._opened()
        headers = headers | await self._auth.headers(http)
        async with http.stream("POST", method, headers=headers, content=content) as answer:
            return answer, await body_of(answer)

    @asynccontextmanager
    async def stream(
        self, method: str, message: dict[str, Any], silence: float
    ) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
        """Open a server stream: its messages in order, to the end that the server gives it.

        Raises:
            UnavailableError: also for one that breaks off.
            SilentError: nothing came for so many seconds: there is no heartbeat on these streams.
        """
        content = json.dumps(message).encode()
        envelope = _HEAD.pack(0, len(content)) + content
        timeout = httpx.Timeout(self._settings.timeout, read=silence)
        headers = {
            "Content-Type": "application/connect+json",
            "Connect-Protocol-Version": "1",
            "Accept-Encoding": "identity",
        }
        http = self._opened()
        try:
            for is_last in (False, True):
                credentials = await self._auth.headers(http)
                async with http.stream(
                    "POST", method, headers=headers | credentials, content=envelope, timeout=timeout
                ) as answer:
                    if answer.status_code == httpx.codes.UNAUTHORIZED and not is_last and self._auth.renew():
                        continue
                    if not answer.is_success:
                        raise self._error(method, answer, await body_of(answer))
                    if not answer.headers.get("content-type", "").startswith("application/connect+json"):
                        raise UnavailableError(self._foreign(method, answer))
                    async with aclosing(self._messages(method, answer)) as messages:
                        yield messages
                    return
        except httpx.ReadTimeout as error:
            raise SilentError(f"{method} has been silent for {silence:g} s") from error
        except NO_ANSWER as error:
            raise request_error(self._settings.endpoint, error) from cause_of(error)

    async def _messages(self, method: str, answer: httpx.Response) -> AsyncGenerator[dict[str, Any], None]:
        received = bytearray()
        async for chunk in answer.aiter_raw():
            received += chunk
            while len(received) >= _HEAD.size:
                flags, size = _HEAD.unpack_from(received)
                if flags & _COMPRESSED or size > MAX_MESSAGE:
                    raise UnavailableError(
                        f"{self._settings.endpoint} sends {method} in no form we asked for"
                    )
                if len(received) < _HEAD.size + size:
                    break
                data = _json(bytes(received[_HEAD.size : _HEAD.size + size]))
                del received[: _HEAD.size + size]
                if not isinstance(data, dict):
                    raise UnavailableError(
                        f"{self._settings.endpoint} sends {method} something that isn't a JSON object"
                    )
                if not flags & _END:
                    yield data
                elif "error" in data:
                    raise _error_of(data["error"], method, None) or UnavailableError(f"{method} failed")
                else:
                    return
        raise UnavailableError(f"{self._settings.endpoint} has broken off the stream {method}")

    def _opened(self) -> httpx.AsyncClient:
        if self._http is None:
            raise RuntimeError("the platform is used outside of 'async with'")
        return self._http

    def _foreign(self, method: str, answer: httpx.Response) -> str:
        return (
            f"{self._settings.endpoint} answers {method} with {answer.status_code} {answer.reason_phrase}, "
            "not as Flyte 2 does; is it the address of one?"
        )

    def _error(self, method: str, answer: httpx.Response, content: bytes) -> PlatformError:
        said = _json(content)
        error = _error_of(said, method, answer)
        if error is None:
            kind = _BY_FOREIGN_STATUS.get(answer.status_code, UnavailableError)
            # A redirect is not followed with the token; the connection's address has to be corrected.
            if answer.is_redirect or _is_a_gateway(said):
                kind = InvalidRequestError
            error = kind(self._foreign(method, answer))
        if isinstance(error, TransientError):
            error.retry_after = read_retry_after(answer)
        return error


def pause_after(error: TransientError, attempt: int) -> float:
    """Seconds until the next try: what the platform asks for, else a growing pause with full jitter."""
    return backoff(attempt) if error.retry_after is None else min(error.retry_after, MAX_RETRY_AFTER)


def _error_of(data: Any, method: str, answer: httpx.Response | None) -> PlatformError | None:
    """The error in an answer; None if it isn't one of Connect's."""
    code = data.get("code") if isinstance(data, dict) else None
    if not isinstance(code, str):
        return None
    kind = _BY_CODE.get(code)
    if kind is None:
        kind = PermanentError if answer is not None and answer.is_client_error else UnavailableError
    return kind(f"{data.get('message') or code} ({method}: {code})")


def _is_a_gateway(data: Any) -> bool:
    """Whether a server of gRPC's, but not of Connect, says that it has no such method."""
    code = data.get("code") if isinstance(data, dict) else None
    return isinstance(code, int) and code in _GATEWAY_CODES


def _json(content: bytes) -> Any:
    try:
        return parse_json(content)
    except ValueError:
        return None
