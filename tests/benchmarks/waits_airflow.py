"""Measure the time from an invocation's end to its task's success in a real Airflow.

The setup is `airflow standalone` with the LocalExecutor and SQLite, and the local server, which pushes. The
limit is a trigger that fires at a fixed time. One DAG run has both kinds of tasks; they alternate, so that
they don't disturb each other and both have the same load.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from datetime import datetime
from pathlib import Path

from airflow_invocations.demo.standalone import StandaloneAirflow
from airflow_invocations.models import InvocationStatus

from ..system.conftest import SystemServer
from .figures import Figure, Times

ROOT = Path(__file__).parents[2]
DAG_ID = "waits"

#: Ends at the time of its parameter, in seconds since 1970.
ACTION = {
    "name": "until",
    "parameters": [{"name": "moment", "required": True}],
    "container_parameters": {
        "command": [
            *("sh", "-c"),
            'sleep "$(date +%s.%N | awk "{ d = $ROBOTO_PARAM_moment - \\$1; print (d > 0 ? d : 0) }")"',
        ]
    },
}

#: Time until all tasks are deferred, in seconds; longer on a busy machine.
HEAD_STARTS = (75.0, 150.0, 300.0)

#: Seconds between the ends of two invocations; not an integer, because Airflow's loops of mostly one second
#: would else always be in the same phase.
APART = 6.37

#: Largest ratio to the time of the trigger that fires by itself.
BOUND = 1.3


def measure_airflow() -> list[Figure]:
    """Run the DAG once; return the medians."""
    # The triggerer imports the trigger that fires by itself from this repository.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    with tempfile.TemporaryDirectory(prefix="waits-benchmark-") as folder:
        dags, actions = Path(folder) / "dags", Path(folder) / "actions"
        dags.mkdir()
        shutil.copy(Path(__file__).with_name("waits_dag.py"), dags)
        (actions / "until").mkdir(parents=True)
        (actions / "until" / "action.json").write_text(json.dumps(ACTION))
        with SystemServer(Path(folder) / "server", actions, slots=16) as server:
            server.start()
            connection = {"conn_type": "roboto", "host": server.endpoint, "password": server.token}
            home = Path(folder) / "home"
            with StandaloneAirflow(home, dags, {"roboto_default": connection}) as airflow:
                airflow.start()
                airflow.wait_for_dag(DAG_ID)
                delays = run_until_all_waited(airflow, server)
    invoked, by_itself = (Times.of(each) for each in delays)
    ratio = invoked.median / by_itself.median
    return [
        Figure(
            "an invocation's end to its task's success, in a real Airflow",
            f"{invoked} ({len(delays[0])} tasks)",
            f"{by_itself}: a trigger that fires by itself",
            f"{ratio:.2f} (at most {BOUND})",
            ratio <= BOUND,
        )
    ]


def run_until_all_waited(airflow: StandaloneAirflow, server: SystemServer) -> tuple[list[float], list[float]]:
    """Return the seconds from each end to its task's success, for the first run with all tasks deferred."""
    for head_start in HEAD_STARTS:
        if delays := run_once(airflow, server, head_start):
            return delays
    raise AssertionError(f"the tasks weren't deferred within {HEAD_STARTS[-1]} s\n{airflow.log_tail()}")


def run_once(
    airflow: StandaloneAirflow, server: SystemServer, head_start: float
) -> tuple[list[float], list[float]] | None:
    """Return the seconds from each end to the task's success: of invocations, and of triggers by themselves.

    None if one of them ended before its task was deferred.
    """
    first = time.time() + head_start
    run_id = airflow.trigger(DAG_ID, {"first": first, "apart": APART})
    time.sleep(first - time.time() - 2)
    states = {each["task_id"]: each["state"] for each in airflow.task_instances(DAG_ID, run_id)}
    *_, instances = airflow.watch(DAG_ID, run_id, timeout=300 + head_start + APART * len(states) / 2)
    for each in instances:
        if each["state"] != "success":
            log = airflow.task_log(DAG_ID, run_id, each["task_id"], each["try_number"])
            raise AssertionError("\n".join([f"{each}", *(f"{line}" for line in log[-20:])]))
    if set(states.values()) != {"deferred"}:
        return None
    invoked, by_itself = [], []
    for instance in instances:
        succeeded = datetime.fromisoformat(instance["end_date"]).timestamp()
        result = airflow.xcom(DAG_ID, run_id, instance["task_id"])
        if instance["task_id"].startswith("by_itself"):
            by_itself.append(succeeded - result)
        else:
            record = server.record(result["invocation_id"])
            assert record.current.status is InvocationStatus.Completed
            invoked.append(succeeded - record.current.timestamp.timestamp())
    return invoked, by_itself
