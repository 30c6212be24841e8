"""Forecast temperatures on Flyte: train a model for each file, then predict the next day.

It needs a connection `flyte_default` with a project and a domain, and there the tasks of the file beside this
one: flyte deploy forecast_tasks.py env. The first task returns a dataclass, which is an input of the second;
this needs the extra `flyte` on this DAG's workers. Without a `folder` it reads files of the package
vega_datasets.
"""

from __future__ import annotations

import csv
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


def readings_of(file: Path) -> list[float]:
    """Return the column `temp` of a file."""
    with file.open(newline="") as lines:
        return [float(row["temp"]) for row in csv.DictReader(lines)]


with DAG(
    "temperature_forecast",
    description="Forecast the next day's temperatures from each file",
    schedule=None,
    params={
        "folder": Param(None, type=["null", "string"], description="Folder of the files"),
        "files": Param(
            ["sf-temps.csv", "seattle-temps.csv"],
            type="array",
            items={"type": "string"},
            description="Names of the files",
        ),
        "season": Param(24, type="integer", minimum=2, description="Readings per day"),
    },
    tags=["example", "invocations"],
):

    @task
    def list_series() -> list[dict[str, Any]]:
        """Return the parameters of one training per file."""
        params = get_current_context()["params"]
        folder = Path(params["folder"]) if params["folder"] else shipped_files()
        return [
            {"readings": readings_of(folder / name), "season": params["season"]} for name in params["files"]
        ]

    # Flyte may accept a run that it can't start, without an error: hence the queue_timeout.
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
        """Return the parameters of one prediction per model."""
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
        """Return the expected range for each file, and the URL of its run."""
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
