"""The Ray job of `temperature_quantiles`: a task for each file, on any node of the cluster.

An entry of the catalogue runs it with `python quantiles_job.py`, in a runtime environment whose `working_dir`
is a zip file with it. The parameters are in the environment. One line of JSON per file is the result.
"""

import csv
import json
import os
import statistics
from pathlib import Path
from typing import Any

import ray


@ray.remote
def quantiles(file: str, parts: int) -> dict[str, Any]:
    """Return the values that divide the column `temp` of a file into parts of equal size."""
    with Path(file).open(newline="") as lines:
        readings = [float(row["temp"]) for row in csv.DictReader(lines)]
    return {
        "file": Path(file).name,
        "readings": len(readings),
        "quantiles": statistics.quantiles(readings, n=parts),
    }


if __name__ == "__main__":
    parameters = json.loads(os.environ["INVOCATION_PARAMETERS"])
    ray.init()
    for row in ray.get([quantiles.remote(file, parameters["parts"]) for file in parameters["files"]]):
        print(json.dumps(row))  # noqa: T201  the job's log
