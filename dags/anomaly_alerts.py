"""Alert on anomalies when an invocation of `sensor_anomalies` ends, however it was started.

Each invocation of the action that ends on the platform of `roboto_default` starts a run of this DAG;
invocations that end at the same time share a run. The DAG reads the report from the dataset that the action
wrote to. Run the DAG `sensor_anomalies`, or invoke the action by hand.
"""

from __future__ import annotations

import logging
from typing import Any

from airflow.sdk import DAG, Asset, AssetWatcher, task

from airflow_invocations.assets import triggering_invocations
from airflow_invocations.hooks import RobotoHook
from airflow_invocations.triggers import InvocationEventTrigger

checked_files = Asset(
    "checked_files",
    watchers=[
        AssetWatcher(
            name="checked_files",
            trigger=InvocationEventTrigger(
                action="sensor_anomalies", statuses=["Completed", "Failed", "Deadly"], batch_size=50
            ),
        )
    ],
)

with DAG(
    "anomaly_alerts",
    description="Alert on anomalies in a file as soon as it has been checked",
    schedule=[checked_files],
    max_active_runs=4,
    tags=["example", "invocations"],
):

    @task
    def list_invocations() -> list[dict[str, Any]]:
        """Return the invocations that have ended since the last run, each once."""
        return triggering_invocations()

    @task
    def read_report(invocation: dict[str, Any]) -> dict[str, Any]:
        """Return what an invocation found; without a report, the reason and a URL."""
        found = {"file": None, "count": 0, "url": invocation["url"], "reason": invocation["detail"]}
        if invocation["status"] != "Completed" or invocation["dataset_id"] is None:
            return found
        of_dataset = f'dataset_id = "{invocation["dataset_id"]}"'
        for file in RobotoHook().find_files(f'{of_dataset} AND tags CONTAINS "report"'):
            if file.metadata["invocation_id"] == invocation["invocation_id"]:
                found |= {"file": file.metadata["file"], "count": file.metadata["anomalies"]}
        return found

    @task
    def alert(reports: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Log and return the files with anomalies, and the files that couldn't be checked."""
        alerts = [report for report in reports if report["count"] or report["file"] is None]
        for report in alerts:
            logging.getLogger(__name__).warning("%(file)s: %(count)d anomalies, see %(url)s", report)
        return alerts

    alert(read_report.expand(invocation=list_invocations()))  # type: ignore[arg-type]
