"""A busy Airflow is asked again: one slow, failed or missing answer ends nothing."""

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

#: What the server does with a request: answer with a status and an object, or leave it without an answer.
Reply = tuple[int, object] | None

RUNNING = {"state": "running"}
ENDED = {"state": "success"}
TASKS = {"task_instances": [{"task_id": "one"}]}


class Api:
    """Answers requests with the replies that it is given, in order, the last one for ever."""

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
    """Opens an Airflow whose process lives and whose API answers as it is told to."""
    monkeypatch.setattr(standalone, "LOOK_INTERVAL", 0.01)
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


def test_a_run_is_watched_over_answers_that_fail(opens: Opens) -> None:
    airflow, api = opens(
        None, (500, {}), (200, RUNNING), (503, {}), None, (200, TASKS), (200, ENDED), (200, TASKS)
    )
    assert list(airflow.watch("d", "r", 60)) == [TASKS["task_instances"]] * 2
    assert len(api.asked) == 8


def test_a_run_that_is_triggered_twice_is_one(opens: Opens) -> None:
    # Airflow has started it, and its answer was lost.
    airflow, api = opens(None, (409, {}))
    assert airflow.trigger("d").startswith("manual__")
    assert api.asked == ["POST /dags/d/dagRuns"] * 2


def test_what_never_answers_is_an_error_in_words(opens: Opens) -> None:
    airflow, api = opens(None)
    with pytest.raises(AirflowError, match=r"did not answer GET .*dagRuns/r for 0 s: no answer within 60 s"):
        list(airflow.watch("d", "r", 0.3))
    assert len(api.asked) > 1


def test_an_airflow_that_has_ended_is_not_asked_again(opens: Opens) -> None:
    airflow, _ = opens((500, {}), command="echo its last words")
    assert airflow._session._leader is not None
    airflow._session._leader.wait()
    with pytest.raises(AirflowError, match=r"ended by itself\nits last words"):
        airflow.dag_run("d", "r")


def test_what_it_refuses_is_not_asked_again(opens: Opens) -> None:
    airflow, api = opens((404, {}))
    with pytest.raises(httpx.HTTPStatusError):
        airflow.dag_run("d", "r")
    assert api.asked == ["GET /dags/d/dagRuns/r"]
