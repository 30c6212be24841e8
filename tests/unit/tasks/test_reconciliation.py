"""Reconciliation: the table of decisions, and the engine with a platform and an Airflow of the test's own."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import pytest

from airflow_invocations.models import (
    DagRunProvenance,
    InvocationRecord,
    InvocationStatus,
    TaskInstanceReference,
    deployment_id,
    task_instance_of,
)
from airflow_invocations.platforms import UnauthorizedError
from airflow_invocations.tasks.reconciliation import (
    CANCELLED,
    NEXT_TIME,
    AirflowUnreadableError,
    Limits,
    Reconciliation,
    TaskKey,
    TaskSnapshot,
    Verdict,
    decide,
    reconcile,
)

from ...support.records import INVOCATION

V = Verdict
URL = "https://airflow.example"
HERE = str(deployment_id(URL))


def source(**changes: Any) -> str:
    values: dict[str, Any] = {
        "dag_id": "fleet",
        "run_id": "scheduled__1",
        "run_type": "scheduled",
        "task_id": "ask",
        "try_number": 1,
        "max_tries": 1,
        "instance_id": "i-1",
        "base_url": URL,
    }
    return DagRunProvenance(**{**values, **changes}).source_id


def task(state: str, **changes: Any) -> TaskSnapshot:
    return TaskSnapshot(state, **changes)


BEGUN = ("running", "deferred", "up_for_reschedule", "awaiting_input")
PENDING = ("none", "scheduled", "queued", "restarting", "up_for_retry")
ENDED = ("success", "failed", "skipped", "upstream_failed", "removed")
#: What Airflow may say of the task instance besides its state: nothing, as in a task; this try; a retry of
#: it; a clear; a run that was created again.
NUMBERS: Mapping[str, dict[str, Any]] = {
    "no numbers": {},
    "this try": {"try_number": 1, "max_tries": 1, "instance_id": "i-1"},
    "a retry": {"try_number": 2, "max_tries": 1, "instance_id": "i-2"},
    "cleared": {"try_number": 1, "max_tries": 2, "instance_id": "i-2"},
    "cleared and begun": {"try_number": 2, "max_tries": 2, "instance_id": "i-2"},
    "created again": {"try_number": 1, "max_tries": 1, "instance_id": "i-9"},
    "an earlier try": {"try_number": 0, "max_tries": 1, "instance_id": "i-0"},
}
EXPECTED_WHILE_ACTIVE = {
    "no numbers": V.Wanted,
    "this try": V.Wanted,
    "a retry": V.Wanted,
    "cleared": V.Superseded,
    "cleared and begun": V.Superseded,
    "an earlier try": V.Unknown,
}


@pytest.mark.parametrize("numbers", NUMBERS)
@pytest.mark.parametrize("state", [*BEGUN, *PENDING, *ENDED, "invented_tomorrow"])
def test_decision_for_each_state_and_each_try(state: str, numbers: str) -> None:
    verdict, reason = decide(task_instance_of(source()), HERE, task(state, **NUMBERS[numbers]))
    if state in ENDED:
        expected = V.Orphaned
    elif state == "invented_tomorrow":
        expected = V.Unknown
    elif numbers == "created again":
        # Before its try begins, it may be a retry whose number isn't counted yet.
        expected = V.Superseded if state in BEGUN else V.Wanted
    else:
        expected = EXPECTED_WHILE_ACTIVE[numbers]
    assert verdict is expected
    assert reason


@pytest.mark.parametrize("now", [None, task("failed"), task("running"), task("running", max_tries=5)])
@pytest.mark.parametrize(
    ("source_id", "expected"),
    [
        ("airflow:dags/fleet/elsewhere", V.Unknown),
        (source(base_url=None), V.Unknown),
        (source(base_url="https://staging.example"), V.Foreign),
        (source(is_detached=True), V.Wanted),
    ],
    ids=["unreadable", "no deployment", "another deployment", "detached"],
)
def test_decision_without_the_task_where_the_source_decides(
    source_id: str, expected: Verdict, now: TaskSnapshot | None
) -> None:
    assert decide(task_instance_of(source_id), HERE, now)[0] is expected


def test_decision_for_a_task_instance_that_is_gone() -> None:
    assert decide(task_instance_of(source()), HERE, None)[0] is V.Orphaned


@pytest.mark.parametrize(("now", "expected"), [(None, V.Orphaned), (task("success"), V.Unknown)])
def test_decision_in_a_loop_is_made_only_if_the_task_instance_is_gone(
    now: TaskSnapshot | None, expected: Verdict
) -> None:
    looped = task_instance_of(source(iteration=2, region_id="r", region_index=2))
    assert decide(looped, HERE, now)[0] is expected


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [("no numbers", V.Superseded), ("a retry", V.Superseded), ("this try", V.Wanted)],
)
def test_decision_for_an_invocation_that_a_later_one_replaces(numbers: str, expected: Verdict) -> None:
    now = task("deferred", **NUMBERS[numbers])
    assert decide(task_instance_of(source()), HERE, now, is_replaced=True)[0] is expected


class FakePlatform:
    """Active invocations by id, each with its source; a cancel ends them."""

    def __init__(self, sources: Mapping[str, str]) -> None:
        self.sources = dict(sources)
        self.cancelled: list[str] = []
        self.may_cancel = True

    async def find_active(self, limit: int) -> list[InvocationRecord]:
        return [
            self._record(one, InvocationStatus.Processing)
            for one in self.sources
            if one not in self.cancelled
        ][:limit]

    async def cancel(self, invocation_id: str) -> None:
        if not self.may_cancel:
            raise UnauthorizedError("the token may not cancel")
        self.cancelled.append(invocation_id)

    async def get(self, invocation_id: str) -> InvocationRecord:
        return self._record(invocation_id, InvocationStatus.Cancelled)

    def _record(self, invocation_id: str, status: InvocationStatus) -> InvocationRecord:
        origin = {"source_type": "Trigger", "source_id": self.sources[invocation_id]}
        return InvocationRecord.model_validate(
            {
                **INVOCATION,
                "invocation_id": invocation_id,
                "provenance": {**INVOCATION["provenance"], "source": origin},
                "last_status": int(status),
                "status": [{"status": int(status), "timestamp": "2026-01-31T12:00:01Z"}],
            }
        )

    def ask(self, operation: Any) -> Any:
        return asyncio.run(operation(self))


class FakeAirflow:
    """Task instances by task id; `later` is what they are when they are read for the second time."""

    def __init__(
        self, tasks: Mapping[str, TaskSnapshot], later: Mapping[str, TaskSnapshot] | None = None
    ) -> None:
        self.answers = [tasks, tasks if later is None else later]
        self.reads: list[int] = []
        self.waits_for: dict[str, str] = {}
        self.asked: list[str] = []

    def read(self, references: Collection[TaskInstanceReference]) -> dict[TaskKey, TaskSnapshot]:
        tasks = self.answers[min(len(self.reads), 1)]
        self.reads.append(len(references))
        return {
            (one.dag_id, one.run_id, one.task_id, one.map_index): tasks[one.task_id]
            for one in references
            if one.task_id in tasks
        }

    def awaited(self, reference: TaskInstanceReference) -> str | None:
        self.asked.append(reference.task_id)
        return self.waits_for.get(reference.task_id)


def run(platform: FakePlatform, airflow: Any, **changes: Any) -> Reconciliation:
    limits = changes.pop("limits", Limits(pause=0))
    return reconcile(platform.ask, URL, airflow, limits=limits, **changes)


def verdicts(result: Reconciliation) -> dict[str, str]:
    return {one.invocation_id: one.verdict.value for one in result.findings}


def of_tasks(names: Iterable[str]) -> dict[str, str]:
    return {f"iv_{name}": source(task_id=name) for name in names}


def test_nothing_active_needs_one_listing_and_no_request_to_airflow() -> None:
    airflow = FakeAirflow({})
    result = run(FakePlatform({}), airflow)
    assert (result.findings, result.is_complete, airflow.reads) == ([], True, [])


def test_only_unwanted_invocations_are_cancelled() -> None:
    platform = FakePlatform(
        {
            **of_tasks(["running", "failed", "gone"]),
            "iv_other": source(task_id="failed", base_url="https://staging.example"),
            "iv_strange": "airflow:dags/what",
            "iv_detached": source(task_id="failed", is_detached=True),
        }
    )
    airflow = FakeAirflow({"running": task("running"), "failed": task("failed")})
    result = run(platform, airflow)
    assert sorted(platform.cancelled) == ["iv_failed", "iv_gone"]
    assert verdicts(result) == {
        "iv_running": "wanted", "iv_failed": "orphaned", "iv_gone": "orphaned", "iv_other": "foreign",
        "iv_strange": "unknown", "iv_detached": "wanted",
    }  # fmt: skip
    assert result.counts() == {
        "wanted": 2, "superseded": 0, "orphaned": 2, "unknown": 1, "foreign": 1, "cancelled": 2, "failed": 0
    }  # fmt: skip
    assert airflow.reads == [3, 2]
    again = run(platform, FakeAirflow({"running": task("running"), "failed": task("failed")}))
    assert again.counts()["cancelled"] == 0


def test_dry_run_decides_and_cancels_nothing() -> None:
    platform = FakePlatform(of_tasks(["failed"]))
    result = run(platform, FakeAirflow({"failed": task("failed")}), dry_run=True)
    assert (verdicts(result), platform.cancelled) == ({"iv_failed": "orphaned"}, [])


def test_what_is_wanted_again_by_the_time_of_the_cancel_is_left() -> None:
    platform = FakePlatform(of_tasks(["ask"]))
    run(platform, FakeAirflow({"ask": task("failed")}, later={"ask": task("queued")}))
    assert platform.cancelled == []


def test_of_several_the_one_that_the_task_waits_for_stays() -> None:
    platform = FakePlatform(
        {
            "iv_1": source(try_number=1, instance_id="i-1"),
            "iv_2": source(try_number=2, instance_id="i-2"),
            "iv_single": source(task_id="single"),
        }
    )
    airflow = FakeAirflow({"ask": task("deferred"), "single": task("deferred")})
    assert set(verdicts(run(platform, airflow)).values()) == {"wanted"}
    airflow.waits_for["ask"] = "iv_1"  # the new try hasn't stored its own yet
    assert set(verdicts(run(platform, airflow)).values()) == {"wanted"}
    airflow.waits_for["ask"] = "iv_2"
    assert verdicts(run(platform, airflow)) == {
        "iv_1": "superseded", "iv_2": "wanted", "iv_single": "wanted"
    }  # fmt: skip
    assert platform.cancelled == ["iv_1"]
    assert set(airflow.asked) == {"ask"}


def test_an_airflow_that_cannot_be_read_cancels_nothing() -> None:
    class Broken(FakeAirflow):
        def read(self, references: Collection[TaskInstanceReference]) -> dict[TaskKey, TaskSnapshot]:
            raise AirflowUnreadableError("503")

    platform = FakePlatform(of_tasks(["ask"]))
    with pytest.raises(AirflowUnreadableError):
        run(platform, Broken({}))
    assert platform.cancelled == []


def test_a_token_that_may_not_cancel_is_reported() -> None:
    platform = FakePlatform(of_tasks(["ask"]))
    platform.may_cancel = False
    result = run(platform, FakeAirflow({"ask": task("failed")}))
    assert [one.outcome for one in result.findings] == ["the token may not cancel"]
    assert result.counts()["failed"] == 1


def test_cancels_are_limited_and_the_rest_is_left_for_the_next_reconciliation() -> None:
    platform = FakePlatform(of_tasks(["a", "b", "c"]))
    airflow = FakeAirflow({})
    result = run(platform, airflow, limits=Limits(cancels=2, pause=0))
    assert sorted(one.outcome for one in result.findings) == [CANCELLED, CANCELLED, NEXT_TIME]
    assert not result.is_complete
    assert run(platform, airflow).counts()["cancelled"] == 1


def test_without_a_base_url_nothing_is_attributed() -> None:
    with pytest.raises(ValueError, match="base_url isn't set"):
        reconcile(FakePlatform({}).ask, "", FakeAirflow({}))
