"""The invocation API without I/O: requests, retries and errors, shared by the async and the sync client.

Imports neither httpx nor pydantic, because an action imports this module and may never make a call.
"""

from __future__ import annotations

import email.utils
import json
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, Any

from . import __version__

if TYPE_CHECKING:
    import httpx

#: Newest version of the API that this package knows.
API_VERSION = "2026-10-06"

#: Largest request body that the platform accepts, in bytes.
MAX_BODY = 8 * 1024 * 1024

#: Default timeout of a connection, and of each wait for data, in seconds.
DEFAULT_TIMEOUT = 30.0

#: How a parameter's value begins that refers to a secret: roboto-secret://NAME.
SECRET_PREFIX = "roboto-secret://"  # noqa: S105

#: Attempts of a request, the first one included.
ATTEMPTS = 5

#: Longest Retry-After, in seconds, that is honoured between two attempts of a request.
MAX_RETRY_AFTER = 60.0


class FailureKind(Enum):
    """Why a request failed. A retry can help for RATE_LIMITED and UNAVAILABLE only."""

    UNAUTHORIZED = auto()
    NOT_FOUND = auto()
    INVALID_REQUEST = auto()
    CONFLICT = auto()
    LIMIT_EXCEEDED = auto()
    UNSUPPORTED = auto()
    REJECTED = auto()
    RATE_LIMITED = auto()
    UNAVAILABLE = auto()


class Repeatable(Enum):
    """When a request may be sent again after a failed attempt."""

    NEVER = auto()
    IF_IDEMPOTENT = auto()
    ALWAYS = auto()


_REPEATABLE = {
    408: Repeatable.IF_IDEMPOTENT,
    429: Repeatable.ALWAYS,
    500: Repeatable.IF_IDEMPOTENT,
    502: Repeatable.ALWAYS,
    503: Repeatable.ALWAYS,
    504: Repeatable.IF_IDEMPOTENT,
}

_BY_CODE = {
    "RobotoConditionException": FailureKind.CONFLICT,
    "RobotoConflictException": FailureKind.CONFLICT,
    "RobotoIllegalArgumentException": FailureKind.INVALID_REQUEST,
    "RobotoInvalidRequestException": FailureKind.INVALID_REQUEST,
    "RobotoInvalidStateTransitionException": FailureKind.INVALID_REQUEST,
    "RobotoLimitExceededException": FailureKind.LIMIT_EXCEEDED,
    "RobotoNoOrgProvidedException": FailureKind.INVALID_REQUEST,
    "RobotoNotFoundException": FailureKind.NOT_FOUND,
    "RobotoNotImplementedException": FailureKind.UNSUPPORTED,
    "RobotoUnauthorizedException": FailureKind.UNAUTHORIZED,
    "RobotoUnknownOperationException": FailureKind.UNSUPPORTED,
}
#: For errors in the API's own format with an unknown code.
_BY_STATUS = {
    400: FailureKind.INVALID_REQUEST,
    401: FailureKind.UNAUTHORIZED,
    403: FailureKind.LIMIT_EXCEEDED,
    404: FailureKind.NOT_FOUND,
    408: FailureKind.UNAVAILABLE,
    409: FailureKind.CONFLICT,
    413: FailureKind.INVALID_REQUEST,
    429: FailureKind.RATE_LIMITED,
    501: FailureKind.UNSUPPORTED,
}
#: For other errors. Something between us and the platform sent them, such as a proxy, whose 404 says nothing
#: about an invocation.
_BY_FOREIGN_STATUS = {
    401: FailureKind.UNAUTHORIZED,
    413: FailureKind.INVALID_REQUEST,
    429: FailureKind.RATE_LIMITED,
}


class ApiError(Exception):
    """One attempt of a request failed. Each client translates it to its own errors.

    Attributes:
        kind: why.
        repeatable: when the request may be sent again.
        retry_after: seconds that the platform asks to wait; None if it doesn't say.
    """

    def __init__(
        self,
        kind: FailureKind,
        message: str,
        repeatable: Repeatable = Repeatable.NEVER,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.repeatable = repeatable
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class ApiRequest:
    """A request of the API; its path is relative to the endpoint."""

    method: str
    path: str
    query: Mapping[str, str] | None = None
    #: Sent as JSON; None sends no body.
    body: object = None
    #: Whether sending it twice has the effect of sending it once; None: as the method implies.
    idempotent: bool | None = None
    #: The organisation that owns the resource; None: the client's own.
    owner_org_id: str | None = None

    def build(self, client: httpx.Client | httpx.AsyncClient) -> httpx.Request:
        """Return the request for a client with `client_headers`.

        :raises ApiError: the body is larger than MAX_BODY.
        """
        headers = {} if self.body is None else {"Content-Type": "application/json"}
        if self.owner_org_id is not None:
            headers["X-Roboto-Resource-Owner-Id"] = self.owner_org_id
        content = None if self.body is None else _encode(self.body)
        return client.build_request(
            self.method, self.path, content=content, params=self.query, headers=headers
        )

    def pause_after(self, error: ApiError, attempt: int) -> float | None:
        """Return the seconds to wait before the next attempt; None if the request must not be sent again.

        :param attempt: number of the failed attempt, from 0.
        """
        idempotent = self.method in ("GET", "PUT") if self.idempotent is None else self.idempotent
        repeatable = error.repeatable is Repeatable.ALWAYS or (
            idempotent and error.repeatable is Repeatable.IF_IDEMPOTENT
        )
        if not repeatable or attempt >= ATTEMPTS - 1:
            return None
        return retry_pause(attempt, error.retry_after)


def client_headers(token: str, org_id: str | None = None) -> dict[str, str]:
    """Return the headers that every request carries.

    :param org_id: the organisation to act in; None: the token's own.
    """
    headers = {
        "Authorization": f"Bearer {token}",
        "X-Roboto-Api-Version": API_VERSION,
        "User-Agent": f"airflow-provider-invocations/{__version__}",
    }
    if org_id:
        headers |= {"X-Roboto-Org-Id": org_id, "X-Roboto-Resource-Owner-Id": org_id}
    return headers


def read_data(response: httpx.Response, content: bytes) -> Any:
    """Return the `data` of a response; None if it has no body.

    :raises ApiError: the response is an error, or not the API's JSON.
    """
    if not response.is_success:
        raise read_error(response, content)
    try:
        return parse_json(content)["data"] if content else None
    except (ValueError, KeyError, TypeError):
        raise ApiError(
            FailureKind.UNAVAILABLE,
            f"{response.request.url} responded with {response.status_code}, but not in the API's format",
            Repeatable.IF_IDEMPOTENT,
        ) from None


def read_error(response: httpx.Response, content: bytes) -> ApiError:
    """Return the error that a response describes."""
    status = response.status_code
    try:
        envelope = parse_json(content)["error"]
        code, message = str(envelope["error_code"]), str(envelope["message"])
    except (ValueError, KeyError, TypeError):
        message = f"{response.reason_phrase}, not in the API's format"
        # A redirect is not followed with the token; the address of the platform has to be corrected.
        other = FailureKind.REJECTED if response.is_redirect else FailureKind.UNAVAILABLE
        kind = _BY_FOREIGN_STATUS.get(status, other)
    else:
        other = FailureKind.UNAVAILABLE if response.is_server_error else FailureKind.REJECTED
        kind = _BY_CODE.get(code) or _BY_STATUS.get(status, other)
    request = response.request
    return ApiError(
        kind,
        f"{message} ({request.method} {request.url.path}: {status})",
        _REPEATABLE.get(status, Repeatable.NEVER),
        read_retry_after(response),
    )


def unanswered(url: str, error: httpx.RequestError) -> ApiError:
    """Return the error of an attempt that got no complete response."""
    import httpx

    nothing_sent = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)
    return ApiError(
        FailureKind.UNAVAILABLE,
        f"{url} can't be reached: {str(error) or type(error).__name__}",
        Repeatable.ALWAYS if nothing_sent else Repeatable.IF_IDEMPOTENT,
    )


def retry_pause(attempt: int, retry_after: float | None) -> float:
    """Return the seconds to wait after an attempt (from 0).

    :param retry_after: seconds that the platform asks to wait; None if it doesn't say: `backoff`.
    """
    return backoff(attempt) if retry_after is None else min(retry_after, MAX_RETRY_AFTER)


def backoff(attempt: int, base: float = 0.5, cap: float = 30.0) -> float:
    """Return the seconds to wait after an attempt (from 0): full jitter, growing from `base` to `cap`.

    The defaults are those of Roboto's own client (https://pypi.org/project/roboto/).
    """
    return random.uniform(0, min(cap, base * 2 ** min(attempt, 30)))  # noqa: S311


def parse_json(content: bytes | str) -> Any:
    """Parse JSON. Raises ValueError, also if it is nested too deep."""
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("the JSON is nested too deep") from None


def read_retry_after(response: httpx.Response) -> float | None:
    """Return the seconds that a response asks to wait, as a number or a date; None if it doesn't."""
    value = response.headers.get("retry-after")
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def _encode(body: object) -> bytes:
    content = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
    if len(content) > MAX_BODY:
        raise ApiError(
            FailureKind.INVALID_REQUEST,
            f"the request has {len(content)} bytes; allowed: {MAX_BODY}. Pass large data to the action as a "
            "file or a dataset, not as a parameter",
        )
    return content
