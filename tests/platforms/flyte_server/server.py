"""The backend on a port: an HTTP server in a thread, and who may ask it."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs

import uvicorn
from connectrpc._codec import ProtoJSONCodec
from connectrpc.code import Code
from connectrpc.errors import ConnectError
from flyteidl2.auth.auth_service_connect import AuthMetadataServiceASGIApplication
from flyteidl2.cluster.service_connect import ClusterServiceASGIApplication
from flyteidl2.dataproxy.dataproxy_service_connect import DataProxyServiceASGIApplication
from flyteidl2.task.task_service_connect import TaskServiceASGIApplication
from flyteidl2.workflow.run_service_connect import RunServiceASGIApplication
from google.protobuf import json_format
from google.protobuf.message import Message

from .services import Services
from .state import Backend


@dataclass(frozen=True)
class Client:
    """Client credentials that tokens are given for."""

    client_id: str
    secret: str


class _Server(uvicorn.Server):
    """A server that says when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listens = threading.Event()

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        self.listens.set()


class _JSON(ProtoJSONCodec[Message]):
    """Go's codec: it passes over fields that it doesn't know, and says so of what is no JSON."""

    def decode(self, data: bytes | bytearray, message: Message) -> Message:
        try:
            return json_format.Parse(bytes(data), message, ignore_unknown_fields=True)
        except json_format.ParseError as error:
            raise ConnectError(Code.INVALID_ARGUMENT, f"unmarshal message: {error}") from error


class FlyteServer:
    """A Flyte 2 on a port of its own; to be used with `with`.

    :param tls: paths of a certificate and its key; None: plain HTTP.
    :param token: the bearer token that every request needs; None: none is needed.
    :param client: who is given tokens at the token endpoint; each one is a new one, and only the last is
        good.
    """

    def __init__(
        self, token: str | None = None, client: Client | None = None, tls: tuple[Path, Path] | None = None
    ) -> None:
        self.backend = Backend()
        self.token = token
        self.tokens_given = 0
        self._client = client
        self._scheme = "https" if tls else "http"
        self._services = Services(self.backend, lambda: self.endpoint, has_token_endpoint=client is not None)
        applications = (
            RunServiceASGIApplication,
            TaskServiceASGIApplication,
            DataProxyServiceASGIApplication,
            ClusterServiceASGIApplication,
            AuthMetadataServiceASGIApplication,
        )
        self._applications = [application(self._services) for application in applications]
        for application in self._applications:
            application._codecs = {**application._codecs, "json": _JSON()}
        config = uvicorn.Config(
            self._serve,
            host="127.0.0.1",
            port=0,
            interface="asgi3",
            lifespan="off",
            ws="none",
            log_level="critical",
            timeout_graceful_shutdown=1,
            ssl_certfile=tls and tls[0],
            ssl_keyfile=tls and tls[1],
        )
        self._server = _Server(config)
        self._thread = threading.Thread(target=self._run, name="flyte-server")
        self._loop: asyncio.AbstractEventLoop

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._server.listens.wait(20), "the Flyte server didn't start"
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = self._server.force_exit = True
        self._thread.join(20)

    @property
    def endpoint(self) -> str:
        """Where it is."""
        (listener,) = self._server.servers[0].sockets
        return f"{self._scheme}://127.0.0.1:{listener.getsockname()[1]}"

    def calls(self, method: str) -> list[Any]:
        """The requests to a method so far."""
        return [request for name, request in self._services.calls if name == method]

    @property
    def connections(self) -> int:
        """How many connections clients hold."""
        return len(self._server.server_state.connections)

    def do(self, operation: Callable[[], object]) -> None:
        """Change the state where only the server's own thread may; returns when that is done."""
        done = threading.Event()

        def do() -> None:
            operation()
            done.set()

        self._loop.call_soon_threadsafe(do)
        assert done.wait(20), "the Flyte server is busy"

    def _run(self) -> None:
        asyncio.run(self._main())

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        await self._server.serve()
        # Connections with TLS that are being closed need the loop for that, and nothing tells when they are.
        await asyncio.sleep(0.2)

    async def _serve(self, scope: Any, receive: Any, send: Any) -> None:
        headers = {name.decode().lower(): value.decode() for name, value in scope["headers"]}
        path = scope["path"]
        if path == "/oauth2/token":
            return await _answer(send, *self._give_token(headers, await _body(receive)))
        may = self.token is None or f"Bearer {self.token}" in (
            headers.get("authorization"),
            headers.get("flyte-authorization"),
        )
        if not may and "AuthMetadataService" not in path:
            return await _answer(send, 401, {"code": "unauthenticated", "message": "a token is needed"})
        for application in self._applications:
            if path.startswith(f"{application.path}/"):
                return await application(scope, receive, send)
        return await _answer(send, 404, None)

    def _give_token(self, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        form = parse_qs(body.decode())
        client = self._client
        credentials = f"{client.client_id}:{client.secret}".encode() if client else b""
        basic = f"Basic {base64.b64encode(credentials).decode()}"
        if client is None or headers.get("authorization") != basic:
            return 401, {"error": "invalid_client"}
        if form.get("grant_type") != ["client_credentials"] or form.get("scope") != ["all"]:
            return 400, {"error": "invalid_request"}
        self.tokens_given += 1
        self.token = f"token-{self.tokens_given}"
        return 200, {"access_token": self.token, "token_type": "bearer", "expires_in": 3600}


async def _body(receive: Any) -> bytes:
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    return body


async def _answer(send: Any, status: int, content: Any) -> None:
    body = b"" if content is None else json.dumps(content).encode()
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
