"""What happens to an invocation whose input can't be read, or isn't all there, and where it says so."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from airflow_invocations.exceptions import InvocationFailedError, InvocationUnmendableError, verdict_on
from airflow_invocations.model import (
    ContainerParameters,
    FileSelector,
    InvocationInput,
    InvocationRecord,
    InvocationStatus,
    LogProcess,
    LogRecord,
)
from airflow_invocations.service.datasets import DatasetFiles
from airflow_invocations.service.logs import LogFiles
from airflow_invocations.service.runner import Runner
from airflow_invocations.service.settings import ServiceSettings
from airflow_invocations.service.store import CheckedInvocation, Store

from .conftest import ORG, USER, create, invoke, runner_of
from .test_runner import reached

pytestmark = pytest.mark.anyio

TERMINAL = [status for status in InvocationStatus if status.is_terminal]


@pytest.fixture
def settings(tmp_path: Path) -> ServiceSettings:
    return ServiceSettings(data_dir=tmp_path / "data", slots=1, grace=0.5)


@pytest.fixture
def logs(settings: ServiceSettings) -> LogFiles:
    return LogFiles(settings.logs)


@pytest.fixture
async def runner(store: Store, logs: LogFiles, settings: ServiceSettings) -> AsyncIterator[Runner]:
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
def dataset_id(store: Store, settings: ServiceSettings, folder: Path) -> str:
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
    assert (away.current.detail or "").startswith("exit code 70: the input can't be had: ")
    assert verdict_on(away) is InvocationFailedError
    if query is not None:
        (said_first, _) = setup_lines(logs, away)
        assert said_first.startswith("the query knows only files that were there earlier: the folder of")
    move(folder.with_name("elsewhere"), folder)
    assert verdict_on(await ended(store, **wanted)) is None


@pytest.mark.parametrize(
    "wanted",
    [
        {"rich_input_data": InvocationInput(files=FileSelector(ids=["fl_unknown"]))},
        {"rich_input_data": InvocationInput(files=FileSelector(ids=["fl_unknown"], query="size > 0"))},
    ],
)
async def test_what_the_request_got_wrong_is_not_retried(
    store: Store, runner: Runner, dataset_id: str, wanted: dict[str, Any]
) -> None:
    record = await ended(store, data_source_id=dataset_id, **wanted)
    assert (record.current.detail or "").startswith("exit code 64: ")
    assert verdict_on(record) is InvocationUnmendableError


async def test_what_a_selection_has_to_say_is_in_the_invocations_own_log(
    store: Store, runner: Runner, logs: LogFiles, dataset_id: str
) -> None:
    nothing = await ended(store, data_source_id=dataset_id, input_data=["*.Csv"])
    assert nothing.last_status is InvocationStatus.Completed
    assert setup_lines(logs, nothing) == ["the input's selectors select no files"]
    selector = FileSelector(dataset_id=dataset_id, query="size > 0")
    wide = await ended(store, data_source_id=dataset_id, rich_input_data=InvocationInput(files=selector))
    assert setup_lines(logs, wide) == [
        f"dataset_id '{dataset_id}' narrows paths only: it doesn't narrow query, ids, names"
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
