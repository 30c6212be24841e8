"""`airflow tasks test`, the first command that an author types: the real one, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from airflow_invocations.hooks import RobotoHook

from .conftest import script
from .test_durability import count

DAG_FILE = """
from airflow.sdk import DAG, task
from airflow_invocations.operators import InvokeActionOperator

with DAG("tried_out"):
    InvokeActionOperator(task_id="ask", action="{action}", retries=2)
    InvokeActionOperator(task_id="deferred", action="{action}", deferrable=True, defer_after=0)
    InvokeActionOperator.partial(task_id="each", action="{action}").expand(parameters=[{{"n": "1"}}])
"""


@pytest.fixture
def dags(hook: RobotoHook, tmp_path: Path, database: None) -> tuple[Path, str]:
    """A folder with a DAG that invokes an action, and the action's name."""
    action = script(hook, "sleep 0.5; echo done")
    (tmp_path / "tried_out.py").write_text(DAG_FILE.format(action=action))
    return tmp_path, action


def tasks_test(folder: Path, *arguments: str) -> str:
    """What `airflow tasks test` writes; it must succeed."""
    done = subprocess.run(
        [sys.executable, "-m", "airflow", "tasks", "test", *arguments],
        env={
            **os.environ,
            "AIRFLOW__CORE__DAGS_FOLDER": str(folder),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        },
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-3000:]
    return said


@pytest.mark.parametrize(
    ("times", "arguments"),
    [(2, ["ask"]), (1, ["deferred"]), (1, ["each", "--map-index", "0"])],
    ids=["again", "deferred", "mapped"],
)
def test_it_invokes_and_waits_each_time(
    hook: RobotoHook, dags: tuple[Path, str], times: int, arguments: list[str]
) -> None:
    folder, action = dags
    for invoked in range(1, times + 1):  # what was tried out before doesn't count
        assert "Completed" in tasks_test(folder, "tried_out", *arguments)
        assert count(hook, action) == invoked
