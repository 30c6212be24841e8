"""The example DAGs do against the real service what they say."""

from __future__ import annotations

from pathlib import Path

import pytest
from airflow.dag_processing.dagbag import DagBag
from airflow.sdk import DAG

from airflow_invocations.hooks import RobotoHook
from airflow_invocations.model import ContainerParameters, CreateActionRequest, InvocationStatus
from airflow_invocations.platform.roboto import RobotoPlatform

from .dag_runs import run

DAGS = Path(__file__).parents[3] / "dags"


def example(name: str) -> DAG:
    bag = DagBag(dag_folder=str(DAGS / f"{name}.py"))
    assert bag.import_errors == {}
    return bag.dags[name]


def register(hook: RobotoHook, name: str, command: str) -> None:
    request = CreateActionRequest(
        name=name, container_parameters=ContainerParameters(command=["sh", "-c", command])
    )

    async def create(platform: RobotoPlatform) -> None:
        await platform._call("POST", "v1/actions", body=request.wire(), idempotent=False)

    hook.call(create)


@pytest.mark.usefixtures("database")
def test_a_simulator_is_ended_also_after_a_failure(hook: RobotoHook) -> None:
    register(hook, "simulator", "sleep 600")
    register(hook, "drive", 'sleep 0.2; test "$ROBOTO_PARAM_route" = city || exit 65')
    dag_run = run(example("with_a_simulator"))
    states = {(one.task_id, one.map_index): one.state for one in dag_run.get_task_instances()}
    assert states == {
        ("start_simulator", -1): "success",
        ("drive", 0): "success",
        ("drive", 1): "failed",
        ("stop_simulator", -1): "success",
    }
    assert dag_run.state == "failed"
    (started,) = hook.find("with_a_simulator", dag_run.run_id, "start_simulator")
    assert started.current.status is InvocationStatus.Cancelled
