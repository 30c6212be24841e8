"""The pynenc app that reads temperature files, one task a file; its runners are started with

    pynenc --app temperature_tasks.app runner start

Where they find their work, Redis or SQLite, is in the environment: PYNENC__REDIS_URL and the like.
"""

from __future__ import annotations

import csv
import statistics
from pathlib import Path
from typing import Any

from pynenc import Pynenc
from pynenc.workflow.workflow_identity import WorkflowIdentity

app = Pynenc(config_values={"app_id": "temperatures"})

#: How many rows are read between two looks whether anybody still wants the summary.
STRETCH = 1000


@app.task
def summarise(file: str, column: str = "temp") -> dict[str, Any]:
    """Lowest, mean and highest value of a column of a CSV file."""
    values: list[float] = []
    with Path(file).open(newline="") as opened:
        for number, row in enumerate(csv.DictReader(opened)):
            if column not in row:
                raise ValueError(f"{file} has no column {column!r}, only {', '.join(row)}")
            if number % STRETCH == 0 and is_cancelled():
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
    """Whether whoever asked for this summary wants it no more: a task that runs has to look by itself."""
    invocation = summarise.invocation
    mine = WorkflowIdentity(invocation.invocation_id, invocation.task.task_id, None)
    return bool(invocation.app.state_backend.get_workflow_data(mine, "cancel"))
