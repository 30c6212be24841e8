"""DAGs of the system test of events: one is started by invocations, two are connected by a dataset."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

from airflow.sdk import DAG, Asset, AssetWatcher, get_current_context, task

from airflow_invocations.assets import dataset_asset, triggering_invocations
from airflow_invocations.operators import InvokeActionOperator
from airflow_invocations.triggers import InvocationEventTrigger

#: On a very busy machine Airflow's own API server may not answer the first task in time.
patient = {"retries": 3, "retry_delay": timedelta(seconds=2)}

trigger = InvocationEventTrigger(action="tick", batch_size=8)
ticks = Asset("ticks", watchers=[AssetWatcher(name="ticks", trigger=trigger)])
dataset_id = Path(__file__).with_name("written_dataset").read_text()
written = dataset_asset("roboto_default", dataset_id, name="written")

with DAG("on_ticks", schedule=[ticks], max_active_runs=2, default_args=patient):

    @task
    def take_over() -> list[dict[str, Any]]:
        return triggering_invocations()

    @task
    def answers(taken: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{"answer_to": one["invocation_id"]} for one in taken]

    # The same action: if a DAG's own invocations started it, this would never end.
    InvokeActionOperator.partial(task_id="answer", action="tick", wait=False).expand(
        parameters=answers(take_over())  # type: ignore[arg-type]
    )

with DAG("writes", schedule=None, default_args=patient):
    InvokeActionOperator(
        task_id="write", action="tock", upload_destination=dataset_id, outlets=[written], poll_interval=0.5
    )

with DAG("reads", schedule=[written], default_args=patient):

    @task
    def read() -> list[Any]:
        return [event.extra for event in get_current_context()["triggering_asset_events"][written]]

    read()
