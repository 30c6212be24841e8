"""The context behaves as the published client's: the same action in the same environments sees the same."""

from __future__ import annotations

import inspect
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from airflow_invocations.models import UNSPECIFIED_DATA_SOURCE
from airflow_invocations.runtime import (
    ActionRuntime,
    ActionRuntimeException,
    InvocationContext,
    PlatformRejected,
)

from . import samples
from .published import action_runtime as published

PARAMETERS: dict[str, Any] = {
    "text": "é=\n",
    "empty": "",
    "number": 2.5,
    "integer": 7,
    "yes": True,
    "nothing": None,
    "list": [1, "a", None],
    "object": {"a": {"b": [True]}},
    "secret": "roboto-secret://api_key",
    "secret of org": "roboto-secret://api_key@og_1",
    "secret with rest": "roboto-secret://api_key@og-1/x",
    "secret without org": "roboto-secret://api_key@",
    "secret not written": "roboto-secret://other",
    "empty secret": "roboto-secret://empty",
    "no secret": "roboto-secret://",
    "no secret either": "roboto-secret://@og_1",
    "no secret at all": " roboto-secret://api_key",
    "http": "https://example.com",
}
SECRETS = {
    "secret": "s3cret",
    "secret of org": "s3cret of org",
    "secret with rest": "rest",
    "secret without org": "without",
    "empty secret": "",
    "no parameter": "only in the secrets",
}
MANIFEST = {
    "files": [
        [samples.FILE, "/in/logs/a.csv"],
        [samples.LEAST_FILE, None],
        [samples.file(2, "日本/é \U0001f600.csv", "ds_2"), "/in/日本/é \U0001f600.csv"],
    ],
    "sessions": [samples.SESSION, samples.LEAST_SESSION],
    "topics": [samples.TOPIC, samples.LEAST_TOPIC],
}
#: Intended differences are not among the scenarios; see the last tests.
SCENARIOS: dict[str, dict[str, Any]] = {
    "all is there": {},
    "the old name": {"class": "ActionRuntime"},
    **{
        f"{name} {state}": {"environment": {f"ROBOTO_{name}": value}}
        for name in (
            "DATASET_ID", "INVOCATION_ID", "ORG_ID", "INPUT_DIR", "OUTPUT_DIR", "ACTION_PARAMETERS_FILE",
            "ACTION_RUNTIME_CONFIG_DIR", "ACTION_INPUTS_MANIFEST", "LOG_LEVEL",
        )
        for state, value in (("isn't set", None), ("is empty", ""))
    },
    "no changesets": {"environment": {"ROBOTO_FILE_METADATA_CHANGESET_FILE": None}},
    "no folder for changesets": {"environment": {"ROBOTO_FILE_METADATA_CHANGESET_FILE": "{folder}/no/c"}},
    "changesets not made yet": {"environment": {"ROBOTO_FILE_METADATA_CHANGESET_FILE": "{folder}/new.jsonl"}},
    "no input folder": {"environment": {"ROBOTO_INPUT_DIR": "{folder}/nowhere"}},
    "an output folder that is a file": {"environment": {"ROBOTO_OUTPUT_DIR": "{folder}/parameters.json"}},
    "no dataset": {"environment": {"ROBOTO_DATASET_ID": UNSPECIFIED_DATA_SOURCE}},
    **{
        f"dry run {value!r}": {"environment": {"ROBOTO_DRY_RUN": value}}
        for value in (None, "TRUE", "1", "t", "Yes", "on", "false", "0", "off", "F", "", "maybe", " yes", "2")
    },
    **{
        f"log level {value!r}": {"environment": {"ROBOTO_LOG_LEVEL": value}}
        for value in ("DEBUG", "INFO", "WARNING", "ERROR", "debug", "CRITICAL", "10", "WARN")
    },
    **{
        f"{file} {state}": {"files": {file: content}}
        for file in ("parameters.json", "config/secrets.json", "inputs.json")
        for state, content in (
            ("isn't there", None), ("is empty", ""), ("isn't JSON", "{"), ("is a list", "[]"),
            ("is null", "null"), ("is an empty object", "{}"), ("is blank", "\n"),
        )
    },
    "a manifest of paths only": {"files": {"inputs.json": json.dumps({"files": [["a", "b"]]})}},
    "a manifest of a newer platform": {
        "files": {"inputs.json": json.dumps({"files": [[{**samples.FILE, "new": 1}, None]], "new": []})}
    },
}  # fmt: skip


def prepared(folder: Path, scenario: dict[str, Any]) -> dict[str, str]:
    """Write a scenario's files into a folder; return its environment."""
    for name in ("input", "output", "config"):
        (folder / name).mkdir(parents=True)
    contents = {
        "parameters.json": json.dumps(PARAMETERS),
        "config/secrets.json": json.dumps(SECRETS),
        "inputs.json": json.dumps(MANIFEST, ensure_ascii=False),
        "changeset.jsonl": "",
        **scenario.get("files", {}),
    }
    for name, content in contents.items():
        if content is not None:
            (folder / name).write_text(content)
    environment = {
        "ROBOTO_DATASET_ID": "ds_1",
        "ROBOTO_INVOCATION_ID": "iv_1",
        "ROBOTO_ORG_ID": "og_1",
        "ROBOTO_INPUT_DIR": "{folder}/input",
        "ROBOTO_OUTPUT_DIR": "{folder}/output",
        "ROBOTO_ACTION_RUNTIME_CONFIG_DIR": "{folder}/config",
        "ROBOTO_ACTION_PARAMETERS_FILE": "{folder}/parameters.json",
        "ROBOTO_ACTION_INPUTS_MANIFEST": "{folder}/inputs.json",
        "ROBOTO_FILE_METADATA_CHANGESET_FILE": "{folder}/changeset.jsonl",
        "ROBOTO_LOG_LEVEL": "WARNING",
        "ROBOTO_DRY_RUN": "true",
        "ROBOTO_API_KEY": "t0ken",
        "ROBOTO_SERVICE_ENDPOINT": "http://127.0.0.1:1",
        **scenario.get("environment", {}),
    }
    return {
        name: value.replace("{folder}", str(folder))
        for name, value in environment.items()
        if value is not None
    }


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Return what both implementations saw and wrote in every scenario."""
    found: dict[str, dict[str, Any]] = {}
    for module in ("roboto.action_runtime", "airflow_invocations.runtime"):
        folders = {name: tmp_path_factory.mktemp("scenario") / "here" for name in SCENARIOS}
        asked = [
            {
                "class": scenario.get("class", "InvocationContext"),
                "environment": prepared(folders[name], scenario),
            }
            for name, scenario in SCENARIOS.items()
        ]
        ours = module.startswith("airflow")
        answer = subprocess.run(
            [
                sys.executable,
                *(["-W", "error"] if ours else []),
                str(Path(__file__).with_name("observe.py")),
                module,
            ],
            input=json.dumps(asked),
            env={
                "PATH": os.environ["PATH"],
                "OBSERVED_PARAMETERS": json.dumps([*PARAMETERS, *SECRETS, "unknown"]),
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert answer.returncode == 0, answer.stderr
        for (name, folder), seen in zip(folders.items(), json.loads(answer.stdout), strict=True):
            outputs = {path.name: path.read_text() for path in (folder / "output").iterdir()}
            result = json.loads(json.dumps({**seen, "outputs": outputs}).replace(str(folder), "{folder}"))
            found.setdefault(name, {})["ours" if ours else "theirs"] = result
    return found


@pytest.mark.parametrize("name", SCENARIOS)
def test_same_action_sees_the_same_values(observed: dict[str, dict[str, Any]], name: str) -> None:
    assert observed[name]["ours"] == observed[name]["theirs"]


def test_the_scenarios_see_something(observed: dict[str, dict[str, Any]]) -> None:
    seen = observed["all is there"]["ours"]
    assert seen["made"] == "yes"
    assert seen["parameter number"] == "2.5"
    assert seen["parameter secret"] == "s3cret"
    assert seen["parameter secret not written"] == {"raises": "ActionRuntimeException"}
    assert seen["input"]["by name"] == ["tp_1", "tp_1"]
    assert seen["outputs"] == {"report.json": '{"of": "iv_1"}'}
    assert seen["log_level"] == logging.WARNING
    assert observed["ORG_ID isn't set"]["ours"]["made"] == {"raises": "ActionRuntimeException"}
    assert observed["dry run 'maybe'"]["ours"]["made"] == {"raises": "ValueError"}
    assert observed["the old name"]["ours"]["warnings"] == observed["all is there"]["ours"]["warnings"] + 1


def arguments_of(function: Any) -> list[tuple[str, Any, Any]]:
    signature = inspect.signature(function)
    return [(p.name, p.kind, p.default) for p in signature.parameters.values()]


@pytest.mark.parametrize(
    "name",
    ["__init__", "from_env", "get_input", "get_optional_parameter", "get_parameter", "get_secret_parameter"],
)
def test_signatures_are_those_of_the_published_context(name: str) -> None:
    theirs = getattr(published.InvocationContext, name)
    assert arguments_of(getattr(InvocationContext, name)) == arguments_of(theirs)


def test_context_has_every_public_name_of_the_published_one() -> None:
    def public(context: Any) -> set[str]:
        return {name for name in dir(context) if not name.startswith("_")}

    assert public(InvocationContext) == public(published.InvocationContext)
    assert public(ActionRuntime) == public(published.ActionRuntime)


def direct(tmp_path: Path, **fields: Any) -> InvocationContext:
    given: dict[str, Any] = {
        "dataset_id": "ds_1",
        "input_dir": tmp_path,
        "invocation_id": "iv_1",
        "org_id": "og_1",
        "output_dir": tmp_path,
    }
    return InvocationContext(**{**given, **fields})


def test_context_can_be_created_from_values_without_a_platform(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ROBOTO_API_KEY", "ROBOTO_BEARER_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "p.json").write_text('{"a": 1}')
    context = direct(tmp_path, parameters_file=tmp_path / "p.json")
    assert (context.dataset_id, context.invocation_id, context.org_id) == ("ds_1", "iv_1", "og_1")
    assert context.input_dir == context.output_dir == tmp_path
    assert context.get_parameter("a") == "1"
    assert (context.is_dry_run, context.log_level) == (False, logging.INFO)
    with pytest.raises(ActionRuntimeException, match="ROBOTO_ACTION_INPUTS_MANIFEST"):
        context.get_input()
    # The published context can't be created without a token.
    with pytest.raises(PlatformRejected, match="ROBOTO_API_KEY"):
        _ = context.dataset


@pytest.mark.parametrize("name", ["DATASET_ID", "INVOCATION_ID", "ORG_ID", "INPUT_DIR", "OUTPUT_DIR"])
def test_error_names_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for variable, value in prepared(tmp_path / "here", {}).items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setenv(f"ROBOTO_{name}", "")
    with pytest.raises(ActionRuntimeException, match=f"ROBOTO_{name} is not set"):
        InvocationContext.from_env()


def test_error_never_contains_a_secret(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text('{"a": "roboto-secret://x"}')
    (tmp_path / "s.json").write_text('{"a": "s3cret", }')
    context = direct(tmp_path, parameters_file=tmp_path / "p.json", secrets_file=tmp_path / "s.json")
    with pytest.raises(ActionRuntimeException) as caught:
        context.get_parameter("a")
    assert "s3cret" not in str(caught.value)
    assert "s.json" in str(caught.value)


def test_files_are_read_once(tmp_path: Path) -> None:
    parameters = tmp_path / "p.json"
    parameters.write_text('{"a": 1}')
    context = direct(tmp_path, parameters_file=parameters)
    assert context.get_parameter("a") == "1"
    parameters.write_text('{"a": 2}')
    assert context.get_parameter("a") == "1"


def test_deprecated_name_logs_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ActionRuntime("ds_1", tmp_path, "iv_1", "og_1", tmp_path)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "deprecated" in caplog.text
