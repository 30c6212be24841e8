"""What an invocation's log says before its action starts: of inputs, and of parameters that are too large."""

from __future__ import annotations

import logging
import os
import shlex
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from airflow_invocations.exceptions import (
    InvocationFailedError,
    InvocationPermanentError,
    exception_class_for,
)
from airflow_invocations.models import (
    ActionParameter,
    ContainerParameters,
    FileSelector,
    InvocationInput,
    InvocationRecord,
    InvocationStatus,
    LogProcess,
    LogRecord,
    ParameterType,
    coerce_parameters,
)
from airflow_invocations.server.datasets import DatasetFiles
from airflow_invocations.server.db import CheckedInvocation, Store
from airflow_invocations.server.errors import InvalidRequestError
from airflow_invocations.server.execution.logs import LogFiles
from airflow_invocations.server.execution.process_limits import MAX_TOTAL, size_of_all
from airflow_invocations.server.execution.runner import Runner
from airflow_invocations.server.settings import ServerSettings

from .conftest import ORG, USER, create, declared, invoke, runner_of
from .test_runner import reached

pytestmark = pytest.mark.anyio

TERMINAL = [status for status in InvocationStatus if status.is_terminal]


@pytest.fixture
def settings(tmp_path: Path) -> ServerSettings:
    return ServerSettings(data_dir=tmp_path / "data", slots=1, grace=0.5)


@pytest.fixture
def logs(settings: ServerSettings) -> LogFiles:
    return LogFiles(settings.logs)


@pytest.fixture
async def runner(store: Store, logs: LogFiles, settings: ServerSettings) -> AsyncIterator[Runner]:
    """A runner at work."""
    one = runner_of(store, logs, settings)
    await one.start("http://127.0.0.1:1")
    yield one
    await one.stop()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "drive"
    folder.mkdir()
    (folder / "DRIVE.CSV").write_text("1")
    (folder / "Berlin.csv").write_text("2")
    return folder


@pytest.fixture
def dataset_id(store: Store, settings: ServerSettings, folder: Path) -> str:
    create(store, container_parameters=ContainerParameters(command=["ls", "-R", "../input"]))
    record, _ = DatasetFiles(store, settings.datasets).link("drive", folder, ORG, USER)
    return record.dataset_id


async def ended(store: Store, **request: Any) -> InvocationRecord:
    return await reached(store, invoke(store, **request).invocation_id, *TERMINAL)


def said(logs: LogFiles, record: InvocationRecord) -> list[LogRecord]:
    return logs.read(CheckedInvocation(record.invocation_id, ORG)).items


def move(old: Path, new: Path) -> None:
    old.rename(new)


def setup_lines(logs: LogFiles, record: InvocationRecord) -> list[str]:
    return [line.log for line in said(logs, record) if line.process is LogProcess.Setup]


@pytest.mark.parametrize("query", [None, "path"])
async def test_a_folder_that_is_away_for_a_moment_is_retried(
    store: Store, runner: Runner, logs: LogFiles, dataset_id: str, folder: Path, query: str | None
) -> None:
    if query is None:
        wanted: dict[str, Any] = {"data_source_id": dataset_id, "input_data": ["*.csv"]}
    else:
        selector = FileSelector(query=f'dataset_id = "{dataset_id}" AND path LIKE "%.csv"')
        wanted = {"data_source_id": dataset_id, "rich_input_data": InvocationInput(files=selector)}
    move(folder, folder.with_name("elsewhere"))
    away = await ended(store, **wanted)
    assert (away.current.detail or "").startswith("exit code 70: the input can't be resolved or downloaded: ")
    assert exception_class_for(away) is InvocationFailedError
    if query is not None:
        (said_first, _) = setup_lines(logs, away)
        assert said_first.startswith("the query uses the last known files: the folder of")
    move(folder.with_name("elsewhere"), folder)
    assert exception_class_for(await ended(store, **wanted)) is None


@pytest.mark.parametrize(
    "wanted",
    [
        {"rich_input_data": InvocationInput(files=FileSelector(ids=["fl_unknown"]))},
        {"rich_input_data": InvocationInput(files=FileSelector(ids=["fl_unknown"], query="size > 0"))},
    ],
)
async def test_error_of_the_request_is_not_retried(
    store: Store, runner: Runner, dataset_id: str, wanted: dict[str, Any]
) -> None:
    record = await ended(store, data_source_id=dataset_id, **wanted)
    assert (record.current.detail or "").startswith("exit code 64: ")
    assert exception_class_for(record) is InvocationPermanentError


async def test_messages_of_a_selection_are_in_the_log_of_the_invocation(
    store: Store, runner: Runner, logs: LogFiles, dataset_id: str
) -> None:
    nothing = await ended(store, data_source_id=dataset_id, input_data=["*.Csv"])
    assert nothing.last_status is InvocationStatus.Completed
    assert setup_lines(logs, nothing) == ["the input's selectors match no files"]
    selector = FileSelector(dataset_id=dataset_id, query="size > 0")
    wide = await ended(store, data_source_id=dataset_id, rich_input_data=InvocationInput(files=selector))
    assert setup_lines(logs, wide) == [
        f"dataset_id '{dataset_id}' applies to paths only, not to query, ids and names"
    ]


async def test_an_entry_that_its_pattern_would_have_matched_is_in_the_invocations_own_log(
    store: Store, runner: Runner, logs: LogFiles, dataset_id: str, folder: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    (folder / os.fsdecode(b"M\xfcnchen.csv")).write_text("3")
    (folder / "link.csv").symlink_to(folder / "Berlin.csv")
    (folder / "link.txt").symlink_to(folder / "Berlin.csv")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            record = await ended(store, data_source_id=dataset_id, input_data=["*.csv"])
            assert [line.log for line in said(logs, record)][-1] == "Berlin.csv"
            assert setup_lines(logs, record) == [
                (
                    f"left out of the input from dataset {dataset_id}: 1 symbolic link ('link.csv'), "
                    "1 name that isn't UTF-8 ('M\\xfcnchen.csv')"
                )
            ]
        (folder / "link.txt").unlink()
        record = await ended(store, data_source_id=dataset_id, input_data=["B*"])
        assert setup_lines(logs, record) == []
    # Once for each change.
    assert [entry.getMessage() for entry in caplog.records if entry.levelno == logging.WARNING] == [
        (
            f"left out of dataset {dataset_id}: 2 symbolic links (the first: 'link.csv'), "
            "1 name that isn't UTF-8 ('M\\xfcnchen.csv')"
        ),
        (
            f"left out of dataset {dataset_id}: 1 symbolic link ('link.csv'), "
            "1 name that isn't UTF-8 ('M\\xfcnchen.csv')"
        ),
    ]


#: Prints the sizes of the parameters: from the environment (None: not there), and from the file.
SIZES = """
import json, os
for name, value in json.load(open(os.environ["ROBOTO_ACTION_PARAMETERS_FILE"])).items():
    variable = os.environ.get("ROBOTO_PARAM_" + name)
    print(name, None if variable is None else len(variable.encode()), len(value))
"""


@pytest.mark.parametrize(
    ("values", "printed", "too_large"),
    [
        ({"p": "x" * 131_056}, ["p 131056 131056"], None),
        ({"p": "x" * 131_057}, ["p None 131057"], "'p'"),
        (
            {"p": "\N{SNOWMAN}" * 43_685, "q": "\N{SNOWMAN}" * 43_686},
            ["p 131055 43685", "q None 43686"],
            "'q'",
        ),
        ({"p": ["s3://drives/1.mcap"] * 7000, "q": "small"}, ["p None 7000", "q 5 5"], "'p'"),
        ({"p": "x" * 1_000_000}, ["p None 1000000"], "'p'"),
        (
            {f"p{n:02}": "x" * (100_000 + n) for n in range(25)},
            [f"p{n:02} {100_000 + n if n < 20 else None} {100_000 + n}" for n in range(25)],
            "'p20', 'p21', 'p22', 'p23', 'p24'",
        ),
    ],
    ids=["fits", "one more", "of several bytes", "a list", "a megabyte", "too much together"],
)
async def test_a_parameter_that_can_not_be_a_variable_is_in_the_file(
    store: Store, runner: Runner, logs: LogFiles, values: dict[str, Any], printed: list[str],
    too_large: str | None,
) -> None:  # fmt: skip
    command = ContainerParameters(command=[sys.executable, "-c", SIZES])
    create(store, container_parameters=command, parameters=declared(*values))
    record = await ended(store, parameter_values=values)
    assert record.last_status is InvocationStatus.Completed, record.current.detail
    assert [line.log for line in said(logs, record) if line.process is LogProcess.Action] == printed
    expected = (
        "too large for the environment, so only in the file that ROBOTO_ACTION_PARAMETERS_FILE names: "
        f"parameter {too_large} (a variable may have 131,071 bytes with its name, and all of them together "
        f"{MAX_TOTAL:,})"
    )
    assert setup_lines(logs, record) == ([] if too_large is None else [expected])


async def test_a_command_of_the_largest_size_that_is_taken_starts(store: Store, runner: Runner) -> None:
    def container(size: int) -> ContainerParameters:
        return ContainerParameters(command=["true", *["x" * 131_071] * 15, "x" * size])

    room = MAX_TOTAL - size_of_all(["true", *["x" * 131_071] * 15, ""], {})
    create(store, "fits", container_parameters=container(room))
    largest = await reached(store, invoke(store, "fits").invocation_id, *TERMINAL)
    # The variables of the server's own still find their place.
    assert largest.last_status is InvocationStatus.Completed, largest.current.detail
    create(store, "larger", container_parameters=container(room + 1))
    with pytest.raises(InvalidRequestError, match=f"allowed: {MAX_TOTAL:,}"):
        invoke(store, "larger")


@pytest.mark.parametrize(
    ("kind", "default", "given"),
    [
        (ParameterType.Boolean, True, "true"),
        (ParameterType.Boolean, "true", True),
        (ParameterType.Integer, "5", 5),
        (ParameterType.Number, "0.5", 0.5),
        (ParameterType.Array, ["roads", "lakes"], ["roads", "lakes"]),
        (ParameterType.Array, '["roads", "lakes"]', ["roads", "lakes"]),
        (ParameterType.Object, {"a": None}, {"a": None}),
        (ParameterType.String, "5", "5"),
    ],
)
async def test_a_default_arrives_as_a_value_that_is_given(
    store: Store, runner: Runner, logs: LogFiles, kind: ParameterType, default: Any, given: Any
) -> None:
    show = 'echo "$ROBOTO_PARAM_p"; cat "$ROBOTO_ACTION_PARAMETERS_FILE"'
    parameter = ActionParameter(name="p", type=kind, default=default)
    action = create(
        store, parameters=[parameter], container_parameters=ContainerParameters(command=["sh", "-c", show])
    )
    # As the operator gives it.
    values, problems = coerce_parameters(action, {"p": given})
    assert problems == []
    left_out, filled_in = await ended(store), await ended(store, parameter_values=values)
    assert [line.log for line in said(logs, left_out)] == [line.log for line in said(logs, filled_in)]
    assert len(said(logs, left_out)) == 2


@pytest.mark.parametrize("name", ["map_server", "no such thing"])
async def test_a_secret_that_is_not_set_says_how_to_set_it_and_is_not_retried(
    store: Store, runner: Runner, logs: LogFiles, name: str
) -> None:
    create(store, parameters=declared("password"))
    record = await ended(store, parameter_values={"password": f"roboto-secret://{name}"})
    reason = f"secret '{name}' isn't set (set it with: invocations secret set {shlex.quote(name)})"
    assert record.current.detail == f"exit code 78: {reason}"
    assert exception_class_for(record) is InvocationPermanentError
    assert setup_lines(logs, record) == [reason]
