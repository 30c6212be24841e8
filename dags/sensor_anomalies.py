"""Find anomalies in temperature files: one invocation per file, with the reports in one dataset.

It needs a connection `roboto_default`, and the action `sensor_anomalies` on its platform. Without a `folder`
it reads files of the package vega_datasets.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from airflow.sdk import DAG, Param, get_current_context, task

from airflow_invocations.hooks import RobotoHook
from airflow_invocations.operators import InvokeActionOperator


def shipped_files() -> Path:
    """Return the data folder of vega_datasets without importing the package, which imports pandas."""
    package = importlib.util.find_spec("vega_datasets")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("no `folder` was given, and the package vega_datasets isn't installed")
    return Path(package.origin).parent / "_data"


with DAG(
    "sensor_anomalies",
    description="Find anomalies in hourly and daily temperature files",
    schedule=None,
    params={
        "folder": Param(None, type=["null", "string"], description="Folder of the files"),
        "files": Param(
            ["sf-temps.csv", "seattle-temps.csv", "seattle-weather.csv"],
            type="array",
            items={"type": "string"},
            description="Names of the files",
        ),
        "pace_seconds": Param(
            12, type="number", minimum=0, description="Shortest duration per file, in seconds"
        ),
    },
    tags=["example", "invocations"],
):

    @task
    def list_files() -> list[dict[str, Any]]:
        """Return the parameters of one invocation per file."""
        params = get_current_context()["params"]
        folder = Path(params["folder"]) if params["folder"] else shipped_files()
        return [
            {"file": str(folder / name), "pace_seconds": params["pace_seconds"]} for name in params["files"]
        ]

    @task
    def results() -> str:
        """Return the id of the dataset for the reports; the first run creates it."""
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
        """Return the metadata of each invocation's report, which is found by its tag."""
        reports = RobotoHook().find_files(f'dataset_id = "{dataset_id}" AND tags CONTAINS "report"')
        found = {report.metadata["invocation_id"]: report.metadata for report in reports}
        return [found[invocation["invocation_id"]] for invocation in invocations]

    gather_reports(dataset_id, find_anomalies.output)
