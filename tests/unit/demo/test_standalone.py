"""Requests to a busy Airflow are repeated after slow, failed or missing responses."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from airflow_invocations.demo import standalone
from airflow_invocations.demo.session import Session
from airflow_invocations.demo.standalone import AirflowError, StandaloneAirflow

#: Response of the server: a status and an object; None sends no response.
Reply = tuple[int, object] | None

RUNNING = {"state": "running"}
ENDED = {"state": "success"}
TASKS = {"task_instances": [{"task_id": "one"}]}


class Api:
    """Sends the given replies in order; repeats the last one."""

    def __init__(self, *replies: Reply) -> None:
        self.asked: list[str] = []
        self._replies = list(replies)
        self._ends = threading.Event()
        api = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                api.asked.append(f"{self.command} {self.path}")
                reply = api._replies.pop(0) if len(api._replies) > 1 else api._replies[0]
                if reply is None:
                    api._ends.wait()
                    return
                content = json.dumps(reply[1]).encode()
                self.send_response(reply[0])
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PATCH = answer

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}/"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def close(self) -> None:
        self._ends.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


Opens = Callable[..., tuple[StandaloneAirflow, Api]]


@pytest.fixture
def opens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Opens]:
    """Open an Airflow with a running process and an API that sends the given replies."""
    monkeypatch.setattr(standalone, "POLL_INTERVAL", 0.01)
    open_ones: list[tuple[StandaloneAirflow, Api]] = []

    def open_one(*replies: Reply, command: str = "exec sleep 60") -> tuple[StandaloneAirflow, Api]:
        airflow, api = StandaloneAirflow(tmp_path, tmp_path, {}), Api(*replies)
        open_ones.append((airflow, api))
        airflow._client = httpx.Client(base_url=api.address, timeout=0.2, trust_env=False)
        airflow._session = Session(["sh", "-c", command], tmp_path, airflow.log_file)
        airflow._session.start(1)
        return airflow, api

    yield open_one
    for airflow, api in open_ones:
        airflow.stop()
        api.close()


def test_watch_continues_after_failed_responses(opens: Opens) -> None:
    airflow, api = opens(
        None, (500, {}), (200, RUNNING), (503, {}), None, (200, TASKS), (200, ENDED), (200, TASKS)
    )
    assert list(airflow.watch("d", "r", 60)) == [TASKS["task_instances"]] * 2
    assert len(api.asked) == 8


def test_repeated_trigger_starts_one_run(opens: Opens) -> None:
    # Airflow has started the run, but the response was lost.
    airflow, api = opens(None, (409, {}))
    assert airflow.trigger("d").startswith("manual__")
    assert api.asked == ["POST /dags/d/dagRuns"] * 2


def test_error_explains_that_airflow_never_responded(opens: Opens) -> None:
    airflow, api = opens(None)
    with pytest.raises(
        AirflowError, match=r"did not respond to GET .*dagRuns/r for 0 s: no response within 60 s"
    ):
        list(airflow.watch("d", "r", 0.3))
    assert len(api.asked) > 1


def test_request_is_not_repeated_when_airflow_has_exited(opens: Opens) -> None:
    airflow, _ = opens((500, {}), command="echo the end")
    assert airflow._session._leader is not None
    airflow._session._leader.wait()
    with pytest.raises(AirflowError, match=r"standalone exited\nthe end"):
        airflow.dag_run("d", "r")


def test_rejected_request_is_not_repeated(opens: Opens) -> None:
    airflow, api = opens((404, {}))
    with pytest.raises(httpx.HTTPStatusError):
        airflow.dag_run("d", "r")
    assert api.asked == ["GET /dags/d/dagRuns/r"]
