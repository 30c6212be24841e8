"""Create deferred task instances with their triggers in the database of Airflow's configuration.

Run as a script, with the arguments of one trigger a line on stdin.
"""

from __future__ import annotations

import datetime
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

DAG_ID, RUN_ID, TASK_ID = "waits", "run", "wait"
CLASSPATH = "airflow_invocations.triggers.invocation.InvocationTrigger"

#: Rows per insert.
BATCH = 1000

_DAG_FILE = f"""
from airflow.sdk import DAG
from airflow.sdk.bases.operator import BaseOperator

with DAG({DAG_ID!r}, schedule=None):
    BaseOperator(task_id={TASK_ID!r})
"""


def make_dag_run() -> None:
    """Create the DAG and one run, whose task instance is the template for all."""
    from airflow.dag_processing.bundles.manager import DagBundlesManager
    from airflow.dag_processing.dagbag import DagBag, sync_bag_to_db
    from airflow.models.dagbag import DBDagBag
    from airflow.utils.session import create_session
    from airflow.utils.state import DagRunState
    from airflow.utils.types import DagRunTriggeredByType, DagRunType

    DagBundlesManager().sync_bundles_to_db()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "waits.py").write_text(_DAG_FILE)
        sync_bag_to_db(DagBag(dag_folder=folder), "dags-folder", None)
    now = datetime.datetime.now(datetime.UTC)
    with create_session() as session:
        dag = DBDagBag().get_latest_version_of_dag(DAG_ID, session=session)
        assert dag is not None
        dag.create_dagrun(
            run_id=RUN_ID,
            logical_date=now,
            data_interval=(now, now),
            run_after=now,
            run_type=DagRunType.MANUAL,
            triggered_by=DagRunTriggeredByType.TEST,
            state=DagRunState.RUNNING,
            session=session,
        )


def defer(arguments: list[dict[str, Any]]) -> None:
    """Create a deferred task instance for each trigger, with the trigger's number as map index."""
    import sqlalchemy as sa
    from airflow.models.taskinstance import TaskInstance
    from airflow.models.trigger import Trigger
    from airflow.utils.session import create_session
    from uuid6 import uuid7

    instances = TaskInstance.__table__
    with create_session() as session:
        pattern = dict(session.execute(sa.select(instances)).one()._mapping)
        session.execute(instances.delete())
        now = datetime.datetime.now(datetime.UTC)
        pattern |= {
            "state": "deferred",
            "try_number": 1,
            "start_date": now,
            "next_method": "execute_complete",
            "next_kwargs": {},
        }
        for begin in range(0, len(arguments), BATCH):
            triggers = [Trigger(CLASSPATH, each) for each in arguments[begin : begin + BATCH]]
            session.add_all(triggers)
            session.flush()
            session.execute(
                instances.insert(),
                [
                    {**pattern, "id": uuid7(), "map_index": number, "trigger_id": trigger.id}
                    for number, trigger in enumerate(triggers, begin)
                ],
            )


if __name__ == "__main__":
    os.environ["_AIRFLOW_PROCESS_CONTEXT"] = "server"
    make_dag_run()
    defer([json.loads(line) for line in sys.stdin])
