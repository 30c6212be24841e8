"""The workspace: what an action's process finds there, and that nothing of the server's own is in it."""

from __future__ import annotations

import json
import os
import stat
import sys
from pathlib import Path
from typing import Any

import pytest

from airflow_invocations.models import ContainerParameters, InvocationRecord
from airflow_invocations.server.db import Store
from airflow_invocations.server.execution.workspace import Access, Workspace

from .conftest import create, declared, invoke, prepare

ACCESS = Access("http://127.0.0.1:1", "t0ken-of-this-run")


@pytest.fixture
def record(store: Store) -> InvocationRecord:
    create(
        store,
        timeout=7,
        container_parameters=ContainerParameters(command=["x"], env_vars={"A": "own"}),
        parameters=declared("text", "number", "nothing", "deep"),
    )
    return invoke(
        store,
        parameter_values={"text": "é=\n", "number": 2.5, "nothing": None, "deep": {"a": [1, True]}},
        container_parameter_overrides=ContainerParameters(env_vars={"ROBOTO_LOG_LEVEL": "DEBUG", "B": ""}),
    )


@pytest.fixture
def workspace(tmp_path: Path, record: InvocationRecord, store: Store) -> Workspace:
    workspace = Workspace(tmp_path / "workspaces" / record.invocation_id)
    prepare(workspace, record, store)
    return workspace


def test_the_environment_is_what_the_api_promises_and_nothing_else(
    workspace: Workspace, record: InvocationRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_OF_THE_SERVICE", "1")
    monkeypatch.setenv("ROBOTO_PARAM_LEFT", "1")
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    environment = workspace.environment(record, ACCESS, ["x"], print)
    assert set(environment) == {
        "A", "AWS_EC2_METADATA_DISABLED", "AWS_ENDPOINT_URL_S3",
        "AWS_ENDPOINT_URL_SECRETS_MANAGER", "B", "HOME",
        "INVOCATIONS_SERVICE", "LANG", "PATH", "PYTHONUNBUFFERED", "TMPDIR",
        "ROBOTO_ACTION_INPUTS_MANIFEST", "ROBOTO_ACTION_PARAMETERS_FILE", "ROBOTO_ACTION_RUNTIME_CONFIG_DIR",
        "ROBOTO_ACTION_TIMEOUT", "ROBOTO_API_KEY", "ROBOTO_BEARER_TOKEN", "ROBOTO_DATASET_ID",
        "ROBOTO_DATASET_METADATA_CHANGESET_FILE", "ROBOTO_DRY_RUN", "ROBOTO_FILE_METADATA_CHANGESET_FILE",
        "ROBOTO_INPUT_DIR", "ROBOTO_INVOCATION_ID", "ROBOTO_LOG_LEVEL", "ROBOTO_ORG_ID", "ROBOTO_OUTPUT_DIR",
        "ROBOTO_PARAM_deep", "ROBOTO_PARAM_nothing", "ROBOTO_PARAM_number", "ROBOTO_PARAM_text",
        "ROBOTO_SERVICE_ENDPOINT",
    }  # fmt: skip
    assert environment["ROBOTO_INVOCATION_ID"] == record.invocation_id
    assert environment["ROBOTO_ORG_ID"] == record.org_id
    assert environment["ROBOTO_DATASET_ID"] == record.data_source.data_source_id
    assert environment["ROBOTO_ACTION_TIMEOUT"] == "7"
    assert environment["ROBOTO_DRY_RUN"] == "false"
    assert environment["ROBOTO_SERVICE_ENDPOINT"] == ACCESS.endpoint
    assert environment["ROBOTO_API_KEY"] == environment["ROBOTO_BEARER_TOKEN"] == ACCESS.token


def test_parameters_are_texts_as_the_client_returns_them(
    workspace: Workspace, record: InvocationRecord
) -> None:
    environment = workspace.environment(record, ACCESS, ["x"], print)
    assert environment["ROBOTO_PARAM_text"] == "é=\n"
    assert environment["ROBOTO_PARAM_number"] == "2.5"
    assert environment["ROBOTO_PARAM_nothing"] == "None"
    assert environment["ROBOTO_PARAM_deep"] == "{'a': [1, True]}"
    assert json.loads(Path(environment["ROBOTO_ACTION_PARAMETERS_FILE"]).read_bytes()) == {
        "text": "é=\n",
        "number": 2.5,
        "nothing": None,
        "deep": {"a": [1, True]},
    }


def test_the_actions_own_variables_win(workspace: Workspace, record: InvocationRecord) -> None:
    environment = workspace.environment(record, ACCESS, ["x"], print)
    assert (environment["A"], environment["B"]) == ("own", "")
    assert environment["ROBOTO_LOG_LEVEL"] == "DEBUG"


def test_this_python_is_the_first_on_the_path(workspace: Workspace, record: InvocationRecord) -> None:
    path = workspace.environment(record, ACCESS, ["x"], print)["PATH"].split(os.pathsep)
    assert path[0] == str(Path(sys.executable).parent)
    assert path[1:] == os.environ["PATH"].split(os.pathsep)


def test_every_place_that_the_environment_names_is_there_and_ours_alone(
    workspace: Workspace, record: InvocationRecord
) -> None:
    environment = workspace.environment(record, ACCESS, ["x"], print)
    named = {
        name: Path(value) for name, value in environment.items() if value.startswith(str(workspace.folder))
    }
    assert set(named) == {
        "HOME", "TMPDIR", "ROBOTO_INPUT_DIR", "ROBOTO_OUTPUT_DIR", "ROBOTO_ACTION_RUNTIME_CONFIG_DIR",
        "ROBOTO_ACTION_PARAMETERS_FILE", "ROBOTO_ACTION_INPUTS_MANIFEST",
        "ROBOTO_DATASET_METADATA_CHANGESET_FILE", "ROBOTO_FILE_METADATA_CHANGESET_FILE",
    }  # fmt: skip
    for name, path in named.items():
        assert path.is_file() == name.endswith(("_FILE", "_MANIFEST")), name
        if path.is_file():
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert json.loads(named["ROBOTO_ACTION_INPUTS_MANIFEST"].read_text()) == {
        "files": [],
        "sessions": [],
        "topics": [],
    }
    assert json.loads((named["ROBOTO_ACTION_RUNTIME_CONFIG_DIR"] / "secrets.json").read_text()) == {}


def test_the_next_attempt_finds_nothing_of_the_one_before(
    workspace: Workspace, record: InvocationRecord, store: Store, tmp_path: Path
) -> None:
    kept = tmp_path / "kept"
    kept.write_text("not ours to remove")
    (workspace.paths.output_dir / "report.json").write_text("half")
    (workspace.work / "link").symlink_to(tmp_path)
    (workspace.folder / "input" / "read-only").mkdir(mode=0o500)
    (workspace.folder / "parameters.json").write_text("changed")
    prepare(workspace, record, store)
    assert list(workspace.paths.output_dir.iterdir()) == list(workspace.work.iterdir()) == []
    assert json.loads((workspace.folder / "parameters.json").read_text())["number"] == 2.5
    assert kept.exists()


@pytest.mark.parametrize("value", ["x" * 10_000, "roboto", "\u2028", ""])
def test_a_value_is_the_same_in_the_file_and_in_the_environment(
    tmp_path: Path, store: Store, value: Any
) -> None:
    create(store, parameters=declared("v"))
    record = invoke(store, parameter_values={"v": value})
    workspace = Workspace(tmp_path / "workspace")
    prepare(workspace, record, store)
    environment = workspace.environment(record, ACCESS, ["x"], print)
    assert environment["ROBOTO_PARAM_v"] == value
    assert json.loads(Path(environment["ROBOTO_ACTION_PARAMETERS_FILE"]).read_bytes()) == {"v": value}
