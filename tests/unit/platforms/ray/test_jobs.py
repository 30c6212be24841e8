"""The job of a request: variables, the setup that a shell runs, metadata, resources, limits."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from airflow_invocations.models import (
    ComputeRequirements,
    ContainerParameters,
    DagRunProvenance,
    InvocationRequest,
    InvocationSource,
)
from airflow_invocations.platforms import InvalidRequestError
from airflow_invocations.platforms.ray import jobs
from airflow_invocations.platforms.ray.catalogue import RayAction
from airflow_invocations.platforms.ray.records import started_in
from airflow_invocations.platforms.ray.settings import submission_id_of
from airflow_invocations.runtime import InvocationContext

from ....support.waiting import until

ID = "airflow-1"


def request(parameters: dict[str, Any] | None = None, **fields: Any) -> InvocationRequest:
    return InvocationRequest(
        invocation_source=InvocationSource.Trigger,
        invocation_source_id="airflow:dags/d/runs/r/tasks/t?try_number=1",
        idempotency_id="once",
        parameter_values=parameters,
        **fields,
    )


def job(action: dict[str, Any], asked: InvocationRequest, runtime_env: dict[str, Any] | None = None) -> Any:
    return jobs.job_of("a", RayAction(**{"entrypoint": "true", **action}), asked, ID, runtime_env or {})


def run(body: dict[str, Any], folder: Path, **variables: str) -> subprocess.Popen[str]:
    """Start a job as Ray does: its variables, which it expands, and the entrypoint in a shell."""
    environment = {"PATH": os.environ["PATH"], "TMPDIR": str(folder), **variables}
    for name, value in body["runtime_env"]["env_vars"].items():
        expanded = re.sub(r"\$\{?(\w+)\}?", lambda found: environment.get(found[1], found[0]), value)
        environment[name] = re.sub(r"\$\{[A-Z0-9_]+\}", "", expanded)
    return subprocess.Popen(
        body["entrypoint"],
        shell=True,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_submission_id_is_the_name_of_a_file() -> None:
    assert re.fullmatch(r"airflow-[0-9a-f]{32}", submission_id_of("any/id: ä"))
    assert submission_id_of("a") != submission_id_of("b")


def test_job_names_who_asked_and_for_what() -> None:
    body = job({"num_cpus": 0.5, "num_gpus": 1, "memory": 512, "resources": {"lidar": 1}}, request())
    assert body["submission_id"] == ID
    assert body["metadata"] == {
        "airflow_action": "a",
        "airflow_idempotency_id": "once",
        "airflow_source_type": "Trigger",
        "airflow_source_id": "airflow:dags/d/runs/r/tasks/t?try_number=1",
    }
    assert body["entrypoint_num_cpus"] == 0.5
    assert body["entrypoint_num_gpus"] == 1
    assert body["entrypoint_memory"] == 512 * 1024 * 1024
    assert body["entrypoint_resources"] == {"lidar": 1}
    assert body["entrypoint"].endswith("; true")


def test_requirements_of_the_request_replace_those_of_the_action() -> None:
    asked = request(compute_requirement_overrides=ComputeRequirements(vCPU=1024, memory=2048))
    body = job({"num_cpus": 8, "num_gpus": 1}, asked)
    assert (body["entrypoint_num_cpus"], body["entrypoint_memory"]) == (1, 2048 * 1024 * 1024)
    assert body["entrypoint_num_gpus"] == 1
    plain = job({}, request())
    assert not {name for name in plain if name.startswith("entrypoint_")}


def test_environments_are_merged() -> None:
    overrides = ContainerParameters(env_vars={"B": "request", "ROBOTO_LOG_LEVEL": "DEBUG"})
    body = job(
        {"runtime_env": {"pip": ["b"], "env_vars": {"A": "action", "B": "action"}}},
        request(container_parameter_overrides=overrides),
        {"pip": ["a"], "working_dir": "s3://b/c.zip", "env_vars": {"A": "connection", "C": "connection"}},
    )
    environment = body["runtime_env"]
    assert (environment["pip"], environment["working_dir"]) == (["b"], "s3://b/c.zip")
    named = {name: environment["env_vars"][name] for name in ("A", "B", "C", "ROBOTO_LOG_LEVEL")}
    assert named == {"A": "action", "B": "request", "C": "connection", "ROBOTO_LOG_LEVEL": "DEBUG"}


AWKWARD: dict[str, Any] = {
    "text": "two words 'quoted' \"twice\"\nand a line; $HOME ${HOME} ${NO_SUCH} $(id) `id` \\ ä",
    "list": [1, "$HOME", None],
    "empty": "",
    "number": 2.5,
    "nothing": None,
}


def test_parameters_arrive_as_they_are(tmp_path: Path) -> None:
    show = (
        'printf "%s\\0" "$ROBOTO_PARAM_text" "$ROBOTO_PARAM_list" "$ROBOTO_PARAM_empty" '
        '"$ROBOTO_PARAM_number" "${ROBOTO_PARAM_nothing-unset}"; cat "$ROBOTO_ACTION_PARAMETERS_FILE"'
    )
    process = run(job({"entrypoint": show}, request(AWKWARD)), tmp_path, HOME="/wrong")
    said, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    began, _, said = said.partition("\n")
    text, listed, empty, number, nothing, everything = said.split("\0")
    assert started_in(json.dumps({"logs": began}).encode()) is not None
    assert text == AWKWARD["text"]
    assert (json.loads(listed), empty, number, nothing) == (AWKWARD["list"], "", "2.5", "unset")
    assert json.loads(everything) == AWKWARD


def test_context_of_the_runtime_is_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = run(
        job({"entrypoint": "env -0; printf END; while :; do sleep 0.1; done"}, request({"speed": 3})),
        tmp_path,
    )
    assert process.stdout is not None
    said = ""
    while not said.endswith("\0END"):
        said += process.stdout.read(1)
    for variable in said.partition("\n")[2].split("\0"):
        name, _, value = variable.partition("=")
        if name.startswith("ROBOTO"):
            monkeypatch.setenv(name, value)
    context = InvocationContext.from_env()
    assert context.get_parameter("speed") == "3"
    assert (context.invocation_id, context.org_id) == (ID, "ray")
    assert context.input_dir.is_dir()
    assert context.output_dir.is_dir()
    assert context.get_input().files == []
    os.killpg(process.pid, signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 143
    until(lambda: not list(tmp_path.iterdir()))


def test_exit_code_is_that_of_the_command_and_its_folder_is_removed(tmp_path: Path) -> None:
    process = run(job({"entrypoint": "exit 65"}, request()), tmp_path)
    process.communicate(timeout=30)
    assert process.returncode == 65
    assert list(tmp_path.iterdir()) == []


def test_output_folder_of_the_action_is_kept(tmp_path: Path) -> None:
    outputs = tmp_path / "shared outputs"
    command = 'echo done > "$ROBOTO_OUTPUT_DIR/result.txt"'
    process = run(job({"entrypoint": command, "output_dir": str(outputs)}, request()), tmp_path)
    process.communicate(timeout=30)
    assert (outputs / ID / "result.txt").read_text() == "done\n"


def test_job_that_is_stopped_as_it_starts_does_not_run_its_command(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    process = run(job({"entrypoint": f"touch {mark}"}, request()), tmp_path)
    # Where Ray stops a job that was stopped in the queue: as soon as it has started it.
    time.sleep(0.05)
    os.killpg(process.pid, signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode != 0
    assert not mark.exists()


def test_provenance_is_in_the_environment() -> None:
    provenance = DagRunProvenance(dag_id="d$HOME", run_id="r", run_type="manual", task_id="t", try_number=1)
    asked = request(container_parameter_overrides=ContainerParameters(env_vars=provenance.environment()))
    variables = job({}, asked)["runtime_env"]["env_vars"]
    assert DagRunProvenance.from_environment(variables) == provenance
    assert "AIRFLOW_CTX_DAG_ID='d$HOME'" in base64.b64decode(variables["INVOCATION_SETUP"]).decode()


@pytest.mark.parametrize(
    ("parameters", "hint"),
    [
        (
            {"cuont": 1},
            "unknown parameter 'cuont'; missing: 'count'; it declares: count \\(integer, required\\)",
        ),
        ({"count": "many"}, "'count' must be an integer, not the text 'many'"),
        ({"count": 1, "note": "a\0b"}, "'ROBOTO_PARAM_note' can't be an environment variable"),
        ({"count": 1, "note": "a" * 200_000}, "bytes, allowed: 120,000; hand large data"),
    ],
)
def test_parameters_that_can_not_be_sent(parameters: dict[str, Any], hint: str) -> None:
    declared = [{"name": "count", "type": "integer", "required": True}, {"name": "note"}]
    with pytest.raises(InvalidRequestError, match=hint):
        job({"parameters": declared}, request(parameters))


def test_undeclared_parameter_whose_name_can_not_be_a_variable() -> None:
    with pytest.raises(InvalidRequestError, match="'a=b' can't be the name of a parameter"):
        job({}, request({"a=b": 1}))
