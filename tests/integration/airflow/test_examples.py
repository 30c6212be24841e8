"""The example DAGs do against the real server what they say; those of other platforms are beside these."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG

from airflow_invocations.hooks import RobotoHook
from airflow_invocations.models import (
    ContainerParameters,
    CreateActionRequest,
    DagRunProvenance,
    InvocationRequest,
    InvocationSource,
    InvocationStatus,
)
from airflow_invocations.platforms.roboto.platform import RobotoPlatform
from airflow_invocations.triggers import InvocationEventTrigger
from airflow_invocations.triggers._event_delivery import DeliverySettings

from ...support.airflow_version import DagBag
from ..conftest import LocalServer
from .conftest import connect_to
from .dag_runs import emitted_by, payload_of, results, run, states, watched

DAGS = Path(__file__).parents[3] / "dags"
DEMO_ACTIONS = Path(__file__).parents[3] / "provider/airflow_invocations/demo/actions"

pytestmark = pytest.mark.usefixtures("database")


def example(file: str, dag_id: str | None = None) -> DAG:
    bag = DagBag(dag_folder=str(DAGS / f"{file}.py"))
    assert bag.import_errors == {}
    return bag.dags[dag_id or file]


def register(hook: RobotoHook, name: str, command: str) -> None:
    request = CreateActionRequest(
        name=name, container_parameters=ContainerParameters(command=["sh", "-c", command])
    )

    async def create(platform: RobotoPlatform) -> None:
        await platform._client.call("POST", "v1/actions", body=request.wire(), idempotent=False)

    hook.call(create)


def by_hand(**parameters: Any) -> InvocationRequest:
    return InvocationRequest(invocation_source=InvocationSource.Manual, parameter_values=parameters)


def test_a_simulator_is_ended_also_after_a_failure(hook: RobotoHook) -> None:
    register(hook, "simulator", "sleep 600")
    register(hook, "drive", 'sleep 0.2; test "$ROBOTO_PARAM_route" = city || exit 65')
    dag_run = run(example("with_a_simulator"))
    assert states(dag_run) == {
        ("start_simulator", -1): "success",
        ("drive", 0): "success",
        ("drive", 1): "failed",
        ("stop_simulator", -1): "success",
    }
    assert dag_run.state == "failed"
    (started,) = hook.find("with_a_simulator", dag_run.run_id, "start_simulator")
    assert started.current.status is InvocationStatus.Cancelled


def test_the_log_of_a_failed_check_is_kept(hook: RobotoHook, tmp_path: Path) -> None:
    cut_off = 'if [ "$ROBOTO_PARAM_recording" = b.mcap ]; then echo cut off; exit 3; fi'
    # Longer than `defer_after`: the tasks defer and resume, as they do with any real recording.
    register(hook, "check_recording", f"sleep 3; {cut_off}")
    logs = tmp_path / "logs"
    dag_run = run(example("recording_checks"), {"recordings": ["a.mcap", "b.mcap"], "logs": f"file://{logs}"})
    assert dag_run.state == "success"
    assert states(dag_run)["check", 0] == "success"
    assert states(dag_run)["check", 1] == "failed"
    (kept,) = logs.iterdir()
    assert kept.read_text() == "cut off\n"


def test_a_map_is_made_of_the_drives_that_were_uploaded_last(hook: RobotoHook) -> None:
    # `dag.test()` knows no triggerer to start in: it runs both tasks in a worker. That they can do without
    # one is tested in test_workerless.py, and in a real Airflow.
    register(hook, "upload_drives", "true")
    register(hook, "make_map", 'echo "the map of $ROBOTO_PARAM_day"')
    uploaded = hook.invoke("upload_drives", by_hand())
    dag_run = run(example("nightly_map"))
    assert dag_run.state == "success"
    assert results(dag_run, "drives_uploaded") == uploaded.invocation_id
    (line,) = hook.logs(results(dag_run, "make_map")["invocation_id"])
    assert line.log == f"the map of {dag_run.logical_date:%Y-%m-%d}"


def test_orphans_are_counted_before_they_are_cancelled(
    hook: RobotoHook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "https://examples.example")
    orphan = orphan_of_deleted_run(hook, "https://examples.example")
    dag_run = run(example("reconcile_invocations"))
    assert dag_run.state == "success"
    counts = results(dag_run, "reconcile")["roboto_default"]
    assert (counts["orphaned"], counts["cancelled"]) == (1, 0)
    dag_run = run(example("reconcile_invocations"), {"dry_run": False})
    counts = results(dag_run, "reconcile")["roboto_default"]
    assert (counts["orphaned"], counts["cancelled"]) == (1, 1)
    assert hook.get(orphan).current.status is InvocationStatus.Cancelled


def orphan_of_deleted_run(hook: RobotoHook, base_url: str) -> str:
    asked = DagRunProvenance(
        dag_id="gone", run_id="r", run_type="manual", task_id="ask", try_number=1, base_url=base_url
    )
    register(hook, "long_running", "sleep 600")
    source = asked.source
    request = InvocationRequest(invocation_source=source.source_type, invocation_source_id=source.source_id)
    return hook.invoke("long_running", request).invocation_id


def test_drives_are_mapped_once_they_are_collected(hook: RobotoHook) -> None:
    register(
        hook, "collect_drives", 'mkdir "$ROBOTO_OUTPUT_DIR/new"; echo 1 > "$ROBOTO_OUTPUT_DIR/new/a.drive"'
    )
    register(hook, "map_drives", 'cd "$ROBOTO_INPUT_DIR"; find . -type f; echo "$ROBOTO_PARAM_collected_by"')
    collected = run(example("drive_maps", "collect_drives"))
    assert collected.state == "success"
    mapped = run(example("drive_maps", "map_drives"), consumed=emitted_by("collect_drives"))
    assert mapped.state == "success"
    lines = [line.log for line in hook.logs(results(mapped, "map")["invocation_id"])]
    assert lines == ["./new/a.drive", results(collected, "collect")["invocation_id"]]


@pytest.fixture
def with_sensor_anomalies(
    start_server: Callable[..., LocalServer], monkeypatch: pytest.MonkeyPatch
) -> RobotoHook:
    """A server of its own with the demo's action."""
    connect_to(start_server("--actions", str(DEMO_ACTIONS), "--slots", "2"), monkeypatch)
    return RobotoHook()


def test_anomalies_are_found_and_told(
    with_sensor_anomalies: RobotoHook, monkeypatch: pytest.MonkeyPatch
) -> None:
    hook = with_sensor_anomalies
    monkeypatch.setattr(
        InvocationEventTrigger,
        "settings",
        DeliverySettings(linger=0.05, spacing=0.05, unacknowledged_spacing=0.05),
    )
    found = run(example("sensor_anomalies"), {"files": ["seattle-weather.csv"], "pace_seconds": 0})
    assert found.state == "success"
    (report,) = results(found, "gather_reports")

    alerts = example("anomaly_alerts")
    (asset,) = alerts.timetable.asset_condition.objects
    (watcher,) = asset.watchers
    payload = hook.run(lambda: payload_of(watcher.trigger))
    dag_run = run(alerts, consumed=watched("checked_files", payload))
    assert dag_run.state == "success"
    (alert,) = results(dag_run, "alert")
    assert (alert["file"], alert["count"]) == (report["file"], report["anomalies"])
    assert alert["count"] > 0
