"""The example in dags/: it is read without pynenc, and its tasks do for real what it wants of them."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG
from airflow.utils.file import might_contain_dag_via_default_heuristic

from airflow_invocations.exceptions import InvocationFailedError
from airflow_invocations.operators import InvokeActionOperator

from ..integration.airflow.conftest import Task
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


@pytest.mark.skipif(sys.version_info < (3, 12), reason="pynenc needs Python 3.12")
@pytest.mark.timeout(60)
def test_it_reports_on_real_files(dag: DAG, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(DAGS)
    monkeypatch.setenv("PYTHONPATH", str(DAGS))
    summarise: Any = dag.get_task("summarise")
    table: Any = dag.get_task("table")

    def invoke(file: Path) -> Any:
        arguments = {**summarise.partial_kwargs, "deferrable": False, "poll_interval": 0.1}
        wanted = {name: arguments[name] for name in ("action", "conn_id", "deferrable", "poll_interval")}
        operator = InvokeActionOperator(task_id="summarise", parameters={"file": str(file)}, **wanted)
        return operator.execute(Task().context)

    spec = importlib.util.find_spec("vega_datasets")
    assert spec is not None
    assert spec.origin is not None
    shipped = Path(spec.origin).parent / "_data"
    with OnSQLite("temperature_tasks:app").deploy(tmp_path, workers=True) as deployment:
        monkeypatch.setenv("AIRFLOW_CONN_PYNENC_DEFAULT", json.dumps(dict(deployment.connection)))
        results = [invoke(shipped / name) for name in ("seattle-temps.csv", "sf-temps.csv")]
        with pytest.raises(InvocationFailedError, match="has no column 'temp', only date, precipitation"):
            invoke(shipped / "seattle-weather.csv")
    warmest, other = table.python_callable(results)
    assert (warmest["file"], warmest["rows"]) == ("sf-temps.csv", 8759)
    assert warmest["lowest"] < warmest["mean"] < warmest["highest"]
    assert other["mean"] < warmest["mean"]
