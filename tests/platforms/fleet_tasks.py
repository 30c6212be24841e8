"""A real pynenc app: its runners import it as a process of their own, and callers import it too."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pynenc import ConcurrencyControlType, Pynenc
from pynenc.workflow.workflow_identity import WorkflowIdentity

from .deployment import EXECUTIONS, RELEASE

#: Where it keeps its state, and as which app, is for whoever starts a runner, or connects to it, to say.
app = Pynenc(config_values={"app_id": "fleet"})


@app.task
def completes(folder: str, answer: int = 42) -> dict[str, int]:
    """Return the answer.

    That is all.
    """
    _count(folder)
    return {"answer": answer}


@app.task
def fails(folder: str, message: str = "no such topic") -> None:
    _count(folder)
    raise ValueError(message)


@app.task
def waits(folder: str) -> None:
    _count(folder)
    while not (Path(folder) / RELEASE).exists():
        time.sleep(0.02)


@app.task
def typed(folder: str, count: int, ratio: float = 0.5) -> None:
    _count(folder)


@app.task
def heeds(folder: str) -> None:
    """Wait for the release, or for somebody who asks it to stop."""
    _count(folder)
    invocation = heeds.invocation
    mine = WorkflowIdentity(invocation.invocation_id, invocation.task.task_id, None)
    while not (Path(folder) / RELEASE).exists():
        if invocation.app.state_backend.get_workflow_data(mine, "cancel"):
            raise InterruptedError("asked to stop")
        time.sleep(0.02)


@dataclass
class Reading:
    value: float


class NoSuchSensor(Exception):
    """Made of two things, which makes it hard to load again."""

    def __init__(self, sensor: str, known: int) -> None:
        super().__init__(f"{sensor}, {known} are known")


#: What `returns` and `raises` can be asked for.
RESULTS: dict[str, Any] = {
    "nothing": None,
    "tuple": ("a", (1, 2.5)),
    "set": {"a": {3}},
    "large": ["x" * 100] * 100,
    "object": {"readings": [Reading(1.0)]},
    "nan": {"mean": float("nan")},
    "code": print,
}


@app.task
def returns(folder: str, what: str) -> Any:
    return RESULTS[what]


@app.task
def raises(folder: str, what: str) -> None:
    match what:
        case "custom":
            raise NoSuchSensor("lidar", 3)
        case "large":
            raise ValueError("x" * 5000)
        case "bare":
            raise KeyError
        case "os":
            raise FileNotFoundError(2, "No such file", "a.bag")


@app.task(running_concurrency=ConcurrencyControlType.TASK, reroute_on_concurrency_control=False)
def alone(folder: str) -> None:
    """Run only while no other one does; whoever comes meanwhile is turned away."""
    waits.func(folder)


@app.task(max_retries=1, retry_for=(ConnectionError,))
def tries_twice(folder: str) -> None:
    """Fail the first time, which pynenc itself mends."""
    _count(folder)
    if len((Path(folder) / EXECUTIONS).read_text().splitlines()) == 1:
        raise ConnectionError("not yet")


def _count(folder: str) -> None:
    with (Path(folder) / EXECUTIONS).open("a") as executions:
        executions.write("once\n")
