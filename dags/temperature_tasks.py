"""The pynenc app of `temperature_report`, which reads temperature files, one task per file.

Start a runner with

    pynenc --app temperature_tasks.app runner start

The environment configures its backend, Redis or SQLite: PYNENC__REDIS_URL, for example.
"""

from __future__ import annotations

import csv
import statistics
from pathlib import Path
from typing import Any

from pynenc import Pynenc
from pynenc.workflow.workflow_identity import WorkflowIdentity

app = Pynenc(config_values={"app_id": "temperatures"})

#: Rows between two checks whether the invocation has been cancelled.
CHECK_INTERVAL = 1000


@app.task
def summarise(file: str, column: str = "temp") -> dict[str, Any]:
    """Return the lowest, mean and highest value of a column of a CSV file."""
    values: list[float] = []
    with Path(file).open(newline="") as opened:
        for number, row in enumerate(csv.DictReader(opened)):
            if column not in row:
                raise ValueError(f"{file} has no column {column!r}, only {', '.join(row)}")
            if number % CHECK_INTERVAL == 0 and is_cancelled():
                raise InterruptedError(f"cancelled at row {number}")
            values.append(float(row[column]))
    if not values:
        raise ValueError(f"{file} has no rows")
    return {
        "file": Path(file).name,
        "rows": len(values),
        "lowest": min(values),
        "mean": round(statistics.fmean(values), 2),
        "highest": max(values),
    }


def is_cancelled() -> bool:
    """Return whether this invocation has been cancelled, which a running task has to check itself."""
    invocation = summarise.invocation
    identity = WorkflowIdentity(invocation.invocation_id, invocation.task.task_id, None)
    return bool(invocation.app.state_backend.get_workflow_data(identity, "cancel"))
