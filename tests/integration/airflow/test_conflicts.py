"""A platform that answers each repeated idempotency id with 409, and one that does if the request differs."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from airflow_invocations.exceptions import InvocationConflictError
from airflow_invocations.hooks import RobotoHook
from airflow_invocations.models import InvocationRequest, InvocationSource

from .conftest import connect_to, script
from .test_durability import Instance, count


class Rejecting(ThreadingHTTPServer):
    """The local server, but that each repeated idempotency id is answered with 409."""

    def __init__(self, server: Any) -> None:
        super().__init__(("127.0.0.1", 0), Relay)
        self.upstream = server
        self.seen: set[str] = set()
        self.rejected = 0

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Relay(BaseHTTPRequestHandler):
    server: Rejecting

    def do_POST(self) -> None:
        self._relay()

    def do_GET(self) -> None:
        self._relay()

    def _relay(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path.endswith("/invoke"):
            once = json.loads(content).get("idempotency_id")
            if once in self.server.seen:
                self.server.rejected += 1
                error = {"error_code": "RobotoConflictException", "message": "it is there already"}
                self._answer(409, json.dumps({"error": error}).encode())
                return
            if once:
                self.server.seen.add(once)
        if "/watch" in self.path:
            error = {"error_code": "RobotoNotImplementedException", "message": "no streams here"}
            self._answer(501, json.dumps({"error": error}).encode())
            return
        headers = {
            name: value for name, value in self.headers.items() if name.lower() not in ("host", "connection")
        }
        answer = httpx.request(
            self.command, self.server.upstream.endpoint + self.path, content=content, headers=headers
        )
        self._answer(answer.status_code, answer.content)

    def _answer(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Keep the test's output free of requests."""


@pytest.fixture
def rejecting(hook: RobotoHook, server: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rejecting]:
    """A platform that rejects repeated ids, under the connection that operators use by default."""
    with Rejecting(server) as proxy:
        thread = threading.Thread(target=proxy.serve_forever)
        thread.start()
        connect_to(SimpleNamespace(endpoint=proxy.endpoint, token=server.token), monkeypatch)
        yield proxy
        proxy.shutdown()
        thread.join()


@pytest.fixture(params=["409 if it differs", "409 if it is repeated"])
def platform(request: pytest.FixtureRequest, hook: RobotoHook) -> str:
    if request.param == "409 if it is repeated":
        request.getfixturevalue("rejecting")
    return str(request.param)


def test_a_retry_adopts_what_was_asked_for_and_rejects_anything_else(platform: str, hook: RobotoHook) -> None:
    instance = Instance(
        script(hook, "sleep 1; echo $ROBOTO_PARAM_n"), parameters={"n": 1, "token": "s3cret-1"}
    )
    _, first = instance.start()
    _, again = instance.start()
    assert again == first
    instance.arguments["parameters"] = {"n": 2, "token": "s3cret-2"}
    _, error = instance.run()
    assert type(error) is InvocationConflictError
    assert error.detail == "parameter 'n' (another value); parameter 'token' (another value)"
    assert error.invocation_id == first
    assert "s3cret" not in str(error)
    assert "volatile_parameters" in str(error)
    instance.arguments["volatile_parameters"] = ["n", "token"]
    _, result = instance.run()
    assert (result["invocation_id"], result["status"]) == (first, "Completed")
    assert count(hook, instance.arguments["action"]) == 1


def test_a_failure_of_an_earlier_try_is_not_in_the_way_of_another_request(
    platform: str, hook: RobotoHook
) -> None:
    instance = Instance(script(hook, 'test "$ROBOTO_PARAM_n" != 1'), parameters={"n": 1})
    instance.run()
    instance.arguments["parameters"] = {"n": 2}
    _, result = instance.run()
    assert result["status"] == "Completed"
    assert count(hook, instance.arguments["action"]) == 2


def test_a_hook_gets_its_own_invocation_again_and_no_other(platform: str, hook: RobotoHook) -> None:
    action = script(hook, "true")
    asking = RobotoHook()

    def asked(n: int) -> InvocationRequest:
        return InvocationRequest(
            invocation_source=InvocationSource.Manual,
            parameter_values={"n": n},
            idempotency_id=f"once for {action}",
        )

    first = asking.invoke(action, asked(1))
    assert asking.invoke(action, asked(1)).invocation_id == first.invocation_id
    with pytest.raises(InvocationConflictError, match="parameter 'n'"):
        asking.invoke(action, asked(2))
