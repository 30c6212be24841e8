"""`invocations reconcile`: what it finds and does, and one clear line for whatever keeps it from working."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from airflow_invocations.models import DagRunProvenance, InvocationRequest, InvocationStatus

from .conftest import LocalServer

ENDED = {"deferred": False, "failed": True, "gone": True}


class Airflow(BaseHTTPRequestHandler):
    """The part of Airflow's API that is asked: a token, the list of task instances, and single ones."""

    password = "s3cret"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path == "/auth/token":
            self._answer(201 if body["password"] == self.password else 401, {"access_token": "t0ken"})
        elif self.headers["authorization"] != "Bearer t0ken":
            self._answer(401, {})
        else:
            self._answer(200, {"task_instances": [_item("deferred"), _item("failed")]})

    def do_GET(self) -> None:
        self._answer(404, {"detail": "no such task instance"})

    def _answer(self, status: int, content: dict[str, Any]) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


def _item(state: str) -> dict[str, Any]:
    return {
        "dag_id": "fleet", "dag_run_id": "r", "task_id": state, "map_index": -1, "state": state,
        "try_number": 1, "max_tries": 0, "id": f"i-{state}",
    }  # fmt: skip


@pytest.fixture
def airflow() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Airflow)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def reconcile(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "airflow_invocations.cli", "reconcile", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def connection(server: LocalServer, token: str | None = None) -> str:
    return json.dumps({"conn_type": "roboto", "host": server.endpoint, "password": token or server.token})


def invoke(server: LocalServer, task_id: str, base_url: str) -> str:
    """Invoke a long action as a task would; the invocation's id."""
    server.request(
        "POST", "v1/actions", json={"name": "long", "container_parameters": {"command": ["sleep", "600"]}}
    )
    asked = DagRunProvenance(
        dag_id="fleet", run_id="r", run_type="manual", task_id=task_id, try_number=1, max_tries=0,
        instance_id=f"i-{task_id}", base_url=base_url,
    )  # fmt: skip
    request = InvocationRequest(
        invocation_source=asked.source.source_type, invocation_source_id=asked.source_id
    )
    answer = server.request("POST", "v1/actions/long/invoke", json=request.wire()).raise_for_status()
    return str(answer.json()["data"]["invocation_id"])


def is_cancelled(server: LocalServer, invocation_id: str) -> bool:
    answer = server.request("GET", f"v1/actions/invocations/{invocation_id}").raise_for_status()
    return bool(answer.json()["data"]["last_status"] == int(InvocationStatus.Cancelled))


def cancel_all(server: LocalServer) -> None:
    server.request("POST", "v1/actions/invocations/cancel/all", json={}).raise_for_status()


def test_reconcile_shows_and_cancels_what_no_task_waits_for(server: LocalServer, airflow: str) -> None:
    ids = {task_id: invoke(server, task_id, airflow) for task_id in ENDED}
    other = invoke(server, "failed", "https://staging.example")
    login = {
        "AIRFLOW_CONN_FLEET": connection(server),
        "INVOCATIONS_AIRFLOW_USER": "ada",
        "INVOCATIONS_AIRFLOW_PASSWORD": Airflow.password,
    }
    dry = reconcile("fleet", "--airflow", airflow, "--dry-run", **login)
    assert dry.returncode == 0, dry.stderr
    *table, summary = dry.stdout.splitlines()
    assert [line.split()[0] for line in table] == ["INVOCATION_ID", *reversed([ids["failed"], ids["gone"]])]
    assert summary == (
        "active invocations: 4; foreign: 1; orphaned: 2; wanted: 1; nothing was cancelled (dry run)"
    )
    assert not is_cancelled(server, ids["failed"])
    done = reconcile("fleet", "--airflow", airflow, "--json", **login)
    assert done.returncode == 0, done.stderr
    outcomes = {row["invocation_id"]: (row["verdict"], row["outcome"]) for row in json.loads(done.stdout)}
    assert outcomes == {
        ids["deferred"]: ("wanted", None), other: ("foreign", None),
        ids["failed"]: ("orphaned", "cancelled"), ids["gone"]: ("orphaned", "cancelled"),
    }  # fmt: skip
    assert {name: is_cancelled(server, one) for name, one in ids.items()} == ENDED
    assert Airflow.password not in dry.stdout + dry.stderr + done.stderr
    cancel_all(server)


@pytest.mark.parametrize(
    ("arguments", "environment", "said"),
    [
        (["nowhere"], {}, "there is no connection 'nowhere'"),
        (["fleet"], {"AIRFLOW__API__BASE_URL": ""}, "name the URL of your Airflow with --airflow"),
        (["fleet", "--airflow", "http://127.0.0.1:9"], {}, "http://127.0.0.1:9 does not answer"),
        (["fleet", "--airflow", "{airflow}"], {"INVOCATIONS_AIRFLOW_TOKEN": "wr0ng"}, "rejects the token"),
        (
            ["fleet", "--airflow", "{airflow}"],
            {"INVOCATIONS_AIRFLOW_USER": "ada", "INVOCATIONS_AIRFLOW_PASSWORD": "wr0ng"},
            "rejects the token or password (401)",
        ),
    ],
    ids=["connection", "url", "unreachable", "token", "password"],
)
def test_reconcile_cancels_nothing_without_an_answer(
    server: LocalServer, airflow: str, arguments: list[str], environment: dict[str, str], said: str
) -> None:
    base_url = arguments[-1].format(airflow=airflow) if len(arguments) > 1 else airflow
    invocation_id = invoke(server, "failed", base_url)
    arguments = [one.format(airflow=airflow) for one in arguments]
    done = reconcile(*arguments, **{"AIRFLOW_CONN_FLEET": connection(server), **environment})
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("invocations reconcile: ")
    assert said in line
    assert "wr0ng" not in line
    assert not is_cancelled(server, invocation_id)
    cancel_all(server)


def test_reconcile_with_a_token_that_may_not_cancel(server: LocalServer, airflow: str) -> None:
    invocation_id = invoke(server, "failed", airflow)
    command = [sys.executable, "-m", "airflow_invocations.cli", "token", "add", "reader", "--role", "read"]
    made = subprocess.run(
        [*command, "--data-dir", str(server.data_dir)], capture_output=True, text=True, check=True
    )
    done = reconcile(
        "fleet", "--airflow", airflow,
        AIRFLOW_CONN_FLEET=connection(server, made.stdout.split()[-1]), INVOCATIONS_AIRFLOW_TOKEN="t0ken",
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("invocations reconcile: not cancelled: 1 of the unwanted invocations")
    assert not is_cancelled(server, invocation_id)
    cancel_all(server)
