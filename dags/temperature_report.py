"""Report on temperature files: one pynenc task a file, wherever a runner is free, and one table of them all.

It needs a connection `pynenc_default` to the app `temperature_tasks:app`, which is the file beside this one,
and a runner of that app. Workers, triggerer and runners must be able to import it: put this folder on their
PYTHONPATH. Without a `folder` it reads files that the package vega_datasets ships.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from airflow.sdk import DAG, Param, get_current_context, task

from airflow_invocations.operators import InvokeActionOperator


def shipped_files() -> Path:
    """Where vega_datasets keeps its files; it is found without importing it, and pandas with it."""
    package = importlib.util.find_spec("vega_datasets")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("no `folder` was given, and the package vega_datasets isn't installed")
    return Path(package.origin).parent / "_data"


with DAG(
    "temperature_report",
    description="Lowest, mean and highest temperature of each file",
    schedule=None,
    params={
        "folder": Param(None, type=["null", "string"], description="Where the files are"),
        "files": Param(
            ["sf-temps.csv", "seattle-temps.csv"],
            type="array",
            items={"type": "string"},
            description="Their names",
        ),
    },
    tags=["example", "invocations"],
):

    @task
    def list_files() -> list[dict[str, Any]]:
        """The parameters of one invocation for each file."""
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
        """What the tasks returned, the warmest file first."""
        summaries = [invocation["outputs"] for invocation in invocations]
        return sorted(summaries, key=lambda summary: -summary["mean"])

    table(summarise.output)
