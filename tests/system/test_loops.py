"""Task loops in a real Airflow 3.4: each iteration invokes, a retry adopts, a selective clear repeats."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import httpx
import pytest

from airflow_invocations.demo.standalone import StandaloneAirflow
from airflow_invocations.models import (
    InvocationRecord,
    InvocationStatus,
    TaskInstanceReference,
    task_instance_of,
)
from airflow_invocations.platforms.roboto.client import RobotoSettings
from airflow_invocations.platforms.roboto.platform import RobotoPlatform
from airflow_invocations.tasks.idempotency import TaskInvocationKey

from ..support.airflow_version import since
from .conftest import SystemServer
from .dags.loops import FIRST_ITERATION
from .test_airflow import PATIENCE, until

pytestmark = since("3.4", "task loops")
S = InvocationStatus

Instance = dict[str, Any]


@pytest.mark.timeout(600)
def test_each_iteration_invokes_and_a_retry_adopts(airflow: StandaloneAirflow, server: SystemServer) -> None:
    airflow.wait_for_dag("looped")
    run_id = airflow.trigger("looped")
    *_, instances = airflow.watch("looped", run_id, timeout=4 * PATIENCE)
    assert airflow.dag_run("looped", run_id)["state"] == "success", airflow.log_tail()
    run = airflow.dag_run("looped", run_id)
    everything = invoked(server, "looped", run_id)
    outside = [(asker, record) for asker, record in everything if asker.task_id == "outside"]
    assert sorted(asker.map_index for asker, _ in outside) == [0, 1]
    max_tries = {(one["task_id"], one["map_index"]): one["max_tries"] for one in instances}
    for asker, record in outside:
        # As before 3.4, where mapped tasks have no regions.
        assert (asker.iteration, asker.region_id) == (None, None)
        identity = TaskInvocationKey(
            deployment=airflow.url,
            dag_id="looped",
            run_id=run_id,
            run_after=datetime.fromisoformat(run["run_after"]),
            task_id="outside",
            map_index=asker.map_index,
            incarnation=max_tries["outside", asker.map_index],
        )
        assert record.idempotency_id == identity.idempotency_id(0)
    found = [one for one in everything if one not in outside]
    by_task = {
        shape: [record for asker, record in found if asker.task_id == f"{shape}.ask"]
        for shape in ("worker", "deferred", "workerless", "mapped")
    }
    assert {shape: len(records) for shape, records in by_task.items()} == {
        "worker": 3, "deferred": 3, "workerless": 3, "mapped": 6
    }  # fmt: skip
    assert {record.current.status for _, record in found} == {S.Completed}
    for shape in ("worker", "deferred", "mapped"):
        said = {str(record.parameter_values["who"]) for record in by_task[shape]}
        assert len(said) == len(by_task[shape]), said
    asking = [one for one in instances if one["task_id"].endswith(".ask")]
    assert len(asking) == len(found)
    for instance in asking:
        ((asker, record),) = [one for one in found if is_of(one[0], instance)]
        assert asker.iteration == instance["loop_iteration"]["iteration"]
        assert instance["try_number"] >= (2 if instance["task_id"] == "worker.ask" else 1)
        assert asker.try_number == 1
        assert xcom(airflow, instance, "invocation_id") == record.invocation_id
        result = xcom(airflow, instance, "return_value")
        assert (result["invocation_id"], result["status"]) == (record.invocation_id, "Completed")
        assert (result["provenance"]["iteration"], result["provenance"]["region_index"]) == (
            asker.iteration, instance["region_index"],
        )  # fmt: skip
        assert links(airflow, instance)["Invocation"] == result["url"]
    for iteration in {asker.iteration for asker, _ in found}:
        wanted = {one.invocation_id for who, one in found if who.iteration == iteration}
        assert {
            one.invocation_id
            for shape in by_task
            for _, one in invoked(server, "looped", run_id, f"{shape}.ask", iteration)
        } == wanted


@pytest.mark.timeout(600)
@pytest.mark.parametrize("shape", ["long_deferred", "long_worker"])
@pytest.mark.parametrize("cleared", ["the gate", "the task and the gate"])
def test_selective_clear_invokes_again_and_cancels_the_replaced_invocation(
    shape: str, cleared: str, airflow: StandaloneAirflow, server: SystemServer
) -> None:
    airflow.wait_for_dag("looped_long")
    run_id = airflow.trigger("looped_long")
    waiting = "deferred" if shape == "long_deferred" else "running"

    def second() -> tuple[Instance, InvocationRecord] | None:
        """Return the endless invocation of the second iteration, once its lines are in the task log.

        If a task is cleared or ended before a triggerer has started its trigger, Airflow drops the trigger
        without a notice. Then only a later try or a reconciliation can cancel the invocation.
        """
        for instance in airflow.task_instances("looped_long", run_id):
            if instance["task_id"] == f"{shape}.ask" and instance["region_index"] == FIRST_ITERATION + 1:
                for asker, record in invoked(server, "looped_long", run_id):
                    if is_of(asker, instance) and record.current.status is S.Processing:
                        is_waiting = instance["state"] == waiting and shows_lines(airflow, instance)
                        return (instance, record) if is_waiting else None
        return None

    instance, replaced = until("waiting second iteration", second)
    firsts = [
        one
        for one in airflow.task_instances("looped_long", run_id)
        if one["region_id"] == instance["region_id"] and one["region_index"] == FIRST_ITERATION
    ]
    suffixes = ("__loop_gate",) if cleared == "the gate" else ("__loop_gate", ".ask")
    clear(airflow, run_id, [one for one in firsts if one["task_id"].endswith(suffixes)])

    def ended() -> InvocationRecord | None:
        record = server.record(replaced.invocation_id)
        return record if record.current.status.is_terminal else None

    assert until("end of what the clear replaced", ended).current.status is S.Cancelled
    again, fresh = until("waiting second iteration", second)
    assert again["region_id"] != instance["region_id"]
    assert fresh.invocation_id != replaced.invocation_id
    active = [
        record.invocation_id
        for asker, record in invoked(server, "looped_long", run_id)
        if asker.task_id == f"{shape}.ask" and not record.current.status.is_terminal
    ]
    assert active == [fresh.invocation_id]
    airflow.api.patch(f"dags/looped_long/dagRuns/{run_id}", json={"state": "failed"}).raise_for_status()
    until("cancelled run", lambda: server.record(fresh.invocation_id).current.status is S.Cancelled)


def invoked(
    server: SystemServer, dag_id: str, run_id: str, task_id: str | None = None, iteration: int | None = None
) -> list[tuple[TaskInstanceReference, InvocationRecord]]:
    """Return what a DAG run, or one iteration of its task, has invoked, with the task instances."""

    async def find() -> list[InvocationRecord]:
        async with RobotoPlatform(RobotoSettings(server.endpoint, server.token)) as platform:
            return await platform.find(dag_id, run_id, task_id, None, iteration=iteration)

    records = asyncio.run(find())
    askers = [task_instance_of(record.provenance.source.source_id) for record in records]
    return [(asker, record) for asker, record in zip(askers, records, strict=True) if asker is not None]


def is_of(asker: TaskInstanceReference, instance: Mapping[str, Any]) -> bool:
    mine = (asker.task_id, asker.map_index, asker.region_id, asker.region_index)
    return mine == tuple(instance[name] for name in ("task_id", "map_index", "region_id", "region_index"))


def xcom(airflow: StandaloneAirflow, instance: Mapping[str, Any], key: str) -> Any:
    return address(airflow, instance, f"xcomEntries/{key}", {"deserialize": "true"})["value"]


def links(airflow: StandaloneAirflow, instance: Mapping[str, Any]) -> dict[str, str]:
    found: dict[str, str] = address(airflow, instance, "links")["extra_links"]
    return found


def shows_lines(airflow: StandaloneAirflow, instance: Mapping[str, Any]) -> bool:
    answer = ask(airflow, instance, f"logs/{instance['try_number']}")
    if answer.status_code != httpx.codes.OK:  # cleared since it was listed
        return False
    return any(str(entry["event"]).startswith("line ") for entry in answer.json()["content"])


def address(
    airflow: StandaloneAirflow,
    instance: Mapping[str, Any],
    what: str,
    query: Mapping[str, str] | None = None,
) -> Any:
    answer = ask(airflow, instance, what, query)
    assert answer.status_code == httpx.codes.OK, answer.text
    return answer.json()


def ask(
    airflow: StandaloneAirflow,
    instance: Mapping[str, Any],
    what: str,
    query: Mapping[str, str] | None = None,
) -> httpx.Response:
    region = {name: instance[name] for name in ("region_id", "region_index", "map_index")}
    if region["map_index"] < 0:
        del region["map_index"]
    task = f"dags/{instance['dag_id']}/dagRuns/{instance['dag_run_id']}/taskInstances/{instance['task_id']}"
    headers = {"Accept": "application/json"}
    return airflow.api.get(f"{task}/{what}", params={**region, **(query or {})}, headers=headers)


def clear(airflow: StandaloneAirflow, run_id: str, instances: list[Instance]) -> None:
    """Clear these executions, and the iterations after those whose gate is among them."""
    body = {
        "dry_run": False,
        "only_failed": False,
        "dag_run_id": run_id,
        "task_instance_ids": [one["id"] for one in instances],
        "include_later_loop_iterations": True,
    }
    airflow.api.post("dags/looped_long/clearTaskInstances", json=body).raise_for_status()
