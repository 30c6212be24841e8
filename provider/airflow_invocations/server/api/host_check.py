"""Reject requests that were sent to an unknown host name."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Collection

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from ..errors import InvalidRequestError


class HostCheck:
    """ASGI middleware: answer 400 to a request whose Host header is not a name of this server.

    A web page can make its own name resolve to this machine (DNS rebinding); its script could then read the
    server's responses. It can't do so with an IP address, with `localhost`, or with this machine's name.

    :param app: handles the other requests.
    :param names: other names of this server.
    """

    def __init__(self, app: ASGIApp, names: Collection[str]) -> None:
        self._app = app
        self._names = {name.lower() for name in (*names, socket.gethostname(), "localhost")}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI scope."""
        if scope["type"] == "http":
            host = dict(scope["headers"]).get(b"host", b"localhost").decode("latin-1")
            if not self._is_ours(_name_in(host)):
                rejection = InvalidRequestError(
                    f"the host {host[:80]!r} is not a name of this server; send requests to its IP address, "
                    "or start it with --allow-host NAME"
                )
                await JSONResponse(rejection.body(), status_code=rejection.status)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _is_ours(self, name: str) -> bool:
        if name in self._names or name.endswith(".localhost"):
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


def _name_in(host: str) -> str:
    """Return the name or address in a Host header, without port and brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower().removesuffix(".")
