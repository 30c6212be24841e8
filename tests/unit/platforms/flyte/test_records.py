"""Records from what Flyte answers, which may say little, or say it late or in another order."""

from __future__ import annotations

import datetime
from typing import Any

import pytest

from airflow_invocations.models import InvocationRequest, InvocationSource, InvocationStatus
from airflow_invocations.platforms.flyte.ids import ProjectDomain, RunId, TaskId
from airflow_invocations.platforms.flyte.records import (
    run_spec_of,
    task_of,
    time_of,
    to_action_record,
    to_record,
)

S = InvocationStatus
RUN = RunId(ProjectDomain("p", "d"), "r")
NOON = "2026-01-31T12:00:00Z"


def step(phase: str, time: str) -> dict[str, str]:
    return {"phase": f"ACTION_PHASE_{phase}", "startTime": f"2026-01-31T{time}Z"}


def details(phase: str, *attempts: list[dict[str, str]], **status: Any) -> dict[str, Any]:
    return {
        "action": {
            "status": {"phase": f"ACTION_PHASE_{phase}", "startTime": NOON, **status},
            "attempts": [{"attempt": n, "phaseTransitions": one} for n, one in enumerate(attempts, 1)],
        }
    }


def steps_of(answer: dict[str, Any]) -> list[str]:
    record = to_record(answer, RUN, None)
    assert [one.timestamp for one in record.status] == sorted(one.timestamp for one in record.status)
    assert record.current == record.status[-1]
    return [one.platform_status or "" for one in record.status]


def test_an_answer_that_says_nothing_is_a_record_of_it() -> None:
    record = to_record({}, RUN, None)
    assert (record.invocation_id, record.current.status) == ("p/d/r", S.Queued)
    assert (record.idempotency_id, record.provenance.source.source_id) == (None, "")
    assert record.provenance.action.name == "//"


def test_current_status_of_a_run_comes_last_with_any_clock() -> None:
    first = [step("QUEUED", "12:00:00.1"), step("RUNNING", "12:00:05")]
    # The row's end is before the last event.
    assert steps_of(details("FAILED", first, endTime="2026-01-31T12:00:01Z")) == [
        "QUEUED",
        "RUNNING",
        "FAILED",
    ]
    assert steps_of(details("RUNNING", first)) == ["QUEUED", "RUNNING"]
    # The row is ahead of the events, or behind them.
    assert steps_of(details("RUNNING")) == ["RUNNING"]
    assert steps_of(details("QUEUED", first)) == ["QUEUED", "RUNNING", "QUEUED"]


def test_an_attempt_that_failed_before_is_no_end() -> None:
    first = [step("RUNNING", "12:00:01"), step("FAILED", "12:00:02")]
    again = [step("QUEUED", "12:00:02"), step("RUNNING", "12:00:03")]
    answer = details("RUNNING", first, again)
    answer["action"]["attempts"][0]["errorInfo"] = {"message": "boom", "kind": "KIND_SYSTEM"}
    assert steps_of(answer) == ["RUNNING", "FAILED", "QUEUED", "RUNNING"]
    record = to_record(answer, RUN, None)
    assert record.status[1].detail == "boom (system error)"
    # The last one's end is told by the row only.
    assert steps_of(details("RUNNING", first)) == ["RUNNING"]


@pytest.mark.parametrize(
    ("status", "seconds"),
    [
        ({"durationMs": "9000", "endTime": "2026-01-31T12:00:09Z"}, 4.0),
        ({"endTime": "2026-01-31T12:00:07Z"}, 2.0),
    ],
)
def test_how_long_its_last_attempt_took(status: dict[str, Any], seconds: float) -> None:
    first = [step("RUNNING", "12:00:01"), step("FAILED", "12:00:02")]
    again = [step("QUEUED", "12:00:02"), step("RUNNING", "12:00:05")]
    record = to_record(details("SUCCEEDED", first, again, **status), RUN, None)
    assert record.duration == record.ran_for == datetime.timedelta(seconds=seconds)
    assert record.queued_for == datetime.timedelta(seconds=5)


def test_times_are_read_to_the_microsecond() -> None:
    read = time_of("2026-01-31T12:00:00.123456789Z")
    assert read == datetime.datetime(2026, 1, 31, 12, 0, 0, 123456, datetime.UTC)
    assert time_of("soon") is time_of("") is time_of(None) is None


def test_the_task_of_a_run_is_found_where_it_is_said() -> None:
    named = {"project": "p", "domain": "d", "name": "f", "version": "v1"}
    expected = TaskId(ProjectDomain("p", "d"), "f", "v1")
    assert task_of({"metadata": {"task": {"id": named}}}) == expected
    assert task_of({"task": {"taskTemplate": {"id": named}}}) == expected
    assert task_of({}).name == ""


@pytest.mark.parametrize(("timeout", "minutes"), [(None, 0), ("90s", 2), ("3600s", 60), ("soon", 0)])
def test_the_tasks_own_timeout(timeout: str | None, minutes: int) -> None:
    answer = details("RUNNING")
    answer["action"]["task"] = {"taskTemplate": {"metadata": {"timeout": timeout}}}
    assert to_record(answer, RUN, None).timeout == minutes


def test_deployer_of_a_task_is_reported_if_known() -> None:
    who = {"user": {"id": {"subject": "ada"}}}
    known = to_action_record(
        TaskId(ProjectDomain("p", "d"), "f", "v1"),
        {"metadata": {"deployedAt": NOON, "deployedBy": who}},
        "acme",
    )
    assert (known.created_by, known.org_id, known.digest) == ("ada", "acme", "v1")
    assert to_action_record(TaskId(ProjectDomain("p", "d"), "f"), {}, None).created_by == ""


def test_a_request_without_airflow_is_told_to_the_run_as_it_is() -> None:
    plain = InvocationRequest(invocation_source=InvocationSource.Trigger, invocation_source_id="cron")
    assert run_spec_of(plain) == {
        "labels": {"values": {}},
        "annotations": {"values": {"airflow_source_type": "Trigger", "airflow_source_id": "cron"}},
        "envs": {"values": []},
    }
