"""Records, statuses, log pages and resources, from jobs as Ray 2.60 returns them."""

from __future__ import annotations

import datetime
from typing import Any

import pytest

from airflow_invocations.models import InvocationStatus, LogProcess
from airflow_invocations.platforms import InvalidRequestError
from airflow_invocations.platforms.ray import logs
from airflow_invocations.platforms.ray.lister import RayLister
from airflow_invocations.platforms.ray.records import started_in, status_of, to_record
from airflow_invocations.platforms.ray.resources import unmet_demand

pytestmark = pytest.mark.anyio
S = InvocationStatus

START = datetime.datetime(2026, 11, 30, 12, 0, tzinfo=datetime.UTC)
MILLISECONDS = int(START.timestamp() * 1000)
HEAD = (
    "2026-11-30 12:00:00,123\tINFO job_manager.py:581 -- Runtime env is setting up.\n"
    'Running entrypoint for job airflow-1: eval "$(echo "$INVOCATION_SETUP" | base64 -d)"; python a.py\n'
    f"[invocation] started at {START.timestamp() + 2:.3f}789\n"
)


def job(status: str, **fields: Any) -> dict[str, Any]:
    return {
        "submission_id": "airflow-1",
        "status": status,
        "start_time": MILLISECONDS,
        "end_time": MILLISECONDS + 5_000 if status in ("SUCCEEDED", "FAILED", "STOPPED") else None,
        "driver_node_id": None if status == "PENDING" else "abc",
        "metadata": {"airflow_action": "a", "airflow_source_id": "s", "airflow_source_type": "Trigger"},
        "runtime_env": {
            "env_vars": {
                "INVOCATION_PARAMETERS": '{"speed": 3}',
                "SECRET": "s3cret",
                "AIRFLOW_CTX_DAG_ID": "d",
            }
        },
        **fields,
    }


CANCEL = {
    "start_time": MILLISECONDS + 3_000,
    "status": "PENDING",
    "metadata": {"airflow_cancels": "airflow-1"},
}


@pytest.mark.parametrize(
    ("present", "cancel", "status"),
    [
        (job("PENDING"), None, S.Queued),
        (job("RUNNING"), None, S.Processing),
        (job("SUCCEEDED"), None, S.Completed),
        (job("FAILED"), None, S.Failed),
        (job("STOPPED"), None, S.Cancelled),
        (job("PENDING"), CANCEL, S.Cancelled),
        (job("FAILED", driver_node_id=None), CANCEL, S.Cancelled),
        (job("FAILED", driver_node_id=None), None, S.Failed),
        # It had started before the cancel was recorded.
        (job("SUCCEEDED"), CANCEL, S.Completed),
        (job("FAILED"), CANCEL, S.Failed),
    ],
)
def test_status_of_a_job(present: Any, cancel: Any, status: InvocationStatus) -> None:
    assert status_of(present, cancel) is status
    record = to_record("airflow-1", present, cancel)
    assert record.current.status is record.last_status is status


def test_status_that_only_a_newer_ray_knows_is_terminal() -> None:
    status = status_of(job("SUSPENDED"), None)
    assert not status.is_known
    assert status.is_terminal


def test_record_of_a_completed_job() -> None:
    record = to_record("airflow-1", job("SUCCEEDED"), None, START + datetime.timedelta(seconds=2))
    assert [(step.status, step.platform_status) for step in record.status] == [
        (S.Queued, "PENDING"),
        (S.Processing, "RUNNING"),
        (S.Completed, "SUCCEEDED"),
    ]
    assert record.created == START
    assert record.queued_for == datetime.timedelta(seconds=2)
    assert record.ran_for == record.duration == datetime.timedelta(seconds=3)
    assert record.parameter_values == {"speed": 3}
    assert record.container_parameters.env_vars == {"AIRFLOW_CTX_DAG_ID": "d"}
    assert (record.provenance.action.name, record.provenance.source.source_id) == ("a", "s")


def test_record_of_a_job_that_was_cancelled_in_the_queue() -> None:
    record = to_record("airflow-1", job("PENDING"), CANCEL)
    assert [step.status for step in record.status] == [S.Queued, S.Cancelled]
    assert record.ended_at == START + datetime.timedelta(seconds=3)
    assert record.started_at is None


def test_record_of_somebody_elses_job_has_what_ray_knows() -> None:
    record = to_record("raysubmit_1", job("RUNNING", metadata=None, runtime_env=None, message=3))
    assert (record.provenance.action.name, record.parameter_values) == ("", {})
    assert record.current.status is S.Processing


@pytest.mark.parametrize(
    ("fields", "detail", "code"),
    [
        (
            {
                "message": "Job entrypoint command failed with exit code 65, last available logs "
                f"(truncated to 20,000 chars):\n{HEAD}no such bag\n",
                "driver_exit_code": 65,
            },
            "exit code 65: no such bag",
            65,
        ),
        ({"message": "Job entrypoint command failed. No logs.", "driver_exit_code": 1}, "exit code 1", 1),
        (
            {"message": "runtime_env setup failed: no pip", "driver_exit_code": None},
            "runtime_env setup failed: no pip",
            None,
        ),
        ({"message": None}, None, None),
    ],
)
def test_detail_of_a_failure_begins_with_what_the_command_wrote(
    fields: dict[str, Any], detail: str | None, code: int | None
) -> None:
    step = to_record("airflow-1", job("FAILED", **fields)).current
    assert (step.detail, step.exit_code) == (detail, code)


def test_detail_of_a_failure_has_the_last_lines() -> None:
    message = "first\n" + "x" * 5_000 + "\nthe end"
    detail = to_record("airflow-1", job("FAILED", message=message, driver_exit_code=1)).current.detail
    assert detail is not None
    assert detail.endswith("\nthe end")
    assert len(detail) < 1_100


@pytest.mark.parametrize("wrong", ["", "[invocation] started at soon", '{"logs": "nothing"}'])
def test_log_without_a_start(wrong: str) -> None:
    assert started_in(wrong.encode()) is None


def test_start_in_a_log() -> None:
    began = started_in(HEAD.encode())
    assert began is not None
    assert abs(began - START - datetime.timedelta(seconds=2)) < datetime.timedelta(milliseconds=2)
    # `date` without nanoseconds.
    assert started_in(b"[invocation] started at 1796040000.N") == START


class Jobs:
    """A client whose job's log and status are given."""

    def __init__(self, text: str, status: str = "RUNNING") -> None:
        self.text = text
        self.present = job(status)

    async def log(self, _: str) -> str:
        return self.text

    async def job(self, _: str) -> dict[str, Any]:
        return self.present


async def page(client: Jobs, cursor: str | None = None) -> Any:
    return await logs.page_of(client, "airflow-1", cursor)  # type: ignore[arg-type]


async def test_log_is_read_line_by_line_from_a_cursor_on() -> None:
    client = Jobs(f"{HEAD}one\r\ntwo\u2028still two\npart")
    first = await page(client)
    lines = [(one.log, one.process) for one in first.items]
    assert [line for line, process in lines if process is LogProcess.Action] == ["one", "two\u2028still two"]
    assert [process for _, process in lines][:2] == [LogProcess.Monitor] * 2
    assert not any("[invocation]" in line for line, _ in lines)
    client.text += "ial\nthree\n"
    second = await page(client, first.last_read)
    assert [one.log for one in second.items] == ["partial", "three"]
    assert (await page(client, second.last_read)).items == []


async def test_last_line_without_a_line_feed_is_read_when_the_job_has_ended() -> None:
    client = Jobs("one\nlast words")
    assert [one.log for one in (await page(client)).items] == ["one"]
    client.present = job("FAILED")
    ended = await page(client)
    assert [one.log for one in ended.items] == ["one", "last words"]
    assert (await page(client, ended.last_read)).items == []


async def test_long_log_is_read_in_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "PAGE_LINES", 2)
    client, cursor, read = Jobs("1\n2\n3\n4\n5\n"), None, []
    while True:
        part = await page(client, cursor)
        read.append([one.log for one in part.items])
        cursor = part.last_read
        if not part.has_next:
            break
    assert read == [["1", "2"], ["3", "4"], ["5"]]


async def test_cursor_of_another_platform_is_rejected() -> None:
    with pytest.raises(InvalidRequestError, match=r"'1\|2' is not a cursor"):
        await page(Jobs(""), "1|2")


async def test_lister_reports_only_jobs_of_the_provider() -> None:
    jobs = {
        "airflow-1": job("FAILED"),
        "airflow-2": job("PENDING"),
        "airflow-2-cancel": CANCEL,
        "raysubmit_3": job("SUCCEEDED", metadata={"name": "other"}),
        "airflow-4": job("SUCCEEDED", metadata={"airflow_action": "b"}),
    }

    async def list_jobs() -> dict[str, Any]:
        return jobs

    lister = RayLister(list_jobs, "a")
    found = {one.invocation_id: one.event async for one in lister.since(START)}
    assert {name: event.status for name, event in found.items()} == {  # type: ignore[union-attr]
        "airflow-1": S.Failed,
        "airflow-2": S.Cancelled,
    }
    assert [one async for one in lister.since(START + datetime.timedelta(seconds=1))] == []
    assert [one.invocation_id async for one in lister.ended(["airflow-2", "airflow-4"])] == ["airflow-2"]


def cluster(kind: str, *sizes: dict[str, float]) -> dict[str, Any]:
    status = {
        "autoscalerReport": {"nodeTypeMapping": {"abc": kind}},
        "loadMetricsReport": {"nodeTypes": [[size, 1] for size in sizes]},
    }
    return {"data": {"clusterStatus": status}}


@pytest.mark.parametrize(
    ("demand", "present", "said"),
    [
        ({"entrypoint_num_gpus": 4}, cluster("node_abc", {"CPU": 8, "GPU": 1}), "it reserves GPU 4; "),
        ({"entrypoint_num_gpus": 1}, cluster("node_abc", {"CPU": 8, "GPU": 1}), None),
        # No single node has both.
        (
            {"entrypoint_num_cpus": 8, "entrypoint_num_gpus": 1},
            cluster("node_abc", {"CPU": 8}, {"GPU": 1}),
            "CPU 8",
        ),
        ({"entrypoint_resources": {"lidar": 1}}, cluster("node_abc", {"CPU": 8}), "lidar 1; "),
        # An autoscaler may add a node of the right kind.
        ({"entrypoint_num_gpus": 4}, cluster("small-group", {"CPU": 8}), None),
        ({"entrypoint_num_gpus": 4}, {}, None),
        ({"entrypoint_num_gpus": 4}, {"data": {"clusterStatus": {"autoscalerReport": None}}}, None),
        ({}, cluster("node_abc", {"CPU": 8}), None),
    ],
)
def test_resources_that_no_node_has(demand: Any, present: Any, said: str | None) -> None:
    why = unmet_demand(demand, present)
    assert why is None if said is None else said in str(why)
