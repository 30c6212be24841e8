"""Compute quantiles of temperature files on Ray: one job, in which Ray reads the files in parallel.

It needs a connection `ray_default` whose catalogue has the action `temperature_quantiles`, as the file
`quantiles_job.py` beside this one describes. The cluster's nodes must see the files. Without a `folder` the
DAG takes files of the package vega_datasets.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

from airflow.sdk import DAG, Param, get_current_context, task

from airflow_invocations.hooks import RayHook
from airflow_invocations.operators import InvokeActionOperator


def shipped_files() -> Path:
    """Return the data folder of vega_datasets without importing the package, which imports pandas."""
    package = importlib.util.find_spec("vega_datasets")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("no `folder` was given, and the package vega_datasets isn't installed")
    return Path(package.origin).parent / "_data"


with DAG(
    "temperature_quantiles",
    description="Compute quantiles of each file's temperatures",
    schedule=None,
    params={
        "folder": Param(None, type=["null", "string"], description="Folder of the files"),
        "files": Param(
            ["sf-temps.csv", "seattle-temps.csv"],
            type="array",
            items={"type": "string"},
            description="Names of the files",
        ),
        "parts": Param(4, type="integer", minimum=2, description="Parts of equal size"),
    },
    tags=["example", "invocations"],
):

    @task
    def parameters() -> dict[str, Any]:
        """Return the parameters of the job."""
        params = get_current_context()["params"]
        folder = Path(params["folder"]) if params["folder"] else shipped_files()
        return {"files": [str(folder / name) for name in params["files"]], "parts": params["parts"]}

    compute = InvokeActionOperator(
        task_id="compute",
        action="temperature_quantiles",
        conn_id="ray_default",
        parameters=parameters(),
        deferrable=True,
        poll_interval=2,
    )

    @task
    def table(invocation: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the lines that the job has logged as JSON, the warmest file first."""
        lines = [line.log for line in RayHook().logs(invocation["invocation_id"])]
        rows = [json.loads(line) for line in lines if line.startswith('{"file"')]
        return sorted(rows, key=lambda row: -row["quantiles"][0])

    table(compute.output)
