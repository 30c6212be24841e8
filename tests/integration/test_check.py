"""`invocations check`: a connection that works says as whom and where, any other says why not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from .conftest import LocalServer


def check(conn_id: str, **connections: Any) -> subprocess.CompletedProcess[str]:
    environment = {f"AIRFLOW_CONN_{name.upper()}": json.dumps(fields) for name, fields in connections.items()}
    return subprocess.run(
        [sys.executable, "-m", "airflow_invocations.cli", "check", conn_id],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_connection_that_works_says_as_whom_and_where(server: LocalServer) -> None:
    done = check("fleet", fleet={"conn_type": "roboto", "host": server.endpoint, "password": server.token})
    assert done.returncode == 0, done.stderr
    said = f"fleet: {server.endpoint} accepts the token of local in organisation og_local"
    assert done.stdout.splitlines()[-1] == said
    assert server.token not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("connection", "said"),
    [
        ({"password": "wr0ng-t0ken"}, "the token is unknown to this server"),
        ({"host": "http://127.0.0.1:9"}, "http://127.0.0.1:9 can't be reached"),
        ({"password": ""}, "password is empty; it must be the platform's access token"),
        ({"extra": {"org_id": "og_elsewhere"}}, "not to 'og_elsewhere'"),
        ({"conn_type": "http"}, "its type is 'http'; allowed: roboto"),
        (None, "The conn_id `fleet` isn't defined"),
    ],
    ids=["token", "address", "empty", "organisation", "type", "missing"],
)
def test_any_other_says_why_not(server: LocalServer, connection: dict[str, Any] | None, said: str) -> None:
    good = {"conn_type": "roboto", "host": server.endpoint, "password": server.token}
    done = check("fleet", **({} if connection is None else {"fleet": {**good, **connection}}))
    assert (done.returncode, done.stdout) == (1, "")
    last = done.stderr.splitlines()[-1]
    assert last.startswith("fleet: ")
    assert said in last
    for secret in (server.token, "wr0ng-t0ken"):
        assert secret not in done.stderr


def test_the_help_teaches() -> None:
    command = [sys.executable, "-m", "airflow_invocations.cli", "check", "--help"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for words in ("CONN_ID", "AIRFLOW_CONN_", "secrets\nbackends", "example: invocations check", "exit code"):
        assert words in said or words.replace("\n", " ") in " ".join(said.split())
