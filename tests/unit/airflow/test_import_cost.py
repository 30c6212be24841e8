"""What a DAG file imports with our modules beyond what Airflow itself imports: counted, as times vary."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

_COUNTED = """
import json, sys
from airflow.sdk import DAG, BaseHook, BaseOperator, BaseSensorOperator, task
with DAG("d"):
    pass
before = set(sys.modules)
{statement}
print(json.dumps(sorted(set(sys.modules) - before)))
"""

#: Modules of our own that may be imported: statuses, the platform's protocol, the waits, the faces.
OURS = 40
#: And others', parts of the standard library among them.
OTHERS = 3


def added_by(statement: str) -> set[str]:
    code = _COUNTED.format(statement=statement)
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(answer.stdout))


@pytest.mark.parametrize(
    "statement",
    [
        "from airflow_invocations.operators import InvokeActionOperator",
        "from airflow_invocations.sensors import InvocationSensor",
        "from airflow_invocations.decorators import invoke_action_task",
        "from airflow_invocations.retries import invocation_retry_policy",
        "from airflow_invocations.provider_info import get_provider_info",
    ],
)
def test_a_dag_file_imports_little(statement: str) -> None:
    added = added_by(statement)
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
