"""Check recordings, each by itself: what fails is invoked once more, and its log is kept where people look.

It needs a connection `roboto_default`, and on the platform behind it an action `check_recording` with a
parameter `recording`.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, Param, XComArg, get_current_context, task

from airflow_invocations.hooks import RobotoHook
from airflow_invocations.operators import FetchInvocationLogsOperator, RetryFailedInvocationsOperator

with DAG(
    "recording_checks",
    description="Every recording is checked; the log of each failure is kept",
    schedule=None,
    params={
        "recordings": Param(
            ["drive-1.mcap", "drive-2.mcap"],
            type="array",
            items={"type": "string"},
            description="Their names",
        ),
        "logs": Param(
            "file:///tmp/recording_checks",
            type="string",
            description="Where logs are kept: a folder, as the URL of an ObjectStoragePath",
        ),
    },
    tags=["example", "invocations"],
):

    @task
    def list_recordings() -> list[str]:
        """The recordings of this run."""
        recordings: list[str] = get_current_context()["params"]["recordings"]
        return recordings

    # No retries here: what fails is left to `check_again`, which invokes it once more and no other.
    @task.invoke_action(
        action="check_recording",
        deferrable=True,
        execution_timeout=timedelta(hours=2),
        map_index_template="{{ task.parameters['recording'] }}",
    )
    def check(recording: str) -> dict[str, Any]:
        """The parameters for one recording."""
        return {"recording": recording}

    checked = check.expand(recording=list_recordings())

    check_again = RetryFailedInvocationsOperator(
        task_id="check_again",
        invocations=XComArg(checked.operator, key="invocation_id"),
        trigger_rule="all_done",
        deferrable=True,
    )

    @task(trigger_rule="all_done")
    def find_failures() -> list[str]:
        """What has failed in the first round, by the platform's own records."""
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
