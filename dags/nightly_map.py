"""Make a map every night without a worker: the triggerer waits, invokes, shows the log and ends the tasks.

It needs a connection `roboto_default`, and two actions on its platform: `upload_drives`, which another system
invokes every night, and `make_map`, with a parameter `day`.
"""

from __future__ import annotations

import datetime

from airflow.sdk import DAG

from airflow_invocations.operators import InvokeActionOperator
from airflow_invocations.sensors import InvocationSensor

with DAG(
    "nightly_map",
    description="Map each day's drives as soon as they are uploaded",
    schedule="@daily",
    start_date=datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
    catchup=False,
    is_paused_upon_creation=True,  # until the actions exist
    tags=["example", "invocations"],
):
    # Waits for the newest upload of this day; earlier uploads don't count.
    drives_uploaded = InvocationSensor(
        task_id="drives_uploaded",
        action="upload_drives",
        since="{{ dag_run.run_after | ds }}T00:00Z",
        timeout=datetime.timedelta(hours=8),
        soft_fail=True,
        start_from_trigger=True,
    )

    # `timeout` is the platform's, in minutes; `execution_timeout` is the task's and cancels the invocation.
    make_map = InvokeActionOperator(
        task_id="make_map",
        action="make_map",
        parameters={"day": "{{ dag_run.run_after | ds }}"},
        timeout=90,
        execution_timeout=datetime.timedelta(hours=2),
        queue_timeout=1800,
        retries=1,
        start_from_trigger=True,
    )

    drives_uploaded >> make_map
