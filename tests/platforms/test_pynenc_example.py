"""The example in dags/: it is read without pynenc, and its tasks do for real what it wants of them."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
from airflow.sdk import DAG
from airflow.utils.file import might_contain_dag_via_default_heuristic

from airflow_invocations.hooks import PynencHook

from ..integration.airflow.conftest import database, no_floor  # noqa: F401  these are fixtures
from ..integration.airflow.dag_runs import results, run
from ..support.with_pynenc import with_pynenc
from .on_pynenc import OnSQLite

DAGS = Path(__file__).parents[2] / "dags"


@pytest.fixture
def dag() -> DAG:
    """The example, read where pynenc isn't installed."""
    spec = importlib.util.spec_from_file_location("temperature_report", DAGS / "temperature_report.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "pynenc", None)
        patch.setitem(sys.modules, "temperature_report", module)
        spec.loader.exec_module(module)
    dag: DAG = module.summarise.dag
    return dag


def test_airflow_reads_the_dag_and_leaves_the_app_alone() -> None:
    assert might_contain_dag_via_default_heuristic(str(DAGS / "temperature_report.py"))
    assert not might_contain_dag_via_default_heuristic(str(DAGS / "temperature_tasks.py"))


@with_pynenc
@pytest.mark.usefixtures("database", "no_floor")
def test_it_reports_on_real_files(dag: DAG, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(DAGS)
    monkeypatch.setenv("PYTHONPATH", str(DAGS))
    with OnSQLite("temperature_tasks:app").deploy(tmp_path, workers=True) as deployment:
        monkeypatch.setenv("AIRFLOW_CONN_PYNENC_DEFAULT", json.dumps(dict(deployment.connection)))
        done = run(dag, {"files": ["seattle-temps.csv", "sf-temps.csv"]})
        failed = run(dag, {"files": ["seattle-weather.csv"]})
        (why,) = PynencHook().find("temperature_report", failed.run_id)
    assert (done.state, failed.state) == ("success", "failed")
    warmest, other = results(done, "table")
    assert (warmest["file"], warmest["rows"]) == ("sf-temps.csv", 8759)
    assert warmest["lowest"] < warmest["mean"] < warmest["highest"]
    assert other["mean"] < warmest["mean"]
    assert "has no column 'temp', only date, precipitation" in str(why.current.detail)
