"""Look at what was found as soon as it was: whoever had a file looked through, in whatever way.

Each invocation of the action `sensor_anomalies` that ends on the platform behind `roboto_default` reaches a
run of this DAG, many at a time if many end together, and its report is found in the dataset that it was
written to. Run `sensor_anomalies`, or invoke the action by hand.
"""

from __future__ import annotations

import logging
from typing import Any

from airflow.sdk import DAG, Asset, AssetWatcher, task

from airflow_invocations.assets import triggering_invocations
from airflow_invocations.hooks import RobotoHook
from airflow_invocations.triggers import InvocationEventTrigger

looked_through = Asset(
    "looked_through",
    watchers=[
        AssetWatcher(
            name="looked_through",
            trigger=InvocationEventTrigger(
                action="sensor_anomalies", statuses=["Completed", "Failed", "Deadly"], batch_size=50
            ),
        )
    ],
)

with DAG(
    "anomaly_alerts",
    description="Says what was found in a file, as soon as somebody had it looked through",
    schedule=[looked_through],
    max_active_runs=4,
    tags=["example", "invocations"],
):

    @task
    def take_over() -> list[dict[str, Any]]:
        """The invocations that have ended since the last run, each once."""
        return triggering_invocations()

    @task
    def read_report(invocation: dict[str, Any]) -> dict[str, Any]:
        """What an invocation found; of one that has left no report, why, and where to see more."""
        found = {"file": None, "count": 0, "url": invocation["url"], "why": invocation["detail"]}
        if invocation["status"] != "Completed" or invocation["dataset_id"] is None:
            return found
        of_dataset = f'dataset_id = "{invocation["dataset_id"]}"'
        for file in RobotoHook().find_files(f'{of_dataset} AND tags CONTAINS "report"'):
            if file.metadata["invocation_id"] == invocation["invocation_id"]:
                found |= {"file": file.metadata["file"], "count": file.metadata["anomalies"]}
        return found

    @task
    def alert(reports: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """What a person should look at: files with anomalies, and those that couldn't be looked through."""
        worth_a_look = [report for report in reports if report["count"] or report["file"] is None]
        for report in worth_a_look:
            logging.getLogger(__name__).warning("%(file)s: %(count)d anomalies, see %(url)s", report)
        return worth_a_look

    alert(read_report.expand(invocation=take_over()))  # type: ignore[arg-type]
