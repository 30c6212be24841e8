"""Two DAGs with the same invocations, with and without workers; the environment sets the number of tasks."""

from __future__ import annotations

import os

from airflow.sdk import DAG

from airflow_invocations.operators import InvokeActionOperator

TASKS = int(os.environ["WORKERLESS_TASKS"])

for dag_id, options in (
    ("with_workers", {"deferrable": True}),
    ("without_workers", {"start_from_trigger": True}),
):
    with DAG(dag_id, schedule=None, max_active_tasks=TASKS) as dag:
        for number in range(TASKS):
            InvokeActionOperator(
                task_id=f"ask_{number}", action="nothing", poll_interval=1.0, stream_logs=False, **options
            )
    globals()[dag_id] = dag
