"""Report on temperature files: one pynenc task per file, on any free runner, and one table of all results.

It needs a connection `pynenc_default` to the app `temperature_tasks:app` in the file beside this one, and a
runner of that app. Workers, triggerer and runners must be able to import it: put this folder on their
PYTHONPATH. Without a `folder` it reads files of the package vega_datasets.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from airflow.sdk import DAG, Param, get_current_context, task

from airflow_invocations.operators import InvokeActionOperator


def shipped_files() -> Path:
    """Return the data folder of vega_datasets without importing the package, which imports pandas."""
    package = importlib.util.find_spec("vega_datasets")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("no `folder` was given, and the package vega_datasets isn't installed")
    return Path(package.origin).parent / "_data"


with DAG(
    "temperature_report",
    description="Report the lowest, mean and highest temperature of each file",
    schedule=None,
    params={
        "folder": Param(None, type=["null", "string"], description="Folder of the files"),
        "files": Param(
            ["sf-temps.csv", "seattle-temps.csv"],
            type="array",
            items={"type": "string"},
            description="Names of the files",
        ),
    },
    tags=["example", "invocations"],
):

    @task
    def list_files() -> list[dict[str, Any]]:
        """Return the parameters of one invocation per file."""
        params = get_current_context()["params"]
        folder = Path(params["folder"]) if params["folder"] else shipped_files()
        return [{"file": str(folder / name)} for name in params["files"]]

    summarise = InvokeActionOperator.partial(
        task_id="summarise",
        action="temperature_tasks.summarise",
        conn_id="pynenc_default",
        deferrable=True,
        poll_interval=2,
        map_index_template="{{ task.parameters['file'].split('/')[-1] }}",
    ).expand(parameters=list_files())

    @task
    def table(invocations: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the results of the tasks, the warmest file first."""
        summaries = [invocation["outputs"] for invocation in invocations]
        return sorted(summaries, key=lambda summary: -summary["mean"])

    table(summarise.output)
