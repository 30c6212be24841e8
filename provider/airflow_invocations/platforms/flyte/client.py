"""Client of Flyte's services over Connect's JSON protocol (connectrpc.com), without protobuf."""

from __future__ import annotations

import json
import struct
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any, TypeVar

import httpx

from ... import __version__
from ...invocation_api import parse_json, read_retry_after
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
from ..http import NO_ANSWER, HttpPool, body_of, cause_of, request_error
from ..retry import retry_attempts
from .auth import Authorization
from .settings import FlyteSettings

RUNS = "flyteidl2.workflow.RunService"
TASKS = "flyteidl2.task.TaskService"
DATA = "flyteidl2.dataproxy.DataProxyService"

T = TypeVar("T")

#: Attempts of a call that may be repeated, the first one included.
ATTEMPTS = 5

#: Largest message of a stream, in bytes.
MAX_MESSAGE = 64 * 1024 * 1024

#: Connections at the same time: the streams of a watch, and calls.
MAX_CONNECTIONS = 200

#: Flags of a stream's envelope, and its header: flags and length.
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
#: For responses that aren't Connect's: a proxy sent them, or the address isn't Flyte 2's. Ingresses of an
#: unavailable Flyte answer 404 and 405, and maintenance pages 200, so these say nothing about the address.
_BY_FOREIGN_STATUS: dict[int, type[PlatformError]] = {
    401: UnauthorizedError,
    413: InvalidRequestError,
    415: InvalidRequestError,
    429: RateLimitedError,
    501: InvalidRequestError,
}
#: The codes, as numbers, with which gRPC gateways such as Flyte 1's reject an unknown method.
_GATEWAY_CODES = (5, 12)


class SilentError(UnavailableError):
    """A stream sent nothing, which may be because nothing happened."""


class ConnectClient:
    """A client of Flyte's services with one connection pool.

    :raises PlatformError: every method, by Connect's code.
    """

    def __init__(self, settings: FlyteSettings) -> None:
        self._settings = settings
        self._auth = Authorization(settings)
        self.pool = HttpPool(
            settings.endpoint,
            {"User-Agent": f"airflow-provider-invocations/{__version__}"},
            verify=settings.verify,
            timeout=settings.timeout,
            limits=httpx.Limits(max_connections=MAX_CONNECTIONS),
        )

    async def call(self, method: str, message: dict[str, Any]) -> dict[str, Any]:
        """Return the response to a message to a `service/Method`, which is retried."""
        return await self.retry(lambda: self.send(method, message))

    async def retry(self, operation: Callable[[], Awaitable[T]]) -> T:
        """Return the result of requests that may be repeated together."""
        return await retry_attempts(operation, ATTEMPTS)

    async def send(self, method: str, message: dict[str, Any]) -> dict[str, Any]:
        """Return the response to a message that is sent once."""
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
        http = self.pool.client
        headers = headers | await self._auth.headers(http)
        async with http.stream("POST", method, headers=headers, content=content) as answer:
            return answer, await body_of(answer)

    @asynccontextmanager
    async def stream(
        self, method: str, message: dict[str, Any], silence: float
    ) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
        """Open a server stream; it yields messages until the server ends it.

        :param silence: seconds without a message after which it counts as broken; it has no heartbeat.
        :raises UnavailableError: the stream broke.
        :raises SilentError: nothing came for `silence` seconds.
        """
        content = json.dumps(message).encode()
        envelope = _HEAD.pack(0, len(content)) + content
        timeout = httpx.Timeout(self._settings.timeout, read=silence)
        headers = {
            "Content-Type": "application/connect+json",
            "Connect-Protocol-Version": "1",
            "Accept-Encoding": "identity",
        }
        http = self.pool.client
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
            raise SilentError(f"{method} sent nothing for {silence:g} s") from error
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
                        f"{self._settings.endpoint} responded to {method} in a format that was not requested"
                    )
                if len(received) < _HEAD.size + size:
                    break
                data = _json(bytes(received[_HEAD.size : _HEAD.size + size]))
                del received[: _HEAD.size + size]
                if not isinstance(data, dict):
                    raise UnavailableError(
                        f"{self._settings.endpoint} responded to {method} with something "
                        "other than a JSON object"
                    )
                if not flags & _END:
                    yield data
                elif "error" in data:
                    raise _error_of(data["error"], method, None) or UnavailableError(f"{method} failed")
                else:
                    return
        raise UnavailableError(f"{self._settings.endpoint} closed the stream {method}")

    def _foreign(self, method: str, answer: httpx.Response) -> str:
        return (
            f"{self._settings.endpoint} responded to {method} with {answer.status_code} "
            f"{answer.reason_phrase}, not as Flyte 2 does; check that this is the address of a Flyte 2 server"
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


def _error_of(data: Any, method: str, answer: httpx.Response | None) -> PlatformError | None:
    """Return the error in a response; None if it isn't Connect's."""
    code = data.get("code") if isinstance(data, dict) else None
    if not isinstance(code, str):
        return None
    kind = _BY_CODE.get(code)
    if kind is None:
        kind = PermanentError if answer is not None and answer.is_client_error else UnavailableError
    return kind(f"{data.get('message') or code} ({method}: {code})")


def _is_a_gateway(data: Any) -> bool:
    """Return whether a gRPC gateway, which doesn't speak Connect, rejects the method."""
    code = data.get("code") if isinstance(data, dict) else None
    return isinstance(code, int) and code in _GATEWAY_CODES


def _json(content: bytes) -> Any:
    try:
        return parse_json(content)
    except ValueError:
        return None
