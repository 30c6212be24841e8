"""The fault proxy: each fault does what its name says."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest

from .faults import FAULTS, lose_answer, unknown_status
from .loop import BackgroundLoop
from .proxy import FaultProxy, Request, airflow_route, platform_route

RECORD = {"data": {"invocation_id": "iv_1", "last_status": 5, "status": [{"status": 5, "detail": None}]}}


class Upstream(ThreadingHTTPServer):
    """Responds to all requests with one record, and to the watch with an endless stream."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str] = []
        self.bodies: list[bytes] = []
        self.go_on = threading.Event()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Upstream

    def do_POST(self) -> None:
        self.server.asked.append(self.path)
        self.server.bodies.append(self.rfile.read(int(self.headers.get("Content-Length", 0))))
        self.send_response(200)
        if self.path.endswith("/watch"):
            self.protocol_version = "HTTP/1.1"
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            self.wfile.write(b"event: open\n\n")
            self.wfile.flush()
            self.server.go_on.wait(10)
            self.wfile.write(b"event: ready\n\n")
            return
        body = json.dumps(RECORD).encode()
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with Upstream() as upstream:
        thread = threading.Thread(target=upstream.serve_forever, args=(0.01,))
        thread.start()
        yield upstream
        upstream.go_on.set()
        upstream.shutdown()
        thread.join()


@pytest.fixture
def loop() -> Iterator[BackgroundLoop]:
    with BackgroundLoop() as loop:
        yield loop


@pytest.fixture
def proxy(loop: BackgroundLoop, upstream: Upstream) -> Iterator[FaultProxy]:
    proxy = FaultProxy(loop, upstream.endpoint, platform_route)
    proxy.start()
    yield proxy
    proxy.stop()


def ask(proxy: FaultProxy, path: str = "v1/actions/invocations/iv_1", method: str = "GET") -> httpx.Response:
    with httpx.Client(base_url=proxy.endpoint, timeout=1.0, trust_env=False, verify=False) as client:
        return client.request(method, path, content=b"{}" if method == "POST" else None)


@pytest.mark.parametrize(
    ("method", "path", "route"),
    [
        ("POST", "/v1/actions/gated/invoke", "submit"),
        ("POST", "/v1/actions/invocations/query", "query"),
        ("GET", "/v1/actions/invocations/watch?ids=iv_1", "watch"),
        ("PATCH", "/v1/actions/invocations/watch/wt_1", "watch"),
        ("POST", "/v1/actions/invocations/iv_1/cancel", "cancel"),
        ("GET", "/v1/actions/invocations/iv_1/logs/stream?last_read=3", "logs"),
        ("GET", "/v1/actions/invocations/iv_1", "get"),
        ("GET", "/v1/actions/gated", "action"),
        ("POST", "/v1/actions/query", "other"),
    ],
)
def test_routes_of_the_platform(method: str, path: str, route: str) -> None:
    assert platform_route(Request(method, path, [], b"")) == route


def test_routes_of_airflow() -> None:
    state = Request("PATCH", "/execution/task-instances/01/state", [], b'{"state": "deferred"}')
    assert airflow_route(state) == "deferred:01"
    assert airflow_route(Request("POST", "/execution/xcoms/dag/run/task/key", [], b"1")) == "xcom:run"
    assert airflow_route(Request("GET", "/execution/xcoms/dag/run/task/key", [], b"")) == "other"


def test_request_without_a_fault_is_forwarded(proxy: FaultProxy, upstream: Upstream) -> None:
    answer = ask(proxy, "v1/actions/gated/invoke?digest=1", "POST")
    assert answer.json() == RECORD
    assert upstream.asked == ["/v1/actions/gated/invoke?digest=1"]
    assert upstream.bodies == [b"{}"]
    assert proxy.seen == ["submit"]


@pytest.mark.parametrize("fault", ["429", "500", "503", "HTML"])
def test_fault_applies_to_the_given_number_of_requests(
    proxy: FaultProxy, upstream: Upstream, fault: str
) -> None:
    rule = proxy.fault("get", FAULTS[fault], times=2)
    answers = [ask(proxy) for _ in range(3)]
    assert [answer.status_code for answer in answers[:2]] == [502 if fault == "HTML" else int(fault)] * 2
    assert answers[2].json() == RECORD
    assert len(upstream.asked) == 1
    assert rule.hits == 2
    assert rule.last.is_set()
    assert (answers[0].headers.get("Retry-After") == "1") is (fault == "429")


def test_timeout(proxy: FaultProxy, upstream: Upstream) -> None:
    proxy.fault("get", FAULTS["timeout"])
    with pytest.raises(httpx.ReadTimeout):
        ask(proxy)
    assert upstream.asked == []


def test_reset(proxy: FaultProxy, upstream: Upstream) -> None:
    proxy.fault("get", FAULTS["reset"])
    with pytest.raises(httpx.ReadError):
        ask(proxy)
    assert upstream.asked == []


def test_lost_answer(proxy: FaultProxy, upstream: Upstream) -> None:
    proxy.fault("submit", lose_answer)
    with pytest.raises(httpx.ReadError):
        ask(proxy, "v1/actions/gated/invoke", "POST")
    assert len(upstream.asked) == 1


def test_slow_body_is_complete(proxy: FaultProxy) -> None:
    proxy.fault("get", FAULTS["slow body"])
    answer = ask(proxy)
    assert answer.json() == RECORD
    assert answer.elapsed.total_seconds() > 1.0  # longer than the timeout of one wait


def test_half_json(proxy: FaultProxy) -> None:
    proxy.fault("get", FAULTS["half JSON"])
    answer = ask(proxy)
    assert answer.status_code == 200
    assert json.dumps(RECORD).startswith(answer.text)
    with pytest.raises(ValueError, match=r"delimiter|Unterminated|Expecting"):
        answer.json()


def test_unknown_status(proxy: FaultProxy) -> None:
    proxy.fault("get", unknown_status)
    data = ask(proxy).json()["data"]
    assert (data["last_status"], data["status"][0]["status"]) == (777, 777)


def test_request_is_held_before_it_is_forwarded(proxy: FaultProxy, upstream: Upstream) -> None:
    hold = proxy.hold("get")
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(ask, proxy)
        assert hold.reached.wait(5)
        assert upstream.asked == []
        hold.release()
        assert answer.result().json() == RECORD


def test_response_is_held_and_dropped(proxy: FaultProxy, upstream: Upstream) -> None:
    hold = proxy.hold("get", answer=True)
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(ask, proxy)
        assert hold.reached.wait(5)
        assert len(upstream.asked) == 1
        hold.release(forward=False)
        with pytest.raises(httpx.ReadError):
            answer.result()


def test_request_is_forwarded_after_its_client_has_disconnected(
    proxy: FaultProxy, upstream: Upstream
) -> None:
    hold = proxy.hold("get")
    with pytest.raises(httpx.ReadTimeout):
        ask(proxy)
    assert upstream.asked == []
    hold.release()
    assert hold.over.wait(5)
    assert len(upstream.asked) == 1


def test_stream_is_relayed_as_it_arrives_and_can_be_reset(proxy: FaultProxy) -> None:
    path = f"{proxy.endpoint}/v1/actions/invocations/watch"
    with (
        httpx.Client(timeout=5.0, trust_env=False, verify=False) as client,
        client.stream("GET", path) as answer,
    ):
        parts = answer.iter_raw()
        assert next(parts) == b"event: open\n\n"
        proxy.cut()
        with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
            next(parts)
