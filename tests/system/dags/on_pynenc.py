"""A DAG of the system test whose task waits in the triggerer for a pynenc task."""

from __future__ import annotations

from airflow.sdk import DAG

from airflow_invocations.operators import InvokeActionOperator

with DAG("on_pynenc", schedule=None):
    InvokeActionOperator(
        task_id="ask",
        action="tests.platforms.fleet_tasks.completes",
        parameters={"folder": "{{ dag_run.conf['folder'] }}", "answer": 43},
        conn_id="fleet",
        deferrable=True,
        poll_interval=0.5,
    )
