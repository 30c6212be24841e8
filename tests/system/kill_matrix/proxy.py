"""An HTTP proxy that injects faults of networks, gateways and overloaded servers into chosen requests."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import struct
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import httpx

from .loop import BackgroundLoop

#: Headers of one connection, which aren't forwarded.
_HOP_BY_HOP = frozenset(
    {"connection", "content-length", "date", "host", "keep-alive", "server", "transfer-encoding"}
)


@dataclass(frozen=True, slots=True)
class Request:
    """One request of a client."""

    method: str
    path: str
    headers: list[tuple[str, str]]
    body: bytes


#: Returns the route of a request.
Router = Callable[[Request], str]

#: Handles an exchange instead of forwarding it.
Fault = Callable[["Exchange"], Awaitable[None]]

_PLATFORM_ROUTES = [
    ("submit", "POST", r"/v1/actions/[^/]+/invoke"),
    ("query", "POST", r"/v1/actions/invocations/query"),
    ("watch", "GET|POST|PATCH", r"/v1/actions/invocations/watch(/.*)?"),
    ("cancel", "POST", r"/v1/actions/invocations/[^/]+/cancel"),
    ("logs", "GET", r"/v1/actions/invocations/[^/]+/logs(/stream)?"),
    ("get", "GET", r"/v1/actions/invocations/[^/]+"),
    ("action", "GET", r"/v1/actions/[^/]+"),
]


def platform_route(request: Request) -> str:
    """Return the route of the invocation API."""
    path = request.path.partition("?")[0]
    for route, methods, pattern in _PLATFORM_ROUTES:
        if re.fullmatch(methods, request.method) and re.fullmatch(pattern, path):
            return route
    return "other"


def airflow_route(request: Request) -> str:
    """Return the route of Airflow's execution API.

    `<state>:<task instance id>` if a worker reports a state, `xcom:<run id>` if it pushes an XCom.
    """
    match = re.fullmatch(r"/execution/task-instances/([^/]+)/state", request.path)
    if match and request.method == "PATCH":
        return f"{json.loads(request.body).get('state')}:{match[1]}"
    match = re.match(r"/execution/xcoms/[^/]+/([^/]+)/", request.path)
    return f"xcom:{match[1]}" if match and request.method == "POST" else "other"


@dataclass(slots=True)
class Rule:
    """A fault for the next `times` requests of some routes."""

    routes: frozenset[str]
    fault: Fault
    times: int
    hits: int = 0
    #: Set when the first request has been affected, and when the last has.
    first: threading.Event = field(default_factory=threading.Event)
    last: threading.Event = field(default_factory=threading.Event)

    def take(self, route: str) -> bool:
        """Return whether the fault applies to a request of this route, and count it."""
        if self.hits >= self.times or not any(re.fullmatch(wanted, route) for wanted in self.routes):
            return False
        self.hits += 1
        self.first.set()
        if self.hits == self.times:
            self.last.set()
        return True


class FaultProxy:
    """Forwards all requests to `upstream`, except those to which a fault applies."""

    def __init__(self, loop: BackgroundLoop, upstream: str, router: Router) -> None:
        self.upstream = upstream
        self.endpoint = ""
        #: Routes of all requests, in order.
        self.seen: list[str] = []
        self._loop = loop
        self._router = router
        self._rules: list[Rule] = []
        self._lock = threading.Condition()
        self._server: asyncio.Server
        self._client: httpx.AsyncClient
        self._open: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        self._loop.run(self._start())

    def stop(self) -> None:
        self._loop.run(self._stop())

    def fault(self, routes: str | Collection[str], fault: Fault, times: int = 1) -> Rule:
        """Apply a fault to the next `times` requests of these routes (regular expressions)."""
        rule = Rule(frozenset({routes} if isinstance(routes, str) else routes), fault, times)
        with self._lock:
            self._rules.append(rule)
        return rule

    def hold(self, routes: str | Collection[str], *, answer: bool = False) -> Hold:
        """Hold the next request of these routes before it is forwarded; with `answer`, hold its response."""
        hold = Hold(self._loop, answer=answer)
        self.fault(routes, hold)
        return hold

    def lift(self) -> None:
        """Remove all faults."""
        with self._lock:
            self._rules.clear()

    def cut(self) -> None:
        """Reset all open connections, including streams."""
        self._loop.run(self._cut())

    def wait_for(self, route: str, count: int, within: float) -> bool:
        """Wait until there were `count` requests of a route, at most `within` seconds; return whether."""
        with self._lock:
            return self._lock.wait_for(lambda: self.seen.count(route) >= count, within)

    async def _start(self) -> None:
        self._client = httpx.AsyncClient(
            timeout=None, trust_env=False, verify=False, limits=httpx.Limits(max_keepalive_connections=4)
        )
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=2**20)
        host, port = self._server.sockets[0].getsockname()
        self.endpoint = f"http://{host}:{port}"

    async def _stop(self) -> None:
        self._server.close()
        for task in list(self._open):
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)
        await self._server.wait_closed()
        await self._client.aclose()

    async def _cut(self) -> None:
        for task in self._open:
            task.cancel()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            request = await _read(reader)
            if request is not None:
                exchange = Exchange(self, self._client, request, reader, writer)
                await (self._fault_for(request) or pass_on)(exchange)
        except (OSError, httpx.TransportError, asyncio.IncompleteReadError):
            reset(writer)  # one side is closed; the other one must notice
        except asyncio.CancelledError:
            reset(writer)
        finally:
            self._open.discard(task)
            writer.close()

    def _fault_for(self, request: Request) -> Fault | None:
        route = self._router(request)
        with self._lock:
            self.seen.append(route)
            self._lock.notify_all()
            return next((rule.fault for rule in self._rules if rule.take(route)), None)


class Exchange:
    """One request and its response, which a fault can change."""

    def __init__(
        self,
        proxy: FaultProxy,
        client: httpx.AsyncClient,
        request: Request,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self.request = request
        self._proxy = proxy
        self._client = client
        self._reader = reader
        self._writer = writer

    @asynccontextmanager
    async def forwarded(self) -> AsyncIterator[httpx.Response]:
        """Forward the request; return when the response's headers are received."""
        headers = [(name, value) for name, value in self.request.headers if name.lower() not in _HOP_BY_HOP]
        request = self._client.build_request(
            self.request.method,
            f"{self._proxy.upstream}{self.request.path}",
            headers=headers,
            content=self.request.body,
        )
        response = await self._client.send(request, stream=True)
        try:
            yield response
        finally:
            await response.aclose()

    async def answer(
        self,
        status: int,
        body: bytes = b"",
        content_type: str = "application/json",
        headers: Collection[tuple[str, str]] = (),
    ) -> None:
        """Respond with a complete body."""
        await self.head(
            status, [*headers, ("Content-Type", content_type), ("Content-Length", str(len(body)))]
        )
        await self.write(body)

    async def relay(
        self, response: httpx.Response, rewrite: Callable[[bytes], bytes] = lambda body: body
    ) -> None:
        """Relay the upstream's response as it arrives, so that a stream remains one."""
        headers = [(name, value) for name, value in response.headers.multi_items() if name not in _HOP_BY_HOP]
        if "content-length" in response.headers or response.status_code == httpx.codes.NO_CONTENT:
            body = rewrite(b"".join([part async for part in response.aiter_raw()]))
            length = [("Content-Length", str(len(body)))] if body else []
            await self.head(response.status_code, [*headers, *length])
            await self.write(body)
            return
        await self.head(response.status_code, [*headers, ("Transfer-Encoding", "chunked")])
        parts = response.aiter_raw()
        gone = asyncio.ensure_future(self.client_gone())
        following = asyncio.ensure_future(anext(parts, b""))
        try:
            while True:
                await asyncio.wait({following, gone}, return_when=asyncio.FIRST_COMPLETED)
                if gone.done():
                    return
                part = rewrite(following.result())
                await self.write(b"%x\r\n%b\r\n" % (len(part), part))
                if not part:
                    return
                following = asyncio.ensure_future(anext(parts, b""))
        finally:
            for task in (following, gone):
                task.cancel()
            await asyncio.gather(following, gone, return_exceptions=True)

    async def write(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def client_gone(self) -> None:
        """Wait until the client hangs up."""
        while await self._reader.read(4096):
            pass

    def reset(self) -> None:
        """Break the connection (RST)."""
        reset(self._writer)

    async def head(self, status: int, headers: Collection[tuple[str, str]]) -> None:
        reason = httpx.codes.get_reason_phrase(status)
        lines = [f"HTTP/1.1 {status} {reason}", *(f"{name}: {value}" for name, value in headers)]
        await self.write("\r\n".join([*lines, "Connection: close", "", ""]).encode("latin-1"))


class Hold:
    """A named point at which a request is held until it is released.

    A fault of one request. `reached` is set when the request, or its response, is held; `over` when
    its handling has ended.
    """

    def __init__(self, loop: BackgroundLoop, *, answer: bool) -> None:
        self.reached = threading.Event()
        self.over = threading.Event()
        self._loop = loop
        self._answer = answer
        self._go = asyncio.Event()
        self._forward = True

    def release(self, *, forward: bool = True) -> None:
        """Release the request; without `forward` the request, or its response, is dropped."""
        self._forward = forward
        self._loop.soon(self._go.set)

    async def __call__(self, exchange: Exchange) -> None:
        try:
            await self._stand(exchange)
        finally:
            self.over.set()

    async def _stand(self, exchange: Exchange) -> None:
        if not self._answer:
            self.reached.set()
            await self._go.wait()
            if not self._forward:
                exchange.reset()
                return
        async with exchange.forwarded() as response:
            if self._answer:
                body = await response.aread()
                self.reached.set()
                await self._go.wait()
                if self._forward:
                    await exchange.answer(response.status_code, body)
                else:
                    exchange.reset()
                return
            await exchange.relay(response)


async def pass_on(exchange: Exchange) -> None:
    """Forward without a fault."""
    async with exchange.forwarded() as response:
        await exchange.relay(response)


def reset(writer: asyncio.StreamWriter) -> None:
    """Break a connection so that the other side gets a reset, not an end."""
    sock: socket.socket | None = writer.get_extra_info("socket")
    if sock is not None and not writer.transport.is_closing():
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def _read(reader: asyncio.StreamReader) -> Request | None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.decode("latin-1").split("\r\n")
    method, path, _ = first.split(" ", 2)
    headers = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines if line)]
    length = next((int(value) for name, value in headers if name.lower() == "content-length"), 0)
    return Request(method, path, headers, await reader.readexactly(length))
