"""A DAG of invocations that end, and of triggers that fire by themselves, alternately."""

from __future__ import annotations

from airflow.sdk import DAG

from airflow_invocations.operators import InvokeActionOperator
from tests.benchmarks.waits_by_itself import FireByItselfOperator

with DAG("waits", schedule=None, max_active_tasks=64):
    for pair in range(12):
        moment = f"{{{{ dag_run.conf['first'] + {pair} * dag_run.conf['apart'] }}}}"
        between = f"{{{{ dag_run.conf['first'] + ({pair} + 0.5) * dag_run.conf['apart'] }}}}"
        InvokeActionOperator(
            task_id=f"invoked_{pair}",
            action="until",
            parameters={"moment": moment},
            deferrable=True,
            poll_interval=2.0,
        )
        FireByItselfOperator(task_id=f"by_itself_{pair}", moment=between)
