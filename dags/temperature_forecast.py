"""Forecast temperatures on Flyte: a model for each file, then what it expects of the next day.

It needs a connection `flyte_default` that says project and domain, and there the tasks of the file beside
this one: flyte deploy forecast_tasks.py env. What the first task returns, a dataclass, is an input of the
second; that needs the extra `flyte` where this DAG's tasks run. Without a `folder` it reads files that the
package vega_datasets ships.
"""

from __future__ import annotations

import csv
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


def readings_of(file: Path) -> list[float]:
    """The column `temp` of a file."""
    with file.open(newline="") as lines:
        return [float(row["temp"]) for row in csv.DictReader(lines)]


with DAG(
    "temperature_forecast",
    description="The next day's temperatures, expected from those of each file",
    schedule=None,
    params={
        "folder": Param(None, type=["null", "string"], description="Where the files are"),
        "files": Param(
            ["sf-temps.csv", "seattle-temps.csv"],
            type="array",
            items={"type": "string"},
            description="Their names",
        ),
        "season": Param(24, type="integer", minimum=2, description="Readings of a day"),
    },
    tags=["example", "invocations"],
):

    @task
    def list_series() -> list[dict[str, Any]]:
        """The parameters of one training for each file."""
        params = get_current_context()["params"]
        folder = Path(params["folder"]) if params["folder"] else shipped_files()
        return [
            {"readings": readings_of(folder / name), "season": params["season"]} for name in params["files"]
        ]

    # Flyte may accept a run that it then can't start, and says nothing: hence the queue_timeout.
    train = InvokeActionOperator.partial(
        task_id="train",
        action="forecast.train",
        conn_id="flyte_default",
        deferrable=True,
        queue_timeout=1800,
        retries=1,
    ).expand(parameters=list_series())

    @task
    def next_day(invocations: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The parameters of one prediction for each model."""
        season = get_current_context()["params"]["season"]
        return [{"model": invocation["outputs"], "steps": season} for invocation in invocations]

    predict = InvokeActionOperator.partial(
        task_id="predict",
        action="forecast.predict",
        conn_id="flyte_default",
        deferrable=True,
        queue_timeout=1800,
        retries=1,
    ).expand(parameters=next_day(train.output))

    @task
    def report(invocations: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Of each file the range that is expected, and where the run can be looked at."""
        files = get_current_context()["params"]["files"]
        return [
            {
                "file": file,
                "lowest": min(invocation["outputs"]),
                "highest": max(invocation["outputs"]),
                "url": invocation["url"],
            }
            for file, invocation in zip(files, invocations, strict=True)
        ]

    report(predict.output)
