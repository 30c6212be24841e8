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
    "from airflow_invocations.retry_policy import invocation_retry_policy",
    "from airflow_invocations.get_provider_info import get_provider_info",
]

#: Airflow is imported once, and each statement's imports are added to that in a process of its own.
_COUNTED = """
import builtins, json, os, sys
from airflow.sdk import DAG, BaseHook, BaseOperator, BaseSensorOperator, task
with DAG("d"):
    pass
before = set(sys.modules)
# What Airflow has imported itself isn't added, but may not be there in the next version.
real, by_us = builtins.__import__, set()
def watched(name, globals=None, *more):
    if ((globals or {}).get("__name__") or "").partition(".")[0] == "airflow_invocations":
        by_us.add(name)
    return real(name, globals, *more)
builtins.__import__ = watched
for statement in sys.argv[1:]:
    child = os.fork()
    if not child:
        exec(statement)
        print(json.dumps([statement, sorted(set(sys.modules) - before), sorted(by_us)]), flush=True)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status == 0
"""

#: Modules of our own that may be imported: statuses, the platform's protocol, the waits, the faces.
OURS = 46
#: And others', parts of the standard library among them.
OTHERS = 3


#: What costs much, and is imported when a task runs.
HEAVY = {"httpx", "sqlalchemy", "fsspec", "jinja2.meta", "airflow.models", "fastapi", "aiohttp", "requests"}

#: The modules that a statement adds to Airflow's own, and those that our modules import.
Imports = tuple[set[str], set[str]]


@pytest.fixture(scope="module")
def imports() -> dict[str, Imports]:
    """What each statement imports."""
    command = [sys.executable, "-c", _COUNTED, *STATEMENTS]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = (line for line in answer.stdout.splitlines() if line.startswith("["))
    return {statement: (set(added), set(by_us)) for statement, added, by_us in map(json.loads, lines)}


@pytest.mark.parametrize("statement", STATEMENTS)
def test_a_dag_file_imports_little(statement: str, imports: dict[str, Imports]) -> None:
    added, by_us = imports[statement]
    ours = {name for name in added if name.partition(".")[0] == "airflow_invocations"}
    assert len(ours) <= OURS, sorted(ours)
    assert len(added - ours) <= OTHERS, sorted(added - ours)
    # What talks to platforms, what waits in a triggerer, and the records are imported when a task runs.
    late = {
        "hooks",
        "triggers",
        "platforms.roboto",
        "models.action",
        "models.invocation",
        "models.provenance",
    }
    assert not {f"airflow_invocations.{name}" for name in late} & added
    assert not HEAVY & (added | by_us)
