"""What a DAG file imports with our modules beyond what Airflow itself imports: counted, as times vary."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

STATEMENTS = [
    "from airflow_invocations.operators import InvokeActionOperator",
    "from airflow_invocations.sensors import InvocationSensor",
    "from airflow_invocations.decorators import invoke_action_task",
    "from airflow_invocations.retries import invocation_retry_policy",
    "from airflow_invocations.provider_info import get_provider_info",
]

#: Airflow is imported once, and each statement's imports are added to that in a process of its own.
_COUNTED = """
import json, os, sys
from airflow.sdk import DAG, BaseHook, BaseOperator, BaseSensorOperator, task
with DAG("d"):
    pass
# Airflow's own may be there already, and then hide that ours is imported.
for name in [name for name in sys.modules if name.partition(".")[0] == "httpx"]:
    del sys.modules[name]
before = set(sys.modules)
for statement in sys.argv[1:]:
    child = os.fork()
    if not child:
        exec(statement)
        print(json.dumps([statement, sorted(set(sys.modules) - before)]), flush=True)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status == 0
"""

#: Modules of our own that may be imported: statuses, the platform's protocol, the waits, the faces.
OURS = 40
#: And others', parts of the standard library among them.
OTHERS = 3


@pytest.fixture(scope="module")
def added_by() -> dict[str, set[str]]:
    """The modules that each statement adds to Airflow's own."""
    command = [sys.executable, "-c", _COUNTED, *STATEMENTS]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = (line for line in answer.stdout.splitlines() if line.startswith("["))
    return {statement: set(added) for statement, added in map(json.loads, lines)}


@pytest.mark.parametrize("statement", STATEMENTS)
def test_a_dag_file_imports_little(statement: str, added_by: dict[str, set[str]]) -> None:
    added = added_by[statement]
    ours = {name for name in added if name.partition(".")[0] == "airflow_invocations"}
    assert len(ours) <= OURS, sorted(ours)
    assert len(added - ours) <= OTHERS, sorted(added - ours)
    # What talks to platforms, what waits in a triggerer, and the records are imported when a task runs.
    late = {"hooks", "triggers", "platform.roboto", "model.action", "model.invocation", "model.provenance"}
    assert not {f"airflow_invocations.{name}" for name in late} & added
    heavy = {
        "httpx",
        "sqlalchemy",
        "fsspec",
        "jinja2.meta",
        "airflow.models",
        "fastapi",
        "aiohttp",
        "requests",
    }
    assert not heavy & added
