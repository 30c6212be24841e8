"""Compare tasks that start and end in the triggerer with tasks that use workers, in tasks per second.

`python -m tests.benchmarks.workerless [--tasks 500] [--quick]` uses `airflow standalone`, the LocalExecutor
and SQLite, and the local server. One DAG run has `--tasks` unmapped tasks, each of which invokes an action
that does nothing; first with workers (deferrable, so that a worker finishes short invocations), then
without.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from datetime import datetime
from pathlib import Path

from airflow_invocations.demo.standalone import StandaloneAirflow

from ..system.conftest import SystemServer
from .figures import Figure, table

ACTION = {"name": "nothing", "container_parameters": {"command": ["true"]}}

#: Required ratio to the rate with workers.
BOUND = 1.0

#: Longest duration of one task on a busy machine, in seconds.
PATIENCE = 10.0


def measure(tasks: int) -> Figure:
    """Run both DAGs in turn; return tasks per second from each run's start to its end."""
    os.environ["WORKERLESS_TASKS"] = str(tasks)
    with tempfile.TemporaryDirectory(prefix="workerless-benchmark-") as folder:
        dags, actions = Path(folder) / "dags", Path(folder) / "actions"
        dags.mkdir()
        shutil.copy(Path(__file__).with_name("workerless_dag.py"), dags)
        (actions / "nothing").mkdir(parents=True)
        (actions / "nothing" / "action.json").write_text(json.dumps(ACTION))
        with SystemServer(Path(folder) / "server", actions, slots=8) as server:
            server.start()
            connection = {"conn_type": "roboto", "host": server.endpoint, "password": server.token}
            home = Path(folder) / "home"
            with StandaloneAirflow(home, dags, {"roboto_default": connection}) as airflow:
                airflow.start()
                rates = {
                    dag_id: rate(airflow, dag_id, tasks) for dag_id in ("with_workers", "without_workers")
                }
    ratio = rates["without_workers"] / rates["with_workers"]
    return Figure(
        f"{tasks} unmapped tasks without workers",
        f"{rates['without_workers']:.2f} tasks/s",
        f"with workers: {rates['with_workers']:.2f} tasks/s",
        f"{ratio:.1f} (at least {BOUND:g})",
        ratio >= BOUND,
    )


def rate(airflow: StandaloneAirflow, dag_id: str, tasks: int) -> float:
    """Return the tasks per second of one DAG run. Raises AssertionError if a task didn't succeed."""
    airflow.wait_for_dag(dag_id, timeout=120)
    run_id = airflow.trigger(dag_id)
    *_, instances = airflow.watch(dag_id, run_id, timeout=120 + PATIENCE * tasks)
    run = airflow.dag_run(dag_id, run_id)
    assert run["state"] == "success", [each for each in instances if each["state"] != "success"][:3]
    began, ended = (datetime.fromisoformat(run[name]) for name in ("start_date", "end_date"))
    return tasks / (ended - began).total_seconds()


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=500)
    parser.add_argument("--quick", action="store_true", help="a few tasks; how fast they are isn't judged")
    arguments = parser.parse_args()
    figure = measure(8 if arguments.quick else arguments.tasks)
    print(table([figure]))
    return 0 if figure.ok or arguments.quick else 1


if __name__ == "__main__":
    sys.exit(main())
