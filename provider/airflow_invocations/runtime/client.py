"""The platform's API as an action calls it: from its own process, one call after the other."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__
from .environment import Variable
from .exceptions import PlatformError, PlatformNotFound, PlatformRefused, PlatformUnavailable

if TYPE_CHECKING:  # imported with the first call: most actions never make one
    import httpx

#: Where the platform is, unless the environment says otherwise.
DEFAULT_ENDPOINT = "https://api.roboto.ai"

#: The newest version of the API that we know.
API_VERSION = "2026-10-06"

#: Seconds that a connection, and each wait for data, may take.
TIMEOUT = 30.0

#: How often a call is tried in all.
ATTEMPTS = 5

#: Statuses after which any call may be repeated, and those after which only an idempotent one may.
_ALWAYS_REPEATABLE = frozenset({429, 502, 503})
_REPEATABLE_IF_IDEMPOTENT = frozenset({408, 500, 504})


class PlatformClient:
    """Calls of the platform's API with the token of one invocation.

    Nothing is asked and nothing is imported for it before the first call, so a context can be made where
    there is no platform. Calls are tried again as the platform's own client does
    (https://pypi.org/project/roboto/, `RobotoClient`).

    Args:
        endpoint: for example https://api.roboto.ai.
        token: what lets us in; None: each call raises PlatformRefused.
        transport: in place of the network, for tests.
    """

    @classmethod
    def from_env(cls) -> PlatformClient:
        """The client of the invocation that this process belongs to; no error where it belongs to none."""
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
        """The `data` that a GET is answered with. `owner_org_id`: whose the resource is, where it matters.

        Raises:
            PlatformError: it isn't answered so.
        """
        return self._call("GET", path, query=query, owner_org_id=owner_org_id)

    def put(self, path: str, body: Mapping[str, Any]) -> Any:
        """The `data` that a PUT is answered with. Raises PlatformError."""
        return self._call("PUT", path, body=body)

    def post(
        self, path: str, body: Mapping[str, Any] | None = None, *, owner_org_id: str | None = None
    ) -> Any:
        """The `data` that a POST is answered with, one that must not be made twice. Raises PlatformError."""
        return self._call("POST", path, body=body, owner_org_id=owner_org_id, idempotent=False)

    def query(self, path: str, body: Mapping[str, Any]) -> Any:
        """The `data` that a POST is answered with, one that only reads. Raises PlatformError."""
        return self._call("POST", path, body=body)

    def download(self, url: str, destination: Path) -> None:
        """Write what a signed URL gives to a file, whole or not at all; its folder has to be there.

        The token isn't sent: the URL itself lets us in.

        Raises:
            PlatformError: it can't be had.
            OSError: it can't be written.
        """
        import httpx

        draft = destination.with_name(f"{destination.name}.part")
        try:
            with (
                httpx.Client(timeout=TIMEOUT, transport=self._transport, follow_redirects=True) as http,
                http.stream("GET", url) as answer,
                draft.open("wb") as file,
            ):
                if not answer.is_success:
                    answer.read()
                    raise _error_of(answer, destination.name)
                for part in answer.iter_bytes():
                    file.write(part)
            draft.replace(destination)
        except httpx.HTTPError as error:
            raise PlatformUnavailable(f"{destination.name}: {error or type(error).__name__}") from None
        finally:
            draft.unlink(missing_ok=True)

    def _call(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        owner_org_id: str | None = None,
        idempotent: bool = True,
    ) -> Any:
        import httpx

        repeatable = _ALWAYS_REPEATABLE | (_REPEATABLE_IF_IDEMPOTENT if idempotent else frozenset())
        headers = {} if owner_org_id is None else {"X-Roboto-Resource-Owner-Id": owner_org_id}
        what = f"{method} {path}"
        failure: PlatformError = PlatformUnavailable(what)
        for pause in _pauses():
            time.sleep(pause)
            try:
                answer = self._client().request(method, path, params=query, json=body, headers=headers)
            except httpx.HTTPError as error:
                failure = PlatformUnavailable(f"{what} at {self.endpoint}: {error or type(error).__name__}")
                if not idempotent:
                    break
                continue
            if answer.is_success:
                return _data_of(answer, what)
            failure = _error_of(answer, what)
            if answer.status_code not in repeatable:
                break
        raise failure

    def _client(self) -> httpx.Client:
        if self._http is None:
            import httpx

            if self._token is None:
                raise PlatformRefused(
                    f"neither {Variable.ApiKey} nor {Variable.BearerToken} is set: there is no token to call "
                    f"{self.endpoint} with"
                )
            self._http = httpx.Client(
                base_url=f"{self.endpoint}/",
                headers={
                    "Authorization": f"Bearer {self._token}",
                    "User-Agent": f"airflow-provider-invocations/{__version__}",
                    "X-Roboto-Api-Version": API_VERSION,
                },
                timeout=TIMEOUT,
                transport=self._transport,
            )
        return self._http


def _pauses() -> Iterator[float]:
    """Seconds to wait before each try: none, then full jitter."""
    import random

    yield 0
    for attempt in range(ATTEMPTS - 1):
        yield random.uniform(0, min(30.0, 0.5 * 2**attempt))  # noqa: S311


def _data_of(answer: httpx.Response, what: str) -> Any:
    if not answer.content:
        return None
    try:
        return answer.json()["data"]
    except (ValueError, KeyError, TypeError):
        raise PlatformUnavailable(f"{what}: the answer is none of the platform's") from None


def _error_of(answer: httpx.Response, what: str) -> PlatformError:
    try:
        error = answer.json()["error"]
        code, message = str(error["error_code"]), str(error["message"])
    except (ValueError, KeyError, TypeError):
        code, message = "", answer.reason_phrase
    said = f"{what}: {answer.status_code} {message}"
    if answer.status_code >= 500 or answer.status_code in (408, 429):
        return PlatformUnavailable(said)
    if code == "RobotoNotFoundException" or answer.status_code == 404:
        return PlatformNotFound(said)
    return PlatformRefused(said)
