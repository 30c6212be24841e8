"""Fetching logs from the real server: to the task's log, an XCom within its limit, a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG, ObjectStoragePath

from airflow_invocations.exceptions import InvocationLostError, RequestRejectedError
from airflow_invocations.hooks import RobotoHook
from airflow_invocations.operators import FetchInvocationLogsOperator

from .conftest import Task, end_of, script
from .test_sensor import invoke_action


def ended(hook: RobotoHook, command: str) -> str:
    invocation_id = invoke_action(hook, script(hook, command))
    end_of(hook, invocation_id)
    return invocation_id


@pytest.fixture
def counted(hook: RobotoHook) -> str:
    """An invocation whose log is the numbers from 1 to 500."""
    return ended(hook, "seq 1 500")


def fetch(task: Task, **arguments: Any) -> dict[str, Any]:
    return FetchInvocationLogsOperator(task_id="fetch", **arguments).execute(task.context)


def numbers(first: int, last: int) -> list[str]:
    return [str(number) for number in range(first, last + 1)]


@pytest.mark.parametrize(("tail", "first"), [(None, 1), (3, 498), (1000, 1)])
def test_to_the_tasks_log(
    counted: str, task: Task, action_log: list[str], tail: int | None, first: int
) -> None:
    result = fetch(task, invocation_id={"invocation_id": counted}, tail=tail)
    assert action_log == numbers(first, 500)
    assert result == {
        "invocation_id": counted, "count": 501 - first, "left_out": 0, "lines": None, "path": None
    }  # fmt: skip
    assert task.pushed["_link_InvocationLogsLink"].endswith(f"{counted}#log")


@pytest.mark.parametrize(
    ("tail", "max_bytes", "first", "left_out"),
    [
        (None, 10_000, 1, 0),
        (None, 70, 491, 490),
        (20, 70, 491, 10),
        (5, 70, 496, 0),
        (None, 6, 501, 500),
    ],
)
def test_to_an_xcom_as_much_as_fits(
    counted: str, task: Task, tail: int | None, max_bytes: int, first: int, left_out: int
) -> None:
    result = fetch(task, invocation_id=counted, destination="xcom", tail=tail, max_bytes=max_bytes)
    assert result["lines"] == numbers(first, 500)
    assert (result["count"], result["left_out"]) == (501 - first, left_out)


@pytest.mark.parametrize("line", ["", "ä€🤖", '\\"'])
def test_lines_fit_an_xcom_with_any_content(hook: RobotoHook, task: Task, line: str) -> None:
    lines = ended(hook, f"for i in $(seq 300); do printf '%s\\n' '{line}'; done")
    result = fetch(task, invocation_id=lines, destination="xcom", max_bytes=1000)
    assert set(result["lines"]) == {line}
    assert 900 < len(json.dumps(result["lines"])) <= 1000
    assert result["count"] + result["left_out"] == 300


@pytest.mark.parametrize("tail", [None, 5])
def test_a_log_that_can_not_be_read_leaves_the_file_of_an_earlier_try(
    hook: RobotoHook, task: Task, tmp_path: Path, tail: int | None
) -> None:
    (tmp_path / "the.log").write_text("kept")
    place = f"file://{tmp_path / 'the.log'}"
    with pytest.raises(InvocationLostError):
        fetch(task, invocation_id="iv_unknown", destination=place, tail=tail)
    assert (tmp_path / "the.log").read_text() == "kept"
    result = fetch(task, invocation_id=ended(hook, "true"), destination=place, tail=tail)
    assert ((tmp_path / "the.log").read_text(), result["count"]) == ("", 0)


@pytest.mark.parametrize(("tail", "first"), [(None, 1), (3, 498)])
@pytest.mark.parametrize("as_url", [True, False])
def test_to_a_file(
    counted: str, task: Task, tmp_path: Path, tail: int | None, first: int, as_url: bool
) -> None:
    url = f"file://{tmp_path / 'the.log'}"
    place = url if as_url else ObjectStoragePath(url)
    result = fetch(task, invocation_id=counted, destination=place, tail=tail)
    assert (tmp_path / "the.log").read_text() == "".join(f"{line}\n" for line in numbers(first, 500))
    assert (result["path"], result["count"]) == (url, 501 - first)


def test_a_folder_of_this_machine_that_is_not_there_is_made(counted: str, task: Task, tmp_path: Path) -> None:
    fetch(task, invocation_id=counted, destination=f"file://{tmp_path / 'run' / 'logs' / 'the.log'}", tail=1)
    assert (tmp_path / "run" / "logs" / "the.log").read_text() == "500\n"


def test_parts_of_a_long_line_are_one_line(hook: RobotoHook, task: Task, tmp_path: Path) -> None:
    long = ended(hook, "echo a; head -c 100000 /dev/zero | tr '\\0' 'x'; echo; echo b")
    result = fetch(task, invocation_id=long, destination=f"file://{tmp_path / 'the.log'}")
    assert (tmp_path / "the.log").read_text() == f"a\n{'x' * 100_000}\nb\n"
    assert result["count"] == 3


def test_an_invocation_that_is_not_known_is_lost(hook: RobotoHook, task: Task) -> None:
    with pytest.raises(InvocationLostError, match="invocation iv_unknown: could not fetch the log"):
        fetch(task, invocation_id="iv_unknown")


@pytest.mark.parametrize(
    ("argument", "value"), [("destination", "xcm"), ("tail", 0), ("max_bytes", 0), ("invocation_id", "")]
)
def test_invalid_arguments_are_rejected_at_parse(argument: str, value: Any) -> None:
    arguments: dict[str, Any] = {"task_id": "fetch", "invocation_id": "iv_1", argument: value}
    with DAG("d"), pytest.raises(ValueError, match=f"DAG 'd', task 'fetch': argument '{argument}'"):
        FetchInvocationLogsOperator(**arguments)


def test_a_task_that_has_invoked_nothing_has_no_log(hook: RobotoHook, task: Task) -> None:
    operator = FetchInvocationLogsOperator(task_id="fetch", invocation_id="{{ params.none }}")
    operator.invocation_id = "None"  # as a template renders it
    with pytest.raises(RequestRejectedError, match="argument 'invocation_id': it is 'None'"):
        operator.execute(task.context)
