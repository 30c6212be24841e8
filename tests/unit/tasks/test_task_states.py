"""Reading task instances through Airflow's REST API, and what is no evidence that one is gone."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from airflow_invocations.models import TaskInstanceReference
from airflow_invocations.tasks.reconciliation import AirflowUnreadableError, TaskSnapshot
from airflow_invocations.tasks.task_states import UNREADABLE, RestTaskStates, without_ambiguous_keys


def reference(task_id: str = "ask", map_index: int = -1) -> TaskInstanceReference:
    return TaskInstanceReference(
        dag_id="fleet", run_id="r/1", task_id=task_id, map_index=map_index, try_number=1
    )


def item(task_id: str = "ask", map_index: int = -1, state: str | None = "running") -> dict[str, Any]:
    return {
        "dag_id": "fleet", "dag_run_id": "r/1", "task_id": task_id, "map_index": map_index, "state": state,
        "try_number": 1, "max_tries": 2, "id": "i-1",
    }  # fmt: skip


class Airflow:
    """Airflow's answers: the list of task instances, and a status for each single one."""

    def __init__(self, items: list[dict[str, Any]], single: int = 404) -> None:
        self.items = items
        self.single = single
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        if request.url.path.endswith("/list"):
            body = json.loads(request.content)
            start = body["page_offset"]
            page = self.items[start : start + body["page_limit"]]
            return httpx.Response(200, json={"task_instances": page, "total_entries": len(self.items)})
        return httpx.Response(self.single, json=item())

    def states(self) -> RestTaskStates:
        states = RestTaskStates("https://airflow.example/", token="t")
        states._client = httpx.Client(transport=httpx.MockTransport(self), headers=states._client.headers)
        return states


def test_task_instances_are_read_in_batches() -> None:
    airflow = Airflow([item(map_index=number) for number in range(150)])
    found = airflow.states().read([reference(map_index=number) for number in range(150)])
    assert len(found) == 150
    assert set(found.values()) == {TaskSnapshot("running", 1, 2, "i-1")}
    # Two batches; the second one is on the second page.
    assert len(airflow.requests) == 3
    assert {request.headers["authorization"] for request in airflow.requests} == {"Bearer t"}


@pytest.mark.parametrize(
    ("status", "expected"),
    [(404, None), (403, UNREADABLE), (200, "running")],
    ids=["gone", "hidden from this user", "listed too late"],
)
def test_a_task_instance_that_is_not_listed_is_read_by_itself(status: int, expected: str | None) -> None:
    airflow = Airflow([], single=status)
    found = airflow.states().read([reference(map_index=3)])
    assert [one.state for one in found.values()] == ([] if expected is None else [expected])
    assert airflow.requests[-1].url.raw_path == b"/api/v2/dags/fleet/dagRuns/r%2F1/taskInstances/ask/3"


@pytest.mark.parametrize("status", [500, 502, 401])
def test_an_error_is_no_evidence(status: int) -> None:
    with pytest.raises(AirflowUnreadableError, match=str(status)):
        Airflow([], single=status).states().read([reference()])


def test_an_unreachable_airflow_is_reported_in_one_line() -> None:
    states = RestTaskStates("http://127.0.0.1:1", token="t")
    with pytest.raises(AirflowUnreadableError, match=r"^Airflow at http://127.0.0.1:1 does not answer"):
        states.read([reference()])


def test_a_task_without_a_state_has_one_by_name() -> None:
    found = Airflow([item(state=None)]).states().read([reference()])
    assert [one.state for one in found.values()] == ["none"]


@pytest.mark.parametrize(
    ("task_ids", "parts"),
    [
        ({"a", "b"}, [{"a", "b"}]),
        ({"a", "a_1", "b"}, [{"a", "b"}, {"a_1"}]),
        ({"a", "a_x", "a_1_2", "a_1"}, [{"a", "a_1_2", "a_x"}, {"a_1"}]),
    ],
)
def test_tasks_whose_instances_could_be_confused_are_read_apart(
    task_ids: set[str], parts: list[set[str]]
) -> None:
    assert without_ambiguous_keys(task_ids) == parts
