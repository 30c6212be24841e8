"""The platform's API for an action: sync, called from the action's own process."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..invocation_api import (
    DEFAULT_TIMEOUT,
    ApiError,
    ApiRequest,
    FailureKind,
    client_headers,
    read_data,
    unanswered,
)
from .environment import Variable
from .exceptions import PlatformError, PlatformNotFound, PlatformRejected, PlatformUnavailable

if TYPE_CHECKING:  # imported with the first call: most actions never make one
    import httpx

#: Address of the platform if the environment names none.
DEFAULT_ENDPOINT = "https://api.roboto.ai"

#: The error that each kind of failure is raised as; PlatformRejected for all others.
_ERRORS: dict[FailureKind, type[PlatformError]] = {
    FailureKind.NOT_FOUND: PlatformNotFound,
    FailureKind.RATE_LIMITED: PlatformUnavailable,
    FailureKind.UNAVAILABLE: PlatformUnavailable,
}


class PlatformClient:
    """A client of the platform's API with the token of one invocation.

    Connects with the first call, so a context can be made without a platform. Calls are retried as the
    platform's own client does (https://pypi.org/project/roboto/, `RobotoClient`).

    Args:
        endpoint: address of the platform, for example https://api.roboto.ai.
        token: the invocation's token; None makes each call raise PlatformRejected.
        transport: replaces the network, for tests.
    """

    @classmethod
    def from_env(cls) -> PlatformClient:
        """Return the client of this process's invocation; outside of one, calls raise PlatformRejected."""
        environment = os.environ
        return cls(
            environment.get(Variable.ServiceEndpoint) or DEFAULT_ENDPOINT,
            environment.get(Variable.ApiKey) or environment.get(Variable.BearerToken),
        )

    def __init__(
        self, endpoint: str, token: str | None, *, transport: httpx.BaseTransport | None = None
    ) -> None:
        self.endpoint = endpoint.rstrip("/")
        self._token = token
        self._transport = transport
        self._http: httpx.Client | None = None

    def __repr__(self) -> str:
        return f"PlatformClient({self.endpoint!r})"

    def get(
        self, path: str, query: Mapping[str, str] | None = None, *, owner_org_id: str | None = None
    ) -> Any:
        """Send a GET and return the response's `data`.

        Args:
            path: relative to the endpoint, for example "v1/datasets/ds_1".
            query: the query string's parameters.
            owner_org_id: the organisation that owns the resource; None: the token's own.

        Raises:
            PlatformError: the call failed.
        """
        return self._call(ApiRequest("GET", path, query, owner_org_id=owner_org_id))

    def put(self, path: str, body: Mapping[str, Any]) -> Any:
        """Send a PUT and return the response's `data`. Raises PlatformError."""
        return self._call(ApiRequest("PUT", path, body=body))

    def post(
        self, path: str, body: Mapping[str, Any] | None = None, *, owner_org_id: str | None = None
    ) -> Any:
        """Send a POST that must not take effect twice; return the response's `data`. Raises PlatformError."""
        return self._call(ApiRequest("POST", path, body=body, idempotent=False, owner_org_id=owner_org_id))

    def query(self, path: str, body: Mapping[str, Any]) -> Any:
        """Send a POST that only reads; return the response's `data`. Raises PlatformError."""
        return self._call(ApiRequest("POST", path, body=body, idempotent=True))

    def download(self, url: str, destination: Path) -> None:
        """Write the content of a signed URL to a file, whole or not at all; its folder must exist.

        The token isn't sent: the URL grants the access.

        Raises:
            PlatformError: the content can't be read.
            OSError: the file can't be written.
        """
        import httpx

        draft = destination.with_name(f"{destination.name}.part")
        try:
            with (
                httpx.Client(
                    timeout=DEFAULT_TIMEOUT, transport=self._transport, follow_redirects=True
                ) as http,
                http.stream("GET", url) as response,
                draft.open("wb") as file,
            ):
                if not response.is_success:
                    raise _download_error(destination.name, response.status_code, response.reason_phrase)
                for chunk in response.iter_bytes():
                    file.write(chunk)
            draft.replace(destination)
        except httpx.HTTPError as error:
            raise PlatformUnavailable(f"{destination.name}: {error or type(error).__name__}") from None
        finally:
            draft.unlink(missing_ok=True)

    def _call(self, request: ApiRequest) -> Any:
        attempt = 0
        while True:
            try:
                return self._send(request)
            except ApiError as error:
                pause = request.pause_after(error, attempt)
                if pause is None:
                    raise _ERRORS.get(error.kind, PlatformRejected)(str(error)) from None
            time.sleep(pause)
            attempt += 1

    def _send(self, request: ApiRequest) -> Any:
        import httpx

        try:
            client = self._client()
            response = client.send(request.build(client))
        except (
            httpx.LocalProtocolError,
            httpx.UnsupportedProtocol,
            httpx.InvalidURL,
            UnicodeEncodeError,
        ) as error:
            # Not quoted: httpx quotes the header that it rejects, which may contain the token.
            raise PlatformRejected(
                f"a request to {self.endpoint} can't be sent ({type(error).__name__}); check "
                f"{Variable.ServiceEndpoint} and {Variable.ApiKey}"
            ) from None
        except httpx.RequestError as error:
            raise unanswered(f"{self.endpoint}/{request.path}", error) from None
        return read_data(response, response.content)

    def _client(self) -> httpx.Client:
        if self._http is None:
            import httpx

            if self._token is None:
                raise PlatformRejected(
                    f"neither {Variable.ApiKey} nor {Variable.BearerToken} is set: there is no token to call "
                    f"{self.endpoint} with"
                )
            self._http = httpx.Client(
                base_url=f"{self.endpoint}/",
                headers=client_headers(self._token),
                timeout=DEFAULT_TIMEOUT,
                transport=self._transport,
            )
        return self._http


def _download_error(name: str, status: int, reason: str) -> PlatformError:
    """Return the error of a download; storage answers in its own format, so the status decides."""
    message = f"{name}: {status} {reason}"
    if status >= 500 or status in (408, 429):
        return PlatformUnavailable(message)
    return PlatformNotFound(message) if status == 404 else PlatformRejected(message)
