"""The DAG of the lineage test: an action that reads one dataset and writes another, and one that fails."""

from __future__ import annotations

import os

from airflow.sdk import DAG

from airflow_invocations.operators import InvokeActionOperator

with DAG("lineage", schedule=None):
    for task_id in ("good", "bad"):
        InvokeActionOperator(
            task_id=task_id,
            action=os.environ[f"ACTION_{task_id.upper()}"],
            data_source_id=os.environ["DATASET_READ"],
            input_data=["*.csv"],
            upload_destination=f"{{{{ {os.environ['DATASET_WRITTEN']!r} }}}}",
            poll_interval=0.1,
        )
