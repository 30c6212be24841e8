"""Measure the import time of the provider in a DAG file, beside that of Airflow.

`python -m tests.benchmarks.parsing [--quick]`: processor time in new processes, the best of several, because
other work on the machine only adds to it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile

from .figures import Figure, table

#: Longest import time of the provider, in seconds.
BOUND = 0.030

RUNS, FEW_RUNS = 9, 2

_MEASURED = """
import json, time
began = time.process_time()
from airflow.sdk import DAG, BaseOperator, BaseSensorOperator, task
with DAG("d"):
    pass
airflow = time.process_time() - began
began = time.process_time()
from airflow_invocations.operators import InvokeActionOperator
from airflow_invocations.sensors import InvocationSensor
print(json.dumps([airflow, time.process_time() - began]))
"""


def measure(count: int) -> Figure:
    """Return the best of several runs."""
    with tempfile.TemporaryDirectory(prefix="parsing-benchmark-") as compiled:
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": compiled, "PYTHONDONTWRITEBYTECODE": ""}
        command = [sys.executable, "-c", _MEASURED]
        # The first run compiles, as an installation does.
        answers = [
            subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
            for _ in range(count + 1)
        ]
    runs = [json.loads(answer) for answer in answers[1:]]
    airflow, ours = (min(run[which] for run in runs) for which in (0, 1))
    return Figure(
        "importing the operators in a DAG file",
        f"{ours * 1e3:.0f} ms",
        f"airflow.sdk, and a DAG: {airflow * 1e3:.0f} ms",
        f"{ours / airflow:.3f} (at most {BOUND * 1e3:.0f} ms)",
        ours <= BOUND,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a few runs only: does it work?")
    figure = measure(FEW_RUNS if parser.parse_args().quick else RUNS)
    print(table([figure]))
    sys.exit(0 if figure.ok else 1)
