"""The example DAG `anomaly_alerts`, which starts when invocations end: its trigger and its tasks."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from airflow_invocations.hooks import RobotoHook
from airflow_invocations.triggers import InvocationEventTrigger

FILE = Path(__file__).parents[3] / "dags/anomaly_alerts.py"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("anomaly_alerts", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def ended(status: str, **changes: Any) -> dict[str, Any]:
    return {
        "invocation_id": "iv_1",
        "status": status,
        "detail": "exit code 3",
        "url": "http://h/iv_1",
        "dataset_id": "ds_1",
        **changes,
    }


def test_watcher_reports_terminal_invocations_of_the_action(example: ModuleType) -> None:
    (watcher,) = example.checked_files.watchers
    assert isinstance(watcher.trigger, InvocationEventTrigger)
    assert watcher.trigger.action == "sensor_anomalies"
    assert [status.name for status in watcher.trigger.statuses] == ["Completed", "Failed", "Deadly"]


def test_report_is_read_from_the_dataset_that_the_action_wrote_to(
    example: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    reports = [
        SimpleNamespace(metadata={"invocation_id": f"iv_{number}", "file": "a.csv", "anomalies": number})
        for number in range(3)
    ]

    def find_files(self: RobotoHook, query: str) -> list[SimpleNamespace]:
        asked.append(query)
        return reports

    monkeypatch.setattr(RobotoHook, "find_files", find_files)
    report = example.read_report.function(ended("Completed"))
    assert (report["file"], report["count"], report["url"]) == ("a.csv", 1, "http://h/iv_1")
    assert asked == ['dataset_id = "ds_1" AND tags CONTAINS "report"']
    assert example.read_report.function(ended("Completed", dataset_id=None))["file"] is None
    assert len(asked) == 1


def test_alert_returns_anomalies_and_failed_checks_but_not_clean_files(example: ModuleType) -> None:
    failed = example.read_report.function(ended("Failed"))
    assert failed["reason"] == "exit code 3"
    clean = {"file": "b.csv", "count": 0, "url": "u"}
    dirty = {"file": "a.csv", "count": 2, "url": "u"}
    assert example.alert.function([clean, failed, dirty]) == [failed, dirty]
