"""DAGs of the system test: tasks that run until they are ended, failing tasks, and very short ones."""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import DAG

from airflow_invocations.operators import InvokeActionOperator
from airflow_invocations.sensors import InvocationSensor

with DAG("killed", schedule=None):
    for deferrable in (True, False):
        InvokeActionOperator(
            task_id="deferred" if deferrable else "in_a_worker",
            action="count",
            parameters={"lines": 3000},
            deferrable=deferrable,
            poll_interval=0.5,
        )

with DAG("refused_and_failed", schedule=None, default_args={"retries": 2}):
    InvokeActionOperator(task_id="unknown_action", action="no-such-action")
    InvokeActionOperator(task_id="missing_parameter", action="count")
    InvokeActionOperator(task_id="no_connection", action="count", conn_id="no_such_connection", retries=0)
    InvokeActionOperator(task_id="fails", action="fail", deferrable=True, poll_interval=0.5, retries=0)

with DAG("workerless", schedule=None):
    InvokeActionOperator(
        task_id="succeeds",
        action="count",
        parameters={"lines": "{{ params.lines }}"},
        start_from_trigger=True,
        params={"lines": 8},
    )
    ticks = InvokeActionOperator(task_id="ticks", action="tick", wait=False, start_from_trigger=True)
    ticks >> InvocationSensor(task_id="senses", action="tick", start_from_trigger=True)
    InvokeActionOperator(
        task_id="fails", action="fail", retries=1, retry_delay=timedelta(seconds=1), start_from_trigger=True
    )
    InvokeActionOperator(task_id="beyond_retry", action="misuse", retries=2, start_from_trigger=True)
    InvokeActionOperator(task_id="rejected", action="count", start_from_trigger=True)
    InvokeActionOperator(
        task_id="late",
        action="count",
        parameters={"lines": 3000},
        execution_timeout=timedelta(seconds=10),
        start_from_trigger=True,
    )
    InvokeActionOperator(
        task_id="killed", action="count", parameters={"lines": 3000}, start_from_trigger=True
    )
    InvokeActionOperator(
        task_id="broken",
        action="count",
        parameters={"lines": "{{ dag_run.no_such_thing.at_all }}"},
        start_from_trigger=True,
    )

with DAG("short", schedule=None, max_active_tasks=16):
    InvokeActionOperator.partial(task_id="ask", action="count", deferrable=True, poll_interval=0.5).expand(
        parameters=[{"lines": lines} for lines in (1, 5, 8, 10, 12, 14, 16, 20)]
    )

with DAG("sensed", schedule=None):
    start = InvokeActionOperator(task_id="start", action="count", parameters={"lines": 100}, wait=False)
    start >> InvocationSensor(
        task_id="wait", invocation_id="{{ ti.xcom_pull('start')['invocation_id'] }}", deferrable=True
    )
