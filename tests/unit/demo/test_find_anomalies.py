"""The demo's action on small files: anomalies, output and exit codes."""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from airflow_invocations.demo.actions.sensor_anomalies import find_anomalies as action
from airflow_invocations.runtime import InvocationPaths, read_file_changesets

SCRIPT = Path(action.__file__)
START = datetime.datetime(2024, 1, 1)


def write(path: Path, values: list[float | str], form: str = "%Y/%m/%d %H:%M") -> Path:
    """Write an hourly file; an empty string is a missing reading."""
    rows = ["date,temp"]
    for hour, value in enumerate(values):
        rows.append(f"{START + datetime.timedelta(hours=hour):{form}},{value}")
    path.write_text("\n".join(rows) + "\n")
    return path


def run(tmp_path: Path, **parameters: str) -> subprocess.CompletedProcess[str]:
    paths = InvocationPaths.within(tmp_path)
    for folder in (paths.input_dir, paths.output_dir):
        folder.mkdir(exist_ok=True)
    paths.parameters_file.write_text(json.dumps(parameters))
    paths.file_changeset_file.touch()
    ids = {"ROBOTO_INVOCATION_ID": "iv_1", "ROBOTO_ORG_ID": "og_1", "ROBOTO_DATASET_ID": "ds_1"}
    return subprocess.run(
        [sys.executable, str(SCRIPT)],
        env={**ids, "HOME": str(tmp_path), **paths.environment()},
        capture_output=True,
        text=True,
        check=False,
    )


def summary(tmp_path: Path) -> dict[str, Any]:
    """Return the metadata that the action has recorded for the report of a.csv."""
    tagged, described = read_file_changesets(tmp_path / "file_changeset.jsonl")["a/report.json"]
    assert tagged.metadata_changeset is not None
    assert tagged.metadata_changeset.put_tags == ["anomalies", "report"]
    assert described.metadata_changeset is not None
    return described.metadata_changeset.put_fields or {}


def quiet_days(days: int) -> list[float | str]:
    """Return readings of days that differ by tenths of a degree."""
    return [10 + hour / 4 + (day % 3) / 10 for day in range(days) for hour in range(24)]


def test_unusual_reading_is_found_reported_and_plotted(tmp_path: Path) -> None:
    values = quiet_days(20)
    values[100] = 40.0
    done = run(tmp_path, file=str(write(tmp_path / "a.csv", values)))
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == "a.csv: 480 readings of temp"
    assert "1 anomalous, worst 40 on 05 at 04:00" in lines[1]
    fields = summary(tmp_path)
    assert (fields["invocation_id"], fields["file"]) == ("iv_1", "a.csv")
    assert (fields["readings"], fields["anomalies"]) == (480, 1)
    report = json.loads((tmp_path / "output/a/report.json").read_text())
    (found,) = report["anomalies"]
    assert (found["moment"], found["value"]) == ("2024-01-05T04:00:00", 40.0)
    assert (tmp_path / "output/a/anomalies.png").read_bytes().startswith(b"\x89PNG")


def test_missing_readings_are_counted(tmp_path: Path) -> None:
    values = quiet_days(10)
    values[50] = values[51] = ""
    done = run(tmp_path, file=str(write(tmp_path / "a.csv", values)))
    assert "missing: 2 between 2024-01-03 01:00 and 2024-01-03 04:00" in done.stdout
    assert summary(tmp_path)["missing"] == 2


@pytest.mark.parametrize(
    ("content", "code", "hint"),
    [
        ("date,temp\n2024/01/01 00:00,warm\n", 65, "line 2: could not convert"),
        ("date,temp\nyesterday,1\n", 65, "'yesterday' has an unknown format"),
        ("time,celsius\n1,2\n", 65, "required: date, and temp"),
        ("date,temp\n2024/01/01 00:00,1\n", 65, "has 1 readings; required: 2"),
        ("date,temp\n2024/01/01 00:00,nan\n", 65, "line 2: a reading is 'nan'; allowed: a number"),
        ("date,temp\n" + "9" * 200_000, 65, "is not a CSV file in UTF-8: field larger than field limit"),
        ("", 65, "required: date, and temp"),
        (None, 64, "No such file"),
    ],
)
def test_unusable_file_gives_an_exit_code_and_one_line(
    tmp_path: Path, content: str | None, code: int, hint: str
) -> None:
    path = tmp_path / "bad.csv"
    if content is not None:
        path.write_text(content)
    done = run(tmp_path, file=str(path))
    assert done.returncode == code
    assert hint in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("parameters", "hint"),
    [({}, "`file` is missing"), ({"file": "x", "threshold": "high"}, "`threshold` is 'high'")],
)
def test_error_names_the_invalid_parameter(tmp_path: Path, parameters: dict[str, str], hint: str) -> None:
    done = run(tmp_path, **parameters)
    assert done.returncode == 64
    assert hint in done.stderr


@pytest.mark.parametrize("text", ["2010/01/01 05:00:00", "2010/01/01 05:00", "2010-01-01T05:00:00"])
def test_known_date_formats_are_parsed(text: str) -> None:
    assert action.parse_moment(text) == datetime.datetime(2010, 1, 1, 5)


def test_pace_is_spread_over_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(action.time, "monotonic", lambda: 100.0)
    monkeypatch.setattr(action.time, "sleep", slept.append)
    pace = action.Pace(12, 4)
    for _ in range(4):
        pace.wait()
    assert slept == [3.0, 6.0, 9.0, 12.0]


def test_action_json_is_valid_for_the_local_server() -> None:
    from airflow_invocations.server.api.schemas import CreateActionBody

    declared = CreateActionBody.model_validate(json.loads((SCRIPT.parent / "action.json").read_text()))
    assert {parameter.name for parameter in declared.parameters} == {"file", "threshold", "pace_seconds"}
    assert (declared.container_parameters or None) is not None
