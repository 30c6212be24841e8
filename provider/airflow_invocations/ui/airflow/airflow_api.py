"""Call Airflow's public REST API as the viewer of the page, inside the API server's process."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import httpx
from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

#: The key of a request's scope that holds the application which the page is mounted in.
_PARENT = "airflow_invocations.parent"

#: Items per request: the default of `[api] maximum_page_limit`.
PAGE_SIZE = 100

_PREFIX = "/api/v2"
_CREDENTIALS = ("authorization", "cookie")


class MountedApp(FastAPI):
    """A FastAPI application that remembers, for each request, the application that it is mounted in."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection; `scope["app"]` is the parent's until FastAPI replaces it."""
        if scope["type"] == "http":
            scope[_PARENT] = scope.get("app")
        await super().__call__(scope, receive, send)


class AirflowApi:
    """A client of Airflow's REST API with the viewer's own credentials, so that Airflow checks permissions.

    Requests stay in the process: they need no URL of the API server and no open port. Use it as an
    asynchronous context manager. Call it from the event loop only: a thread of Airflow's pool that waits for
    another thread of the pool could deadlock.

    :param request: the viewer's request to the page; its `Authorization` and `Cookie` headers are passed on.
    """

    def __init__(self, request: Request) -> None:
        headers = {name: request.headers[name] for name in _CREDENTIALS if name in request.headers}
        self._client = httpx.AsyncClient(
            transport=httpx.ASGITransport(app=request.scope[_PARENT]),
            base_url=f"{request.url.scheme}://{request.url.netloc}{_PREFIX}",
            headers=headers,
        )

    async def __aenter__(self) -> Self:
        """Open the client."""
        await self._client.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the client."""
        await self._client.__aexit__(kind, error, trace)

    async def get(self, path: str, **query: str | int) -> dict[str, Any] | None:
        """Return a record or a page of records; None if Airflow has none (404).

        :param path: below `/api/v2`, each part encoded for a URL.
        :raises HTTPException: the viewer may not see it (401, 403), or Airflow's API failed (502).
        """
        return _content(await self._client.get(path, params=query))

    async def post(self, path: str, body: Mapping[str, object]) -> dict[str, Any] | None:
        """Return the page of records that a query in a body selects; see `get`."""
        return _content(await self._client.post(path, json=body))


def _content(response: httpx.Response) -> dict[str, Any] | None:
    if response.status_code == 404:
        return None
    if response.status_code in (401, 403):
        raise HTTPException(response.status_code)
    if not response.is_success:
        raise HTTPException(502, f"Airflow's API returned {response.status_code}.")
    content: dict[str, Any] = response.json()
    return content
