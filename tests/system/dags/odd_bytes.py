"""Wait in the triggerer for an action that writes what PostgreSQL can't store, and for one that doesn't."""

from __future__ import annotations

from airflow.sdk import DAG

from airflow_invocations.operators import FetchInvocationLogsOperator, InvokeActionOperator

with DAG("odd_bytes", schedule=None):
    for name in ("odd_bytes", "tick"):
        InvokeActionOperator(task_id=f"waits_for_{name}", action=name, deferrable=True, defer_after=0)
    workerless = InvokeActionOperator(
        task_id="fails_without_a_worker",
        action="odd_bytes",
        parameters={"code": "65"},
        retries=1,
        start_from_trigger=True,
    )
    FetchInvocationLogsOperator(
        task_id="as_xcom",
        invocation_id="{{ ti.xcom_pull('fails_without_a_worker', key='invocation_id') }}",
        destination="xcom",
        trigger_rule="all_done",
    ).set_upstream(workerless)
