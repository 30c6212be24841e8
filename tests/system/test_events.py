"""Terminal invocations start DAG runs in a real Airflow, also when the triggerer dies."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import psutil
import pytest

from airflow_invocations.demo.session import Session
from airflow_invocations.demo.standalone import StandaloneAirflow
from airflow_invocations.models import task_instance_of
from airflow_invocations.triggers._event_delivery import CURSOR_KEY

from .conftest import SystemServer
from .test_airflow import until

#: Longest time for the first request of a triggerer, in seconds: it starts an API server inside the
#: triggerer, which takes 5 s on an idle machine and 85 s on a very busy one.
FIRST_REQUEST = 240.0


@pytest.fixture(scope="session")
def second_triggerer(airflow: StandaloneAirflow) -> Iterator[Session]:
    """Return a triggerer to start after the first one; it runs until Airflow ends."""
    folder = airflow.home / "second_triggerer"
    folder.mkdir()
    command = [sys.executable, "-m", "airflow", "triggerer"]
    session = Session(command, folder, folder / "triggerer.log", airflow._session._environment)
    yield session
    session.stop(10)


def command_in(process: psutil.Process, session: int) -> str:
    """Return the command line of a session's process; empty for other and for ending processes."""
    try:
        return " ".join(process.cmdline()) if os.getsid(process.pid) == session else ""
    except (psutil.Error, ProcessLookupError):
        return ""


def kill_triggerer(airflow: StandaloneAirflow) -> None:
    """Kill the triggerer and its child processes, as a crash of its machine does."""
    session = airflow._session.id
    (triggerer,) = [
        process
        for process in psutil.process_iter()
        if "triggerer" in command_in(process, session)
        and (parent := process.parent()) is not None
        and "triggerer" not in command_in(parent, session)
    ]
    for process in [triggerer, *triggerer.children(recursive=True)]:
        process.kill()


def invoke(server: SystemServer, count: int) -> set[str]:
    """Start invocations without Airflow; return their ids."""
    body = {
        "data_source_id": "__UNSPECIFIED_DATA_SOURCE__", "data_source_type": "Dataset", "input_data": [],
        "invocation_source": "Manual",
    }  # fmt: skip
    headers = {"Authorization": f"Bearer {server.token}"}
    url = f"{server.endpoint}/v1/actions/tick/invoke"
    with httpx.Client(headers=headers, trust_env=False) as client:
        answers = [client.post(url, json=body).raise_for_status() for _ in range(count)]
    return {answer.json()["data"]["invocation_id"] for answer in answers}


def runs(airflow: StandaloneAirflow, dag_id: str) -> list[str]:
    return [run["dag_run_id"] for run in airflow._data(f"dags/{dag_id}/dagRuns?limit=500")["dag_runs"]]


def handed_over(airflow: StandaloneAirflow, run_id: str) -> list[str]:
    """Return the ids of the invocations in a run's payloads."""
    found = airflow._data(f"dags/on_ticks/dagRuns/{run_id}/upstreamAssetEvents")["asset_events"]
    return [one["invocation_id"] for event in found for one in event["extra"]["payload"]["invocations"]]


def taken(airflow: StandaloneAirflow) -> list[dict[str, Any]]:
    """Return the invocations that runs have acknowledged."""
    results = [airflow.xcom("on_ticks", run_id, "take_over") for run_id in runs(airflow, "on_ticks")]
    return [one for result in results for one in result or []]


def ids(invocations: list[dict[str, Any]]) -> set[str]:
    return {one["invocation_id"] for one in invocations}


def cursor(airflow: StandaloneAirflow) -> Any:
    """Return the cursor that the watcher has stored in the asset's state; None: none yet."""
    (asset,) = airflow._data("assets?name_pattern=ticks")["assets"]
    answer = airflow.api.get(f"assets/{asset['id']}/state-store/{CURSOR_KEY}")
    return answer.json() if answer.is_success else None


def forget_state(airflow: StandaloneAirflow) -> None:
    """Delete the state of the asset of `on_ticks`, as the scheduler does once no DAG file mentions it."""
    (asset,) = airflow._data("assets?name_pattern=ticks")["assets"]
    airflow.api.delete(f"assets/{asset['id']}/state-store").raise_for_status()
    assert cursor(airflow) is None


def test_dag_starts_when_an_action_has_written_to_its_dataset(airflow: StandaloneAirflow) -> None:
    run_id = airflow.trigger("writes")
    list(airflow.watch("writes", run_id, timeout=90))
    result = airflow.xcom("writes", run_id, "write")
    (read,) = until("run of the reader", lambda: runs(airflow, "reads"), FIRST_REQUEST)
    (extra,) = until("what it has read", lambda: airflow.xcom("reads", read, "read"))
    assert extra == {name: result[name] for name in ("invocation_id", "url", "action", "digest")}


def test_terminal_invocation_starts_a_dag_once_when_the_triggerer_dies(
    airflow: StandaloneAirflow, server: SystemServer, second_triggerer: Session
) -> None:
    until("place where the watcher begins", lambda: cursor(airflow), FIRST_REQUEST)
    asked = invoke(server, 10)
    until("run", lambda: runs(airflow, "on_ticks"), FIRST_REQUEST)
    # Some are delivered, some are in transit, and some end while no trigger runs.
    asked |= invoke(server, 3)
    kill_triggerer(airflow)
    asked |= invoke(server, 7)
    second_triggerer.start(10)
    until("every end in a run", lambda: asked <= ids(taken(airflow)), FIRST_REQUEST)
    # When a DAG file is missing for long, Airflow deletes its asset's state and ends the trigger.
    second_triggerer.stop(30)
    forget_state(airflow)
    asked |= invoke(server, 5)
    second_triggerer.start(10)
    until(
        "every end in a run, also after the state was gone",
        lambda: asked <= ids(taken(airflow)),
        FIRST_REQUEST,
    )
    found = taken(airflow)
    assert len(found) == len(ids(found)), "some were taken over twice"
    # DAGs of other tests invoke the same action, which starts this DAG too.
    askers = [task_instance_of(one["source_id"]) for one in found]
    assert "on_ticks" not in {asker.dag_id for asker in askers if asker}, "a DAG has started itself"
    # Runs dropped the events that were delivered twice, so none is left for another run.
    assert asked <= {one for run_id in runs(airflow, "on_ticks") for one in handed_over(airflow, run_id)}
