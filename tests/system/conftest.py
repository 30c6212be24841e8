"""A real Airflow for all system tests, a real local server, and a pynenc app without a runner."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from airflow_invocations.demo.local_server import LocalServer
from airflow_invocations.demo.standalone import StandaloneAirflow
from airflow_invocations.models import InvocationRecord

from ..platforms.deployment import Deployment
from ..platforms.on_pynenc import OnSQLite

HERE = Path(__file__).parent
ROOT = HERE.parents[1]

ACTIONS = {
    "count": {
        "parameters": [{"name": "lines", "required": True}],
        "container_parameters": {
            "command": [
                "sh",
                "-c",
                "i=0; while [ $i -lt $ROBOTO_PARAM_lines ]; do i=$((i+1)); echo line $i; sleep 0.2; done",
            ]
        },
    },
    "greet": {
        "parameters": [{"name": "who", "required": True}],
        "container_parameters": {"command": ["sh", "-c", "echo hello $ROBOTO_PARAM_who; sleep 1"]},
    },
    "odd_bytes": {
        "parameters": [{"name": "code", "default": "0"}],
        "container_parameters": {
            "command": [
                "sh",
                "-c",
                r"printf 'RIFF\000\n'; sleep 1; printf 'RIFF\000\n' >&2; exit $ROBOTO_PARAM_code",
            ]
        },
    },
    "tick": {"container_parameters": {"command": ["sleep", "2"]}},
    "tock": {"container_parameters": {"command": ["true"]}},
    "misuse": {"container_parameters": {"command": ["sh", "-c", "exit 64"]}},
    "fail": {"container_parameters": {"command": ["sh", "-c", "echo begun; echo no such topic >&2; exit 3"]}},
}


class SystemServer(LocalServer):
    """The local server and its records."""

    def new_dataset(self) -> str:
        """Create an empty dataset; return its id."""
        answer = httpx.post(
            f"{self.endpoint}/v1/datasets",
            json={"name": "written"},
            headers={"Authorization": f"Bearer {self.token}"},
        )
        return str(answer.raise_for_status().json()["data"]["dataset_id"])

    def record(self, invocation_id: str) -> InvocationRecord:
        answer = httpx.get(
            f"{self.endpoint}/v1/actions/invocations/{invocation_id}",
            headers={"Authorization": f"Bearer {self.token}"},
        )
        return InvocationRecord.model_validate(answer.raise_for_status().json()["data"])


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--screenshots", metavar="DIR", help="write pictures of the page in Airflow there")
    parser.addoption(
        "--airflow-option",
        metavar="SECTION.KEY=VALUE",
        action="append",
        default=[],
        help="configure the real Airflow so, besides what the tests need; may be repeated",
    )


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SystemServer]:
    folder = tmp_path_factory.mktemp("server")
    actions = folder / "actions"
    shutil.copytree(ROOT / "provider/airflow_invocations/demo/actions", actions)
    for name, action in ACTIONS.items():
        (actions / name).mkdir()
        (actions / name / "action.json").write_text(json.dumps({"name": name, **action}))
    with SystemServer(folder / "data", actions, slots=12) as server:
        server.start()
        yield server


@pytest.fixture(scope="session")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment | None]:
    """The backend of the connection `fleet`; None: pynenc can't be run here."""
    platform = OnSQLite()
    if platform.why_not_here():
        yield None
        return
    with platform.deploy(tmp_path_factory.mktemp("fleet"), workers=False) as deployment:
        yield deployment


@pytest.fixture(scope="session")
def airflow(
    server: SystemServer,
    fleet: Deployment | None,
    tmp_path_factory: pytest.TempPathFactory,
    pytestconfig: pytest.Config,
) -> Iterator[StandaloneAirflow]:
    folder = tmp_path_factory.mktemp("airflow")
    dags = folder / "dags"
    shutil.copytree(ROOT / "dags", dags)
    shutil.copytree(HERE / "dags", dags, dirs_exist_ok=True)
    (dags / "written_dataset").write_text(server.new_dataset())
    connections: dict[str, Mapping[str, Any]] = {
        "roboto_default": {"conn_type": "roboto", "host": server.endpoint, "password": server.token}
    }
    if fleet is not None:
        connections["fleet"] = fleet.connection
    options = dict(option.split("=", 1) for option in pytestconfig.getoption("--airflow-option"))
    configuration = {"core.test_connection": "Enabled", **options}
    with pytest.MonkeyPatch.context() as environment:
        # Tasks and triggers must be able to import the app of `fleet`.
        environment.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
        standalone = StandaloneAirflow(folder / "home", dags, connections, configuration)
    with standalone as airflow:
        airflow.start()
        for dag_id in (
            *("sensor_anomalies", "killed", "refused_and_failed", "short", "sensed", "workerless"),
            *("on_ticks", "writes", "reads", "anomaly_alerts", "on_pynenc"),
        ):
            airflow.wait_for_dag(dag_id)
        yield airflow
