"""What only Ray does: jobs as actions see them, exit codes, resources, and other users' jobs."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from airflow_invocations.exceptions import (
    InvocationFailedError,
    InvocationPermanentError,
    exception_class_for,
)
from airflow_invocations.hooks import RayHook
from airflow_invocations.models import ComputeRequirements, InvocationStatus
from airflow_invocations.platforms import (
    ConflictError,
    InvalidRequestError,
)
from airflow_invocations.platforms.ray.platform import RayPlatform
from airflow_invocations.platforms.ray.settings import submission_id_of

from ..support.ray_node import ROOT, shared_node
from .conftest import Asking, end_of
from .on_ray import ACTIONS, catalogue

pytestmark = pytest.mark.anyio
S = InvocationStatus

#: Reads everything that the context of an action offers, and writes an output.
SHOW = """
import json, logging
from airflow_invocations.runtime import InvocationContext
context = InvocationContext.from_env()
(context.output_dir / "report.json").write_text("{}")
print(json.dumps({
    "id": context.invocation_id,
    "text": context.get_parameter("text"),
    "level": logging.getLevelName(context.log_level),
    "inputs": len(context.get_input().files),
}))
"""


@pytest.fixture
def show(tmp_path: Path) -> dict[str, Any]:
    """An action that uses this package's runtime, with the tests' own Python."""
    script = tmp_path / "show.py"
    script.write_text(SHOW)
    return {
        "entrypoint": f"{sys.executable} {script}",
        "runtime_env": {"env_vars": {"PYTHONPATH": str(ROOT / "provider"), "ROBOTO_LOG_LEVEL": "DEBUG"}},
        "output_dir": str(tmp_path / "outputs"),
    }


@pytest.fixture
def hook(show: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> RayHook:
    actions = {
        **catalogue(),
        "show": show,
        "exits": {"entrypoint": 'echo "no such bag"; exit "$ROBOTO_PARAM_code"'},
        "needs_gpus": {"entrypoint": "true", "num_gpus": 4},
    }
    connection = {"conn_type": "ray", "host": shared_node(), "extra": {"actions": actions}}
    monkeypatch.setenv("AIRFLOW_CONN_UNDER_TEST", json.dumps(connection))
    return RayHook("under_test")


@pytest.fixture
async def platform(hook: RayHook) -> AsyncIterator[RayPlatform]:
    opened = await hook.connect()
    assert isinstance(opened, RayPlatform)
    async with opened:
        yield opened


async def test_action_that_uses_the_runtime_runs_unchanged(
    hook: RayHook, platform: RayPlatform, asking: Asking, tmp_path: Path
) -> None:
    invoked = await platform.invoke("show", asking.request(text="costs $5, $HOME"))
    record = await end_of(hook, invoked.invocation_id)
    assert record.current.status is S.Completed, record.current.detail
    lines = [line.log for line in (await platform.logs(invoked.invocation_id)).items]
    assert json.loads(lines[-1]) == {
        "id": invoked.invocation_id,
        "text": "costs $5, $HOME",
        "level": "DEBUG",
        "inputs": 0,
    }
    assert (tmp_path / "outputs" / invoked.invocation_id / "report.json").exists()


@pytest.mark.parametrize(("code", "kind"), [(65, InvocationPermanentError), (1, InvocationFailedError)])
async def test_exit_code_decides_the_class_of_the_error(
    hook: RayHook, platform: RayPlatform, asking: Asking, code: int, kind: type[Exception]
) -> None:
    invoked = await platform.invoke("exits", asking.request(code=code))
    record = await end_of(hook, invoked.invocation_id)
    assert (record.current.exit_code, record.current.detail) == (code, f"exit code {code}: no such bag")
    assert exception_class_for(record) is kind


async def test_resources_that_no_node_has_are_rejected(platform: RayPlatform, asking: Asking) -> None:
    with pytest.raises(InvalidRequestError, match="it reserves GPU 4; there is no autoscaler"):
        await platform.invoke("needs_gpus", asking.request())
    asked = asking.request().model_copy(
        update={"compute_requirement_overrides": ComputeRequirements(vCPU=16384, memory=32768)}
    )
    with pytest.raises(InvalidRequestError, match=r"it reserves CPU 16, memory .* a node is CPU 1, memory"):
        await platform.invoke(ACTIONS.completes, asked)
    assert await platform.find(asking.dag_id, asking.run_id, None, None) == []


async def test_job_of_another_user_with_the_same_id_is_a_conflict(
    platform: RayPlatform, asking: Asking
) -> None:
    request = asking.request()
    theirs = submission_id_of(str(request.idempotency_id))
    body = {"entrypoint": "true # theirs", "submission_id": theirs}
    async with httpx.AsyncClient(base_url=platform.where, timeout=60) as client:
        (await client.post("api/jobs/", json=body)).raise_for_status()
    with pytest.raises(
        ConflictError, match=f"job {theirs}, .* belongs to another request; .*'true # theirs'"
    ):
        await platform.invoke(ACTIONS.completes, request)
