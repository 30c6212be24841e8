"""Invocations in a real Airflow: invoked, deferred, logged live, recorded, and cancelled when killed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from airflow_invocations.demo.standalone import StandaloneAirflow
from airflow_invocations.models import DagRunProvenance, InvocationStatus, task_instance_of

from ..platforms.deployment import Deployment, executions
from ..platforms.on_pynenc import OnSQLite
from ..support import waiting
from ..support.airflow_version import since
from .conftest import SystemServer

#: Longest time for anything that Airflow does on two busy cores, in seconds.
PATIENCE = 90.0


def until(what: str, found: Callable[[], Any], patience: float = PATIENCE) -> Any:
    """Poll until there is something: Airflow's REST API has no notifications."""
    return waiting.until(found, patience, every=0.25, what=lambda: f"no {what}")


def lines(
    airflow: StandaloneAirflow, dag_id: str, run_id: str, task_id: str, map_index: int = -1
) -> list[str]:
    """Return the action's lines in a task's log; empty while there is no log."""
    try:
        log = airflow.task_log(dag_id, run_id, task_id, map_index=map_index)
    except httpx.HTTPStatusError:
        return []
    return [line["event"] for line in log if line.get("logger") == "airflow_invocations.action"]


def states(airflow: StandaloneAirflow, dag_id: str, run_id: str) -> dict[str, str]:
    """Return states by task id; the key of a mapped instance is `task_id.map_index`."""
    return {_name(each): each["state"] for each in airflow.task_instances(dag_id, run_id)}


def _name(instance: dict[str, Any]) -> str:
    index = instance["map_index"]
    return instance["task_id"] if index < 0 else f"{instance['task_id']}.{index}"


def everything_said(airflow: StandaloneAirflow, dag_id: str, run_id: str, task_id: str) -> str:
    return json.dumps(airflow.task_log(dag_id, run_id, task_id))


def test_dag_checks_sensor_files(airflow: StandaloneAirflow, server: SystemServer) -> None:
    dag_id, task_id = "sensor_anomalies", "find_anomalies"
    run_id = airflow.trigger(dag_id, {"pace_seconds": 20})
    seen_live: dict[int, list[str]] = {}
    for instances in airflow.watch(dag_id, run_id, timeout=180):
        for instance in instances:
            index = instance["map_index"]
            if instance["task_id"] == task_id and instance["state"] == "deferred" and index not in seen_live:
                before = lines(airflow, dag_id, run_id, task_id, index)
                # Still deferred after the log was read, so the lines were written before the end.
                if before and states(airflow, dag_id, run_id).get(f"{task_id}.{index}") == "deferred":
                    seen_live[index] = before
    run = airflow.dag_run(dag_id, run_id)
    assert run["state"] == "success", airflow.log_tail()
    assert sorted(seen_live) == [0, 1, 2]

    for index, file in enumerate(("sf-temps.csv", "seattle-temps.csv", "seattle-weather.csv")):
        result = airflow.xcom(dag_id, run_id, task_id, map_index=index)
        assert result["status"] == "Completed"
        record = server.record(result["invocation_id"])
        assert record.current.status is InvocationStatus.Completed
        assert record.provenance.action.digest == result["digest"]
        provenance = DagRunProvenance.from_environment(record.container_parameters.env_vars)
        assert provenance is not None
        assert provenance.model_dump(mode="json", exclude_none=True) == result["provenance"]
        assert (provenance.dag_id, provenance.run_id, provenance.task_id) == (dag_id, run_id, task_id)
        assert (provenance.map_index, provenance.try_number) == (index, 1)
        assert (provenance.run_type, provenance.triggered_by) == ("manual", run["triggering_user_name"])
        assert record.provenance.source.source_type.value == "Manual"
        instance = task_instance_of(record.provenance.source.source_id)
        assert instance is not None
        assert (instance.dag_id, instance.run_id, instance.map_index) == (dag_id, run_id, index)

        log = lines(airflow, dag_id, run_id, task_id, index)
        assert log[0].startswith(f"{file}: ")
        assert len(log) == len(set(log)) > 10
        assert log[: len(seen_live[index])] == seen_live[index]
        assert airflow.links(dag_id, run_id, task_id, map_index=index) == {
            "Invocation": result["url"],
            "Invocation log": f"{result['url']}#log",
        }
        output = server.folder_of(airflow.xcom(dag_id, run_id, "results")) / Path(file).stem
        assert (output / "anomalies.png").read_bytes().startswith(b"\x89PNG")
        report = json.loads((output / "report.json").read_text())
        assert report["file"] == file

    reports = airflow.xcom(dag_id, run_id, "gather_reports")
    assert [report["file"] for report in reports] == [
        "sf-temps.csv",
        "seattle-temps.csv",
        "seattle-weather.csv",
    ]


def test_marking_a_task_failed_cancels_its_invocation(
    airflow: StandaloneAirflow, server: SystemServer
) -> None:
    run_id = airflow.trigger("killed")
    waiting = {"deferred": "deferred", "in_a_worker": "running"}
    until("waiting tasks", lambda: states(airflow, "killed", run_id) == waiting)
    for task_id in waiting:
        until("log line", lambda task_id=task_id: lines(airflow, "killed", run_id, task_id))
    ids = {task_id: airflow.xcom("killed", run_id, task_id, "invocation_id") for task_id in waiting}
    for task_id in waiting:
        assert airflow.links("killed", run_id, task_id)["Invocation"].endswith(ids[task_id])
        airflow.set_state("killed", run_id, task_id, "failed")
    for invocation_id in ids.values():
        record = until(
            "cancelled invocation",
            lambda invocation_id=invocation_id: (
                record if (record := server.record(invocation_id)).current.status.is_terminal else None
            ),
        )
        assert record.current.status is InvocationStatus.Cancelled


def test_invalid_argument_fails_the_task_without_invocation_or_retry(
    airflow: StandaloneAirflow, server: SystemServer
) -> None:
    dag_id = "refused_and_failed"
    run_id = airflow.trigger(dag_id)
    *_, instances = airflow.watch(dag_id, run_id, PATIENCE)
    assert {each["task_id"]: (each["state"], each["try_number"]) for each in instances} == dict.fromkeys(
        ("unknown_action", "missing_parameter", "no_connection", "fails"), ("failed", 1)
    )
    said = {each["task_id"]: everything_said(airflow, dag_id, run_id, each["task_id"]) for each in instances}
    assert (
        "action 'no-such-action' was not invoked: there is no action 'no-such-action'"
        in said["unknown_action"]
    )
    assert "missing: 'lines'; the action declares: lines (required)" in said["missing_parameter"]
    assert "no_such_connection" in said["no_connection"]
    assert "Failed: exit code 3: no such topic" in said["fails"]
    for task_id in ("unknown_action", "missing_parameter", "no_connection"):
        assert airflow.xcom(dag_id, run_id, task_id, "invocation_id") is None
    failed = airflow.xcom(dag_id, run_id, "fails", "invocation_id")
    links = airflow.links(dag_id, run_id, "fails")
    assert (links["Invocation"] or "").endswith(failed)
    assert links["Invocation log"] == f"{links['Invocation']}#log"
    assert server.record(failed).current.status is InvocationStatus.Failed


def test_short_invocations_succeed_with_the_local_executor(airflow: StandaloneAirflow) -> None:
    """Before Airflow 3.4 some tasks fail if a deferral can be too short (#71580)."""
    run_id = airflow.trigger("short")
    *_, instances = airflow.watch("short", run_id, timeout=180)
    assert [each["state"] for each in instances] == ["success"] * 8, airflow.log_tail()


def test_sensor_waits_in_the_triggerer(airflow: StandaloneAirflow) -> None:
    run_id = airflow.trigger("sensed")
    seen = {states(airflow, "sensed", run_id).get("wait") for _ in airflow.watch("sensed", run_id, PATIENCE)}
    assert airflow.dag_run("sensed", run_id)["state"] == "success"
    assert "deferred" in seen


def test_pynenc_task_is_awaited_in_the_triggerer(
    airflow: StandaloneAirflow, fleet: Deployment | None, tmp_path: Path
) -> None:
    if fleet is None:
        pytest.skip(OnSQLite().why_not_here() or "")
    dag_id = "on_pynenc"
    run_id = airflow.trigger(dag_id, {"folder": str(tmp_path)})
    until("deferred task", lambda: states(airflow, dag_id, run_id) == {"ask": "deferred"})
    assert executions(tmp_path) == 0
    fleet.start_workers()
    *_, instances = airflow.watch(dag_id, run_id, PATIENCE)
    said = everything_said(airflow, dag_id, run_id, "ask")
    assert [(each["state"], each["try_number"]) for each in instances] == [("success", 1)], said
    assert executions(tmp_path) == 1
    result = airflow.xcom(dag_id, run_id, "ask")
    assert (result["status"], result["outputs"]) == ("Completed", {"answer": 43})
    assert result["invocation_id"] == airflow.xcom(dag_id, run_id, "ask", "invocation_id")
    assert (result["provenance"]["dag_id"], result["provenance"]["run_id"]) == (dag_id, run_id)


@since("3.3", "tasks that start in the triggerer")
def test_actions_without_a_worker(airflow: StandaloneAirflow, server: SystemServer) -> None:
    dag_id = "workerless"
    run_id = airflow.trigger(dag_id)
    # The link exists as soon as the invocation does.
    until(
        "link",
        lambda: (
            states(airflow, dag_id, run_id).get("killed") == "deferred"
            and airflow.links(dag_id, run_id, "killed")["Invocation"]
        ),
    )
    airflow.set_state(dag_id, run_id, "killed", "failed")
    *_, instances = airflow.watch(dag_id, run_id, timeout=180)
    ended = {each["task_id"]: (each["state"], each["try_number"]) for each in instances}
    assert ended == {
        "succeeds": ("success", 1),
        "ticks": ("success", 1),
        "senses": ("success", 1),
        "fails": ("failed", 2),
        "beyond_retry": ("failed", 1),
        "rejected": ("failed", 1),
        "late": ("failed", 1),
        "killed": ("failed", 1),
        "broken": ("failed", 1),
    }

    # No worker ran the task, so it has no process id.
    workers = {each["task_id"]: each["hostname"] for each in instances}
    assert {
        workers[task_id] for task_id in ("succeeds", "ticks", "senses", "fails", "rejected", "killed")
    } == {""}

    # The XComs have the types that a worker would have pushed.
    value = airflow.api.get(f"dags/{dag_id}/dagRuns/{run_id}/taskInstances/succeeds/xcomEntries/return_value")
    result = value.raise_for_status().json()["value"]
    assert isinstance(result, dict)
    assert result["status"] == "Completed"
    assert airflow.xcom(dag_id, run_id, "succeeds", "invocation_id") == result["invocation_id"]
    assert airflow.xcom(dag_id, run_id, "senses") == airflow.xcom(dag_id, run_id, "ticks", "invocation_id")
    assert lines(airflow, dag_id, run_id, "succeeds") == [f"line {number}" for number in range(1, 9)]
    assert airflow.links(dag_id, run_id, "succeeds") == {
        "Invocation": result["url"],
        "Invocation log": f"{result['url']}#log",
    }
    record = server.record(result["invocation_id"])
    provenance = DagRunProvenance.from_environment(record.container_parameters.env_vars)
    assert provenance is not None
    assert provenance.model_dump(mode="json", exclude_none=True) == result["provenance"]
    assert (provenance.dag_id, provenance.run_id, provenance.task_id) == (dag_id, run_id, "succeeds")

    assert "exit code 3: no such topic" in everything_said(airflow, dag_id, run_id, "fails")
    assert "UsageError" in everything_said(airflow, dag_id, run_id, "beyond_retry")
    assert "missing: 'lines'" in everything_said(airflow, dag_id, run_id, "rejected")
    for task_id in ("late", "killed"):
        invocation_id = airflow.xcom(dag_id, run_id, task_id, "invocation_id")
        record = until(
            "cancelled invocation",
            lambda invocation_id=invocation_id: (
                record if (record := server.record(invocation_id)).current.status.is_terminal else None
            ),
        )
        assert record.current.status is InvocationStatus.Cancelled


@since("3.2", "forms made of provider info")
def test_connection_form_of_the_ui_can_test_the_connection(
    airflow: StandaloneAirflow, server: SystemServer
) -> None:
    hooks = airflow.api.get(f"{airflow.url}/ui/connections/hook_meta").raise_for_status().json()
    (form,) = [hook for hook in hooks if hook["connection_type"] == "roboto"]
    assert set(form["extra_fields"]) == {"org_id", "verify", "timeout", "link_base"}
    assert form["standard_fields"]["password"]["title"] == "Access token"
    connection = {
        "connection_id": "tried", "conn_type": "roboto", "host": server.endpoint, "password": server.token,
    }  # fmt: skip
    answer = airflow.api.post("connections/test", json=connection).raise_for_status().json()
    assert answer["status"] is True
    assert server.endpoint in answer["message"]
    answer = airflow.api.post("connections/test", json={**connection, "password": "wr0ng-t0ken"}).json()
    assert answer["status"] is False
    assert "the token is unknown" in answer["message"]


@pytest.fixture(autouse=True, scope="module")
def no_secret_anywhere(airflow: StandaloneAirflow, server: SystemServer) -> Any:
    """Runs last: the token is in no log of Airflow, and nowhere in its database."""
    yield
    token = server.token.encode()
    for path in airflow.home.rglob("*"):
        if path.is_file() and path.suffix != ".generated":
            assert token not in path.read_bytes(), path
