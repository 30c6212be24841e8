"""Find anomalies in temperature files: one invocation a file, their reports in a dataset, found by their tag.

Without a `folder` it reads files that the package vega_datasets ships. It needs a connection
`roboto_default`, and the action `sensor_anomalies` on the platform behind it.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from airflow.sdk import DAG, Param, get_current_context, task

from airflow_invocations.hooks import RobotoHook
from airflow_invocations.operators import InvokeActionOperator


def shipped_files() -> Path:
    """Where vega_datasets keeps its files; it is found without importing it, and pandas with it."""
    package = importlib.util.find_spec("vega_datasets")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("no `folder` was given, and the package vega_datasets isn't installed")
    return Path(package.origin).parent / "_data"


with DAG(
    "sensor_anomalies",
    description="Anomalies in hourly and daily temperature files",
    schedule=None,
    params={
        "folder": Param(None, type=["null", "string"], description="Where the files are"),
        "files": Param(
            ["sf-temps.csv", "seattle-temps.csv", "seattle-weather.csv"],
            type="array",
            items={"type": "string"},
            description="Their names",
        ),
        "pace_seconds": Param(12, type="number", minimum=0, description="Least time to take for a file"),
    },
    tags=["example", "invocations"],
):

    @task
    def list_files() -> list[dict[str, Any]]:
        """The parameters of one invocation for each file."""
        params = get_current_context()["params"]
        folder = Path(params["folder"]) if params["folder"] else shipped_files()
        return [
            {"file": str(folder / name), "pace_seconds": params["pace_seconds"]} for name in params["files"]
        ]

    @task
    def results() -> str:
        """The dataset that the reports go to; the first run makes it."""
        return RobotoHook().dataset("sensor_anomalies").dataset_id

    dataset_id = results()
    find_anomalies = InvokeActionOperator.partial(
        task_id="find_anomalies",
        action="sensor_anomalies",
        deferrable=True,
        poll_interval=1,
        upload_destination=dataset_id,
        map_index_template="{{ task.parameters['file'].split('/')[-1] }}",
    ).expand(parameters=list_files())

    @task
    def gather_reports(dataset_id: str, invocations: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """What each invocation found: its report is found by its tag, and its metadata say it in short."""
        reports = RobotoHook().find_files(f'dataset_id = "{dataset_id}" AND tags CONTAINS "report"')
        found = {report.metadata["invocation_id"]: report.metadata for report in reports}
        return [found[invocation["invocation_id"]] for invocation in invocations]

    gather_reports(dataset_id, find_anomalies.output)
