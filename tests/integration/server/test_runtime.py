"""An action's own code under the local server: the published client's context and ours say the same."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from ...support.waiting import until

#: What an action reads of its context, whichever package that is from, as one line of JSON.
ACTION = """
import importlib, json, sys
module = importlib.import_module(sys.argv[1])
context = module.InvocationContext.from_env()
def attempt(read):
    try:
        return read()
    except Exception as error:
        return type(error).__name__
print(json.dumps({
    "dataset_id": context.dataset_id,
    "input_dir": str(context.input_dir),
    "output_dir": str(context.output_dir),
    "invocation_id": context.invocation_id,
    "org_id": context.org_id,
    "dry_run": context.is_dry_run,
    "log_level": context.log_level,
    "files": len(context.get_input().files),
    "who": context.get_parameter("who"),
    "count": context.get_parameter("count"),
    "default": context.get_optional_parameter("nothing", "fallback"),
    "missing": attempt(lambda: context.get_parameter("nothing")),
    "secret": attempt(lambda: context.get_secret_parameter("who")),
    "status": context.invocation.current_status.name,
    "dataset": attempt(lambda: context.dataset),
}))
"""


@pytest.fixture
def action(server: Any) -> str:
    body = {
        "name": "reads_its_context",
        "parameters": [{"name": "who", "required": True}, {"name": "count", "default": "7"}],
        "container_parameters": {"command": ["true"]},
    }
    assert server.request("POST", "v1/actions", json=body).status_code in (200, 409)
    return str(body["name"])


def told_by(server: Any, action: str, module: str) -> dict[str, Any]:
    """What an action says of its context, with the paths and ids of its own invocation made equal."""
    invocation = {
        "invocation_source": "Manual",
        "parameter_values": {"who": "ada \N{SNOWMAN}"},
        "container_parameter_overrides": {"command": [sys.executable, "-c", ACTION, module]},
    }
    answer = server.request("POST", f"v1/actions/{action}/invoke", json=invocation)
    invocation_id = answer.json()["data"]["invocation_id"]
    path = f"v1/actions/invocations/{invocation_id}"
    record = until(
        lambda: (r := server.request("GET", path).json()["data"])["last_status"] >= 5 and r, within=60
    )
    lines = server.request("GET", f"{path}/logs").json()["data"]["items"]
    assert record["last_status"] == 5, lines
    said: dict[str, Any] = json.loads("".join(line["log"] for line in lines).replace(invocation_id, "IV"))
    assert Path(said["output_dir"]).is_relative_to(server.data_dir)
    return said


def test_both_contexts_say_the_same(server: Any, action: str) -> None:
    ours = told_by(server, action, "airflow_invocations.runtime")
    theirs = told_by(server, action, "roboto")
    assert ours == theirs
    assert (ours["who"], ours["count"], ours["default"]) == ("ada \N{SNOWMAN}", "7", "fallback")
    assert (ours["invocation_id"], ours["status"]) == ("IV", "Processing")
    assert ours["missing"] == ours["secret"] == ours["dataset"] == "ActionRuntimeException"
