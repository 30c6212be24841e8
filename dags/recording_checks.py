"""Check each recording with one invocation, and store the logs of failed checks in a shared folder.

It needs a connection `roboto_default`, and on its platform an action `check_recording` with a parameter
`recording`.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, Param, get_current_context, task

from airflow_invocations.hooks import RobotoHook
from airflow_invocations.operators import FetchInvocationLogsOperator

with DAG(
    "recording_checks",
    description="Check every recording, and store the log of each failure",
    schedule=None,
    params={
        "recordings": Param(
            ["drive-1.mcap", "drive-2.mcap"],
            type="array",
            items={"type": "string"},
            description="Names of the recordings",
        ),
        "logs": Param(
            "file:///tmp/recording_checks",
            type="string",
            description="Folder for the logs, as the URL of an ObjectStoragePath",
        ),
    },
    tags=["example", "invocations"],
):

    @task
    def list_recordings() -> list[str]:
        """Return the recordings of this run."""
        recordings: list[str] = get_current_context()["params"]["recordings"]
        return recordings

    @task.invoke_action(
        action="check_recording",
        deferrable=True,
        execution_timeout=timedelta(hours=2),
        map_index_template="{{ task.parameters['recording'] }}",
    )
    def check(recording: str) -> dict[str, Any]:
        """Return the parameters for one recording."""
        return {"recording": recording}

    checked = check.expand(recording=list_recordings())

    @task(trigger_rule="all_done")
    def find_failures() -> list[str]:
        """Return the failed invocations, from the platform's records."""
        instance = get_current_context()["ti"]
        found = RobotoHook().find(instance.dag_id, instance.run_id, "check")
        return [one.invocation_id for one in found if one.current.status.name == "Failed"]

    failures = find_failures()
    FetchInvocationLogsOperator.partial(
        task_id="keep_log",
        destination="{{ params.logs }}/{{ task.invocation_id }}.log",
        tail=10_000,
    ).expand(invocation_id=failures)

    checked >> failures
