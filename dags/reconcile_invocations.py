"""Cancel invocations that no task waits for any more, every five minutes.

It needs the connections in CONN_IDS, and `[api] base_url`. As long as `dry_run` is true, it only logs what it
would cancel: set its default to false when the log shows what you expect.
"""

from __future__ import annotations

import datetime

from airflow.sdk import DAG, Param

from airflow_invocations.operators import ReconcileInvocationsOperator

CONN_IDS = ["roboto_default"]

with DAG(
    "reconcile_invocations",
    description="Cancel invocations whose tasks have ended, were cleared, or are gone",
    schedule=datetime.timedelta(minutes=5),
    start_date=datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
    catchup=False,
    max_active_runs=1,
    is_paused_upon_creation=True,
    params={
        "dry_run": Param(True, type="boolean", description="Log what would be cancelled, cancel nothing")
    },
    tags=["example", "invocations"],
):
    ReconcileInvocationsOperator(
        task_id="reconcile",
        conn_ids=CONN_IDS,
        dry_run="{{ params.dry_run }}",
        retries=1,
        execution_timeout=datetime.timedelta(minutes=30),
    )
