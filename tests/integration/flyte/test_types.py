"""Tasks as the SDK describes them, executed by it: what we send is what they take, whatever its kind."""

from __future__ import annotations

import asyncio
import base64
import importlib.util
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG
from airflow.utils.file import might_contain_dag_via_default_heuristic
from flyteidl2.core import interface_pb2, literals_pb2
from flyteidl2.task import common_pb2

from airflow_invocations.models import InvocationStatus
from airflow_invocations.platforms import InvalidRequestError
from airflow_invocations.platforms.flyte import FlytePlatform

from ...platforms.flyte_server import DOMAIN, PROJECT, FlyteServer, Pod, TaskError
from ..airflow.conftest import database, no_floor  # noqa: F401  these are fixtures
from ..airflow.dag_runs import results, run
from .conftest import ended, request

pytestmark = pytest.mark.anyio
HERE = Path(__file__).parent
DAGS = HERE.parents[2] / "dags"


async def container(*arguments: str, given: str = "") -> Any:
    """What a process with the SDK in it prints."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.integration.flyte.container", *arguments,
        env=os.environ | {"DO_NOT_TRACK": "1", "FLYTE_DISABLE_TELEMETRY": "1"},
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, errors = await process.communicate(given.encode())
    if process.returncode:
        raise TaskError(errors.decode().strip().splitlines()[-1])
    return json.loads(out.decode().splitlines()[-1])


async def deploy_module(server: FlyteServer, file: Path) -> None:
    """Deploy a module's tasks, to be executed by the SDK."""
    for name, described in (await container("describe", str(file))).items():

        async def body(pod: Pod, name: str = name) -> Mapping[str, literals_pb2.Literal]:
            packed = base64.b64encode(pod.inputs.SerializeToString()).decode()
            outputs = common_pb2.Outputs.FromString(
                base64.b64decode(await container("execute", str(file), name, given=packed))
            )
            return {one.name: one.value for one in outputs.literals}

        interface = interface_pb2.TypedInterface.FromString(base64.b64decode(described["interface"]))
        defaults = [
            common_pb2.NamedParameter.FromString(base64.b64decode(one)) for one in described["defaults"]
        ]
        server.backend.deploy_interface(name, body, interface, defaults)


async def test_every_kind_of_input_arrives_as_what_it_is(server: FlyteServer, flyte: FlytePlatform) -> None:
    await deploy_module(server, HERE / "typed_tasks.py")
    given = {
        "whole": "7",
        "number": 3,
        "text": "7",
        "truth": "True",
        "moment": "2026-01-31T13:00:00+01:00",
        "span": 90.5,
        "several": [1, 2**40],
        "named": {"a": 0.5},
        "colour": "RED",
        "pose": {"at": {"x": 1.5}, "history": [{"x": 2.0, "label": "there"}]},
        "robot": {"name": "rover"},
        "anything": {"deep": [1, {"er": None}]},
        "either": "7",
        "perhaps": None,
        "file": "s3://bags/1.bag",
    }
    asked = request().model_copy(update={"parameter_values": given})
    record = await ended(flyte, (await flyte.invoke("typed.describe", asked)).invocation_id)
    assert record.current.status is InvocationStatus.Completed, record.current.detail
    arrived = await flyte.outputs(record.invocation_id)
    assert arrived == {
        "whole": "7",
        "number": "3.0",
        "text": "'7'",
        "truth": "True",
        "moment": "datetime.datetime(2026, 1, 31, 12, 0, tzinfo=datetime.timezone.utc)",
        "span": "datetime.timedelta(seconds=90, microseconds=500000)",
        "several": f"[1, {2**40}]",
        "named": "{'a': 0.5}",
        "colour": "<Colour.RED: 'red'>",
        "pose": ("Pose(at=Point(x=1.5, label='here'), history=[Point(x=2.0, label='there')], note=None)"),
        "robot": "Robot(name='rover', wheels=4)",
        "anything": "{'deep': [1, {'er': None}]}",
        "either": "'7'",
        "perhaps": "None",
        "file": "s3://bags/1.bag",
        "missing": "None",
        "season": "24",
    }


async def test_values_that_the_sdk_rejects_are_rejected_before_a_request(
    server: FlyteServer, flyte: FlytePlatform
) -> None:
    await deploy_module(server, HERE / "typed_tasks.py")
    action = await flyte.get_action("typed.describe")
    assert {one.name for one in action.parameters if not one.required} == {"missing", "season"}
    given = {
        "whole": 1.5,
        "colour": "red",
        "pose": {"at": {"x": "far"}, "hight": 1},
        "robot": {"wheels": "four"},
        "either": 0.5,
        "file": "/tmp/1.bag",
    }
    asked = request().model_copy(update={"parameter_values": given})
    with pytest.raises(InvalidRequestError) as rejected:
        await flyte.invoke("typed.describe", asked)
    for said in (
        "'whole': expected: integer, got: float 1.5",
        "'colour': expected: one of 'RED', 'GREEN', got: str 'red'",
        "'pose.at.x': 'far' is not of type 'number'",
        "hight",
        "'robot': 'name' is a required property",
        "'either': expected: integer or string, got: float 0.5",
        "'file': expected: file (its URI), got: str '/tmp/1.bag'",
        "'several' is missing; expected: list of integer",
    ):
        assert said in str(rejected.value), said
    assert server.calls("CreateRun") == []


@pytest.fixture
def dag() -> DAG:
    """The example in dags/, read where neither the SDK nor msgpack is installed."""
    spec = importlib.util.spec_from_file_location("temperature_forecast", DAGS / "temperature_forecast.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("flyte", "flyteidl2", "msgpack"):
            patch.setitem(sys.modules, name, None)
        patch.setitem(sys.modules, "temperature_forecast", module)
        spec.loader.exec_module(module)
    dag: DAG = module.train.dag
    return dag


def test_airflow_reads_the_example_and_leaves_its_tasks_alone() -> None:
    assert might_contain_dag_via_default_heuristic(str(DAGS / "temperature_forecast.py"))
    assert not might_contain_dag_via_default_heuristic(str(DAGS / "forecast_tasks.py"))


@pytest.mark.usefixtures("database", "no_floor")
def test_the_example_forecasts_from_real_files(
    server: FlyteServer, dag: DAG, monkeypatch: pytest.MonkeyPatch
) -> None:
    asyncio.run(deploy_module(server, DAGS / "forecast_tasks.py"))
    said = {
        "conn_type": "flyte",
        "host": server.endpoint,
        "extra": {"project": PROJECT, "domain": DOMAIN},
    }
    monkeypatch.setenv("AIRFLOW_CONN_FLYTE_DEFAULT", json.dumps(said))
    dag_run = run(dag, {"files": ["sf-temps.csv"]})
    assert dag_run.state == "success"
    trained, (line,) = results(dag_run, "train"), results(dag_run, "report")
    assert len(trained["outputs"]["means"]) == 24
    assert line["file"] == "sf-temps.csv"
    assert 40 < line["lowest"] < line["highest"] < 80
    assert line["url"].startswith(f"{server.endpoint}/v2/domain/{DOMAIN}/project/{PROJECT}/runs/")
