"""The DAGs of the kill matrix: one invocation each, which the test ends."""

from __future__ import annotations

import datetime
from typing import Any

from airflow.sdk import DAG, task

from airflow_invocations.operators import InvokeActionOperator, ReconcileInvocationsOperator
from airflow_invocations.retry_policy import invocation_retry_policy

SECOND = datetime.timedelta(seconds=1)


def invoke(task_id: str = "invoke", **arguments: Any) -> InvokeActionOperator:
    """Return a task that invokes, over the row's connection, the action that waits at the row's gate."""
    arguments = {
        "action": "{{ dag_run.conf['action'] }}",
        "parameters": {"gate": "{{ dag_run.conf['gate'] }}"},
        "conn_id": "{{ dag_run.conf['conn_id'] }}",
        "deferrable": True,
        "poll_interval": 1.0,
        "retries": 2,
        "retry_delay": SECOND,
        **arguments,
    }
    return InvokeActionOperator(task_id=task_id, **arguments)


with DAG("deferred", schedule=None):
    invoke()

with DAG("in_a_worker", schedule=None):
    invoke(deferrable=False)

with DAG("deferred_without_retries", schedule=None):
    invoke(retries=0)

with DAG("workerless_without_retries", schedule=None):
    invoke(retries=0, start_from_trigger=True)

with DAG("in_a_worker_without_retries", schedule=None):
    invoke(retries=0, deferrable=False)

with DAG("in_a_worker_patient", schedule=None):
    invoke(deferrable=False, retries=8, retry_delay=15 * SECOND)

with DAG("in_a_worker_retried_late", schedule=None):
    invoke(deferrable=False, retry_delay=30 * SECOND)

with DAG("not_durable", schedule=None):
    invoke(durable=False)

with DAG("reconcile", schedule=None):
    ReconcileInvocationsOperator(task_id="invoke", conn_ids=["{{ dag_run.conf['conn_id'] }}"])

with DAG("execution_timeout_deferred", schedule=None):
    invoke(retries=0, execution_timeout=12 * SECOND)

with DAG("execution_timeout_in_a_worker", schedule=None):
    invoke(retries=0, deferrable=False, execution_timeout=8 * SECOND)

with DAG("queue_timeout_deferred", schedule=None):
    invoke(retries=0, queue_timeout=6.0)

with DAG("queue_timeout_in_a_worker", schedule=None):
    invoke(retries=0, deferrable=False, queue_timeout=6.0)

with DAG("dagrun_timeout", schedule=None, dagrun_timeout=12 * SECOND):
    invoke()

for rescheduled, deferrable in (("rescheduled", True), ("rescheduled_in_a_worker", False)):
    with DAG(rescheduled, schedule=None):
        invoke(
            retries=0,
            deferrable=deferrable,
            outage_limit=2.0,
            retry_policy=invocation_retry_policy(outage_delay=2 * SECOND),
        )

with DAG("neighbours", schedule=None):
    invoke("first")
    invoke("second")

with DAG("mapped", schedule=None):

    @task
    def gates(**context: Any) -> list[dict[str, str]]:
        conf = context["dag_run"].conf
        return [{"gate": conf["gate"]}] * conf["count"]

    InvokeActionOperator.partial(
        task_id="invoke",
        action="{{ dag_run.conf['action'] }}",
        conn_id="{{ dag_run.conf['conn_id'] }}",
        deferrable=True,
        retries=2,
        retry_delay=SECOND,
        pool="few",
    ).expand(parameters=gates())
