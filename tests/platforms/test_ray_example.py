"""The example in dags/: it is read without Ray, and its job runs on a real node."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
from airflow.sdk import DAG

from ..integration.airflow.conftest import database, no_floor  # noqa: F401  these are fixtures
from ..integration.airflow.dag_runs import results, run
from ..integration.docs.blocks import blocks
from ..support.ray_node import shared_node

DAGS = Path(__file__).parents[2] / "dags"
JOB = DAGS / "quantiles_job.py"


@pytest.fixture
def dag(monkeypatch: pytest.MonkeyPatch) -> DAG:
    """The example, read where Ray isn't installed."""
    spec = importlib.util.spec_from_file_location("temperature_quantiles", DAGS / "temperature_quantiles.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setitem(sys.modules, "temperature_quantiles", module)
    spec.loader.exec_module(module)
    dag: DAG = module.compute.dag
    return dag


def the_pages_catalogue() -> dict[str, dict[str, object]]:
    """The catalogue of the page about Ray, for a job that is in the folder of this repository."""
    (text,) = (block.text for block in blocks() if block.title == "catalogue.json")
    catalogue: dict[str, dict[str, object]] = json.loads(text)
    entry = catalogue["temperature_quantiles"]
    assert entry.pop("runtime_env")
    assert entry["entrypoint"] == f"python {JOB.name}"
    entry["entrypoint"] = f"cd '{DAGS}' && {entry['entrypoint']}"
    return catalogue


@pytest.mark.usefixtures("database", "no_floor")
def test_it_computes_quantiles_of_real_files(dag: DAG, monkeypatch: pytest.MonkeyPatch) -> None:
    connection = {
        "conn_type": "ray",
        "host": shared_node(),
        "extra": {"actions": the_pages_catalogue()},
    }
    monkeypatch.setenv("AIRFLOW_CONN_RAY_DEFAULT", json.dumps(connection))
    done = run(dag, {"files": ["seattle-temps.csv", "sf-temps.csv"], "parts": 2})
    assert done.state == "success"
    warmest, other = results(done, "table")
    assert (warmest["file"], warmest["readings"]) == ("sf-temps.csv", 8759)
    assert warmest["quantiles"] > other["quantiles"]
