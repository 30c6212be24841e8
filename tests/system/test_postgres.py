"""A real Airflow on PostgreSQL, with actions that write characters that its database can't store."""

from __future__ import annotations

import shutil
from pathlib import Path

from airflow_invocations.demo.standalone import StandaloneAirflow

from ..support.airflow_version import since
from ..support.metadata_database import empty_postgres
from .conftest import HERE, SystemServer
from .test_airflow import everything_said

LINE = "RIFF\ufffd"


@since("3.2", "tasks that start in the triggerer")
def test_unstorable_characters_fail_no_task_and_no_triggerer(server: SystemServer, tmp_path: Path) -> None:
    (tmp_path / "dags").mkdir()
    shutil.copy(HERE / "dags" / "odd_bytes.py", tmp_path / "dags")
    connections = {
        "roboto_default": {"conn_type": "roboto", "host": server.endpoint, "password": server.token}
    }
    with (
        empty_postgres() as database,
        StandaloneAirflow(
            tmp_path / "home", tmp_path / "dags", connections, {"database.sql_alchemy_conn": database}
        ) as airflow,
    ):
        airflow.start()
        airflow.wait_for_dag("odd_bytes")
        run_id = airflow.trigger("odd_bytes")
        ended = {
            instance["task_id"]: (instance["state"], instance["try_number"])
            for instances in airflow.watch("odd_bytes", run_id, timeout=240)
            for instance in instances
        }
        assert ended == {
            "waits_for_odd_bytes": ("success", 1),
            "waits_for_tick": ("success", 1),
            # Exit code 65 isn't retried, which a worker decides; the event contains the last lines.
            "fails_without_a_worker": ("failed", 1),
            "as_xcom": ("success", 1),
        }
        assert airflow.xcom("odd_bytes", run_id, "as_xcom")["lines"] == [LINE, LINE]
        health = airflow.api.get("monitor/health").raise_for_status().json()
        assert health["triggerer"]["status"] == "healthy"
        log = airflow.log_file.read_text(encoding="utf-8", errors="replace")
        for trouble in ("UntranslatableCharacter", "triggerer exited", "cannot be converted to text"):
            assert trouble not in log
        assert "exit code 65" in everything_said(airflow, "odd_bytes", run_id, "fails_without_a_worker")
