"""The environment of an action, prepared by this package and read by the published client."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

import pydantic
import pytest

from airflow_invocations.models import (
    UNSPECIFIED_DATA_SOURCE,
    ActionParameter,
    InvocationInput,
    InvocationRecord,
)
from airflow_invocations.runtime import (
    ExitCode,
    InvocationContext,
    InvocationPaths,
    PlatformRejected,
    PlatformUnavailable,
    PreparedEnvironment,
    PrepareEnvException,
    input_of,
    prepare_invocation_environment,
)
from airflow_invocations.runtime.secrets import is_secret_uri, parse_secret_uri

from ..models.test_wire import INVOCATION
from . import samples
from .published import action_input, action_runtime, env, exceptions, secrets
from .published import actions as published
from .test_resolver import Catalog, Theirs

NO_DATASET = {"data_source_type": "Dataset", "data_source_id": UNSPECIFIED_DATA_SOURCE}
KNOWN = {("api_key", "og_1"): "s3cret", ("api_key", "og_2"): "of another é", ("empty", "og_1"): ""}


def prepare(folder: Path, **given: Any) -> PreparedEnvironment:
    """Prepare an invocation of og_1 in a folder."""
    spec = given.pop("files", None)
    defaults: dict[str, Any] = {
        "action_parameters": [],
        "parameter_values": {},
        "org_id": "og_1",
        "read_secret": lambda name, org_id: KNOWN[name, org_id],
        "input_data": None if spec is None else InvocationInput.model_validate({"files": spec}),
        "catalog": Catalog(),
        "requires_downloaded_inputs": True,
    }
    return prepare_invocation_environment(InvocationPaths.within(folder), **{**defaults, **given})


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an invocation's folder, which the environment of this process names."""
    folder = tmp_path / "iv_1"
    for name, value in InvocationPaths.within(folder).environment().items():
        monkeypatch.setenv(name, value)
    for name in ("DATASET_ID", "INVOCATION_ID", "ORG_ID", "API_KEY"):
        monkeypatch.setenv(f"ROBOTO_{name}", name)
    monkeypatch.setattr(env, "_roboto_env_instance", None)
    return folder


def contexts() -> list[Any]:
    return [InvocationContext.from_env(), action_runtime.InvocationContext.from_env()]


def test_default_is_used_when_no_value_is_given(folder: Path) -> None:
    declared = [ActionParameter(name=name, default=default) for name, default in DEFAULTS.items()]
    prepared = prepare(
        folder, action_parameters=declared, parameter_values={"b": "given", "c": None, "e": 2.5, "f": ["é"]}
    )
    assert prepared.parameters == {"a": "1", "b": "given", "c": None, "e": 2.5, "f": ["é"]}
    for context in contexts():
        assert [context.get_optional_parameter(name, "none") for name in "abcdef"] == [
            "1", "given", "none", "none", "2.5", "['é']",
        ]  # fmt: skip


DEFAULTS = {"a": 1, "b": "default", "c": "default", "d": None}


def test_secret_is_in_the_secrets_file_only(folder: Path) -> None:
    prepared = prepare(
        folder,
        action_parameters=[ActionParameter(name="default", default="roboto-secret://api_key")],
        parameter_values={"of_org": "roboto-secret://api_key@og_2", "plain": "api_key", "n": 1},
    )
    assert prepared.secrets == {"default": "s3cret", "of_org": "of another é"}
    assert "s3cret" not in repr(prepared)
    assert "s3cret" not in json.dumps(InvocationPaths.within(folder).environment())
    holding = [path.name for path in folder.rglob("*") if path.is_file() and b"s3cret" in path.read_bytes()]
    assert holding == ["secrets.json"]
    for context in contexts():
        assert context.get_parameter("default") == context.get_secret_parameter("default") == "s3cret"
        assert context.get_parameter("of_org") == "of another é"
        assert context.get_parameter("plain") == "api_key"


def test_secrets_of_an_earlier_attempt_are_removed(folder: Path) -> None:
    prepare(folder, parameter_values={"key": "roboto-secret://api_key"})
    prepare(folder, parameter_values={"key": "plain"})
    assert json.loads((folder / "config" / "secrets.json").read_text()) == {}


@pytest.mark.parametrize("uri", ["roboto-secret://none", "roboto-secret://api_key@og_9"])
def test_missing_secret_gives_the_published_exit_code(
    folder: Path, monkeypatch: pytest.MonkeyPatch, uri: str
) -> None:
    with pytest.raises(PrepareEnvException, match=f"parameter key: .*{uri}") as rejected:
        prepare(folder, parameter_values={"key": uri})
    assert rejected.value.exit_code is ExitCode.InternalError
    monkeypatch.setattr(secrets.Secret, "from_uri", _not_found)
    with pytest.raises(action_runtime.PrepareEnvException) as theirs:
        action_runtime.prepare_invocation_parameters(
            [], {"key": uri}, folder / "p.json", folder / "s.json", "og_1", None
        )
    assert theirs.value.exit_code == rejected.value.exit_code


def _not_found(**_: Any) -> Any:
    raise exceptions.RobotoNotFoundException("none")


def test_forbidden_secret_is_treated_as_a_missing_one(folder: Path) -> None:
    def reject(name: str, org_id: str) -> str:
        raise PermissionError(name)

    with pytest.raises(PrepareEnvException, match="can't be read"):
        prepare(folder, parameter_values={"key": "roboto-secret://api_key"}, read_secret=reject)


@pytest.mark.parametrize(
    "uri", ["roboto-secret://api_key@og-1", "roboto-secret://api_key@", "roboto-secret://a@b@c"]
)
def test_misspelt_organisation_is_not_read_as_another(folder: Path, uri: str) -> None:
    with pytest.raises(PrepareEnvException, match="names no secret") as rejected:
        prepare(folder, parameter_values={"key": uri})
    assert rejected.value.exit_code is ExitCode.UsageError


@pytest.mark.parametrize(
    "value",
    [
        "roboto-secret://a", "roboto-secret://a@og_1", "roboto-secret://a b/ç", "roboto-secret://", "",
        "roboto-secret://@og", " roboto-secret://a", "Roboto-Secret://a", "roboto-secret:/a", "x roboto-secret://a",
        "roboto-secret://a@og-1", "roboto-secret://a\nb",
    ],
)  # fmt: skip
def test_secret_uris_are_those_of_the_published_client(value: str) -> None:
    assert is_secret_uri(value) == secrets.is_secret_uri(value)
    if is_secret_uri(value) and "-1" not in value:
        theirs = secrets.secret.parse_secret_uri(value)
        assert parse_secret_uri(value) == (theirs.name, theirs.org_id)


def test_all_files_exist_and_are_private(folder: Path) -> None:
    prepare(folder, files={"ids": ["fl_1"]})
    named = {name: Path(path) for name, path in InvocationPaths.within(folder).environment().items()}
    for name, path in named.items():
        assert path.is_file() == name.endswith(("_FILE", "_MANIFEST")), name
        if path.is_file():
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, name
    assert stat.S_IMODE((folder / "config" / "secrets.json").stat().st_mode) == 0o600
    assert list(folder.glob("**/*.new")) == []
    for context in contexts():
        context.file_changeset_manager.put_tags("a", ["x"])


def test_file_is_private_from_the_first_byte_with_any_umask(folder: Path) -> None:
    before = os.umask(0)
    try:
        prepare(folder)
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*") if path.is_file()}
    assert modes == {0o600}


def places(folder: Path) -> dict[str, str]:
    """Return the path of each input file in the input folder, which both contexts agree on."""
    ours, theirs = (
        {file.file_id: (path, file.record.size) for file, path in context.get_input().files}
        for context in contexts()
    )
    assert ours == theirs
    for path, size in ours.values():
        assert path.stat().st_size == size
    return {file_id: str(path.relative_to(folder / "input")) for file_id, (path, _) in ours.items()}


def test_files_of_one_dataset_keep_their_paths(folder: Path) -> None:
    prepare(folder, files={"ids": ["fl_1", "fl_2"]})
    assert places(folder) == {"fl_1": "logs/a.csv", "fl_2": "logs/b.csv"}


def test_files_of_several_datasets_are_in_separate_folders(folder: Path) -> None:
    prepare(folder, files={"ids": ["fl_1", "fl_3", "fl_2"]})
    assert places(folder) == {
        "fl_1": "ds_1/logs/a.csv",
        "fl_2": "ds_1/logs/b.csv",
        "fl_3": "ds_2/日本/c.csv",
    }


def theirs_of(folder: Path) -> Any:
    """Return the files of a manifest, as the published client reads it."""
    text = (folder / "inputs.json").read_text()
    return action_input.ActionInputRecord.model_validate_json(text).files


def test_context_reads_what_the_published_preparation_writes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Secret:
        def read_value(self) -> pydantic.SecretStr:
            return pydantic.SecretStr("s3cret é")

    monkeypatch.setattr(secrets.Secret, "from_uri", lambda **_: Secret())
    values = {"key": "roboto-secret://x", "text": "é"}
    declared = [published.ActionParameter(name="n", default=2.5)]
    written = tmp_path / "p.json", tmp_path / "s.json"
    action_runtime.prepare_invocation_parameters(declared, values, *written, "og_1", None)
    context = InvocationContext("d", tmp_path, "i", "o", tmp_path, None, *written)
    assert [context.get_parameter(name) for name in ("key", "text", "n")] == ["s3cret é", "é", "2.5"]
    prepare(
        folder,
        action_parameters=[ActionParameter(name="n", default=2.5)],
        parameter_values=values,
        read_secret=lambda name, org_id: "s3cret é",
    )
    for ours, theirs in zip(("parameters.json", "config/secrets.json"), written, strict=True):
        assert json.loads((folder / ours).read_text()) == json.loads(theirs.read_text())


def test_manifest_is_that_of_the_published_preparation(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, ids in enumerate((["fl_1", "fl_2"], ["fl_1", "fl_3", "fl_2", "fl_4"])):
        theirs = Theirs()
        monkeypatch.setattr(
            action_runtime.ActionInputResolver, "from_env", lambda theirs=theirs, **_: theirs.resolver
        )
        target = tmp_path / f"theirs{number}"
        action_runtime.prepare_invocation_input_data(
            True,
            published.InvocationInput.model_validate({"files": {"ids": ids}}),
            target / "input",
            tmp_path / f"downloads{number}",
            target / "inputs.json",
            None,
            None,
        )
        here = tmp_path / f"ours{number}"
        prepare(here, files={"ids": ids})
        text = (target / "inputs.json").read_text().replace(str(target), str(here))
        assert json.loads((here / "inputs.json").read_text()) == json.loads(text)
        read = InvocationContext("d", here, "i", "o", here, target / "inputs.json").get_input()
        assert [file.file_id for file, _ in read.files] == [file.file_id for file, _ in theirs_of(target)]


def test_files_are_not_downloaded_when_not_required(folder: Path) -> None:
    catalog = Catalog()
    prepared = prepare(folder, files={"ids": ["fl_1"]}, catalog=catalog, requires_downloaded_inputs=False)
    assert catalog.downloaded == []
    assert [path for _, path in prepared.inputs.files] == [None]
    for context in contexts():
        assert [path for _, path in context.get_input().files] == [None]


def test_no_input_is_an_empty_manifest(folder: Path) -> None:
    prepare(folder)
    assert json.loads((folder / "inputs.json").read_text()) == {"files": [], "sessions": [], "topics": []}
    for context in contexts():
        assert list(context.get_input().files) == []


class Holding(Catalog):
    """A catalog with the given files."""

    def __init__(self, *found: dict[str, Any]) -> None:
        super().__init__()
        self.found = found

    def find_files(self, query: str) -> Any:
        from airflow_invocations.models.dataset import FileRecord

        return [FileRecord.model_validate(record) for record in self.found]


HOSTILE = [
    "../out", "../../etc/passwd", "/etc/passwd", "a/../../out", "..", ".", "", "a/../..", "x\0y", "x" * 256,
    "é" * 128, "//etc/passwd", "\ud800",
]  # fmt: skip


@pytest.mark.parametrize("path", HOSTILE)
@pytest.mark.parametrize("others", [(), (samples.file(9, "x", "ds_2"),)], ids=["one", "several"])
def test_path_outside_the_input_folder_is_rejected(folder: Path, path: str, others: Any) -> None:
    catalog = Holding({**samples.LEAST_FILE, "relative_path": path}, *others)
    with pytest.raises(PrepareEnvException, match="can't be stored") as rejected:
        prepare(folder, files={"query": "*"}, catalog=catalog)
    assert rejected.value.exit_code is ExitCode.DataError
    assert catalog.downloaded == []
    assert list((folder / "input").iterdir()) == []


@pytest.mark.parametrize("dataset_id", ["..", "../..", "/etc", "", "a/b"])
def test_dataset_id_outside_the_input_folder_is_rejected(folder: Path, dataset_id: str) -> None:
    catalog = Holding(samples.file(1, "x", dataset_id), samples.file(2, "y"))
    with pytest.raises(PrepareEnvException, match="not the id of a dataset") as rejected:
        prepare(folder, files={"query": "*"}, catalog=catalog)
    assert rejected.value.exit_code is ExitCode.DataError


@pytest.mark.parametrize(
    "path", ["a//b", "./a/b", "a/./b", "a/x/../b", "日本/\U0001f600 é\n.csv", "-rf", "..."]
)
def test_unusual_path_is_normalised(folder: Path, path: str) -> None:
    prepare(folder, files={"query": "*"}, catalog=Holding(samples.file(1, path)))
    expected = "a/b" if path.endswith("b") else path
    assert places(folder) == {"fl_1": expected}


@pytest.mark.parametrize(("first", "second"), [("a", "./a"), ("a", "a/b"), ("a/b/c", "a"), ("a", "x/../a")])
def test_colliding_files_are_rejected(folder: Path, first: str, second: str) -> None:
    catalog = Holding(samples.file(1, first), samples.file(2, second))
    with pytest.raises(PrepareEnvException) as rejected:
        prepare(folder, files={"query": "*"}, catalog=catalog)
    assert rejected.value.exit_code is ExitCode.DataError
    assert catalog.downloaded == []


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [
        (PlatformRejected("line 1, column 3"), ExitCode.UsageError),
        (PlatformUnavailable("no connection"), ExitCode.InternalError),
        (OSError(errno.ENOSPC, "No space left on device"), ExitCode.InternalError),
    ],
)
def test_exit_code_says_whose_fault_it_is(folder: Path, error: Exception, exit_code: ExitCode) -> None:
    class Failing(Catalog):
        def download_file(self, file: Any, destination: Path) -> None:
            raise error

    with pytest.raises(PrepareEnvException, match=str(error).replace("[", r"\[")) as rejected:
        prepare(folder, files={"ids": ["fl_1"]}, catalog=Failing())
    assert rejected.value.exit_code is exit_code
    assert str(int(exit_code)) in str(rejected.value)


def test_unknown_file_is_a_usage_error(folder: Path) -> None:
    with pytest.raises(PrepareEnvException, match="fl_none") as rejected:
        prepare(folder, files={"ids": ["fl_none"]})
    assert rejected.value.exit_code is ExitCode.UsageError


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"rich_input_data": None},
        {"rich_input_data": None, "input_data": []},
        {"rich_input_data": None, "data_source": NO_DATASET},
    ],
)
def test_input_of_an_invocation_is_that_of_the_published_client(fields: dict[str, Any]) -> None:
    record = {**INVOCATION, **fields}
    ours = input_of(InvocationRecord.model_validate(record))
    theirs = published.Invocation(published.InvocationRecord.model_validate(record), None).input_data
    assert (ours is None) == (theirs is None)
    if ours is not None and theirs is not None:
        assert ours.model_dump(mode="json") == theirs.model_dump(mode="json")


def test_paths_of_many_files_are_found_quickly(folder: Path) -> None:
    found = [samples.file(number, f"{number % 20}/{number}.csv", size=1) for number in range(500)]
    prepared = prepare(folder, files={"query": "*"}, catalog=Holding(*found))
    assert len(prepared.inputs.files) == 500
    assert sum(1 for path in (folder / "input").rglob("*.csv")) == 500
