"""OpenLineage, through its real provider into a file: the action's parent run, datasets, invocation."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from airflow_invocations.hooks import RobotoHook
from airflow_invocations.models import LogProcess

from .conftest import dataset, script

PRINTS_ITS_PARENTS = 'echo "$OPENLINEAGE_PARENT_ID"; echo "$OPENLINEAGE_ROOT_PARENT_ID"; exit '


def airflow(environment: dict[str, str], *arguments: str) -> str:
    """Run one of Airflow's commands; what it has printed."""
    command = [sys.executable, "-m", "airflow", *arguments]
    ended = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=200
    )
    return ended.stdout


@pytest.fixture
def datasets(server: Any) -> tuple[str, str]:
    """One to read, and one to write."""
    return dataset(server), dataset(server)


@pytest.fixture
def events(hook: RobotoHook, datasets: tuple[str, str], tmp_path: Path) -> list[dict[str, Any]]:
    """What OpenLineage's provider has written about one run of the DAG."""
    dags = tmp_path / "dags"
    dags.mkdir()
    shutil.copy(Path(__file__).with_name("lineage_dag.py"), dags)
    written = tmp_path / "lineage.jsonl"
    transport = {"type": "file", "log_file_path": str(written), "append": True}
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW__")},
        "AIRFLOW_HOME": str(tmp_path / "home"),
        "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__OPENLINEAGE__TRANSPORT": json.dumps(transport),
        "AIRFLOW__OPENLINEAGE__NAMESPACE": "here",
        "DATASET_READ": datasets[0],
        "DATASET_WRITTEN": datasets[1],
        "ACTION_GOOD": script(hook, f"{PRINTS_ITS_PARENTS} 0"),
        "ACTION_BAD": script(hook, f"{PRINTS_ITS_PARENTS} 3"),
    }
    said = airflow(environment, "db", "migrate") + airflow(environment, "dags", "test", "lineage")
    assert written.exists(), said
    return [json.loads(line) for line in written.read_text().splitlines()]


def named(*ids: str) -> list[tuple[str, str]]:
    return [("invocation-dataset://roboto_default", dataset_id) for dataset_id in ids]


def names(event: dict[str, Any]) -> list[list[tuple[str, str]]]:
    """Namespaces and names of its inputs, and of its outputs."""
    return [[(each["namespace"], each["name"]) for each in event[side]] for side in ("inputs", "outputs")]


def _lines_of_the_action(hook: RobotoHook, invocation_id: str) -> list[str]:
    """What the action itself wrote, without what the server says of its input."""
    return [line.log for line in hook.logs(invocation_id) if line.process is LogProcess.Action]


def test_lineage_knows_the_invocation_and_its_datasets_and_the_action_knows_its_parent(
    hook: RobotoHook, datasets: tuple[str, str], events: list[dict[str, Any]]
) -> None:
    read, written = datasets
    by_task = {
        task_id: [event for event in events if event["job"]["name"] == f"lineage.{task_id}"]
        for task_id in ("good", "bad")
    }
    (complete,) = [event for event in by_task["good"] if event["eventType"] == "COMPLETE"]
    (failed,) = [event for event in by_task["bad"] if event["eventType"] == "FAIL"]
    assert names(complete) == [named(read), named(written)]
    assert names(failed) == [named(read), named()]
    root = next(event["run"]["runId"] for event in events if event["job"]["name"] == "lineage")
    for event in (complete, failed):
        told = event["run"]["facets"]["externalQuery"]
        lines = _lines_of_the_action(hook, told["externalQueryId"])
        assert lines[0] == f"here/{event['job']['name']}/{event['run']['runId']}"
        assert lines[1] == f"here/lineage/{root}"
        assert told["source"] == hook.get_conn().where
        # The parents are told as part of who asked, not as something that the DAG's author has set.
        record = hook.get(told["externalQueryId"])
        assert (record.container_parameters.env_vars or {})["OPENLINEAGE_PARENT_ID"] == lines[0]
