"""Whether an invocation belongs to the present incarnation of a task: a table of Airflow's numbers."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_invocations.models import DagRunProvenance
from airflow_invocations.tasks.incarnation import Origin, origin_of

O = Origin  # noqa: E741


def a_try(try_number: int, **changes: Any) -> DagRunProvenance:
    values: dict[str, Any] = {
        "dag_id": "fleet",
        "run_id": "scheduled__1",
        "run_type": "scheduled",
        "task_id": "ask",
        "try_number": try_number,
        "max_tries": 1,
        "instance_id": f"instance-{try_number}",
        "base_url": "https://airflow.example",
    }
    return DagRunProvenance(**{**values, **changes})


@pytest.mark.parametrize(
    ("theirs", "mine", "first_try", "expected"),
    [
        pytest.param(a_try(2), a_try(2), 1, O.Own, id="this try"),
        pytest.param(a_try(1), a_try(2), 1, O.Own, id="a retry"),
        pytest.param(a_try(1), a_try(2), -1, O.Own, id="a retry after retries was raised"),
        pytest.param(a_try(1), a_try(2), 2, O.Own, id="a retry after retries was lowered"),
        pytest.param(
            a_try(1), a_try(2, clear_number=1), 1, O.Own, id="a retry after a neighbour was cleared"
        ),
        pytest.param(a_try(1), a_try(2, max_tries=2, clear_number=1), 2, O.Earlier, id="a clear"),
        pytest.param(a_try(1), a_try(2, max_tries=2), 2, O.Earlier, id="a clear that the run does not count"),
        pytest.param(
            a_try(1),
            a_try(3, max_tries=2, clear_number=1),
            1,
            O.Earlier,
            id="a clear, then retries raised (the incarnation of old is 0 again)",
        ),
        pytest.param(
            a_try(2, max_tries=2, clear_number=1),
            a_try(3, max_tries=2, clear_number=1),
            1,
            O.Own,
            id="a retry after a clear and an edit of retries",
        ),
        pytest.param(
            a_try(1),
            a_try(2, max_tries=1, clear_number=1),
            2,
            O.Earlier,
            id="a clear after retries was lowered, so that max_tries is the same",
        ),
        pytest.param(
            a_try(1, instance_id="another"), a_try(1), 1, O.Earlier, id="a deleted run with the same id"
        ),
        pytest.param(
            a_try(1, clear_number=2), a_try(2), 1, O.Earlier, id="a deleted run whose tasks were cleared"
        ),
        pytest.param(a_try(1, instance_id=None), a_try(1), 1, O.Own, id="no instance id to compare"),
        pytest.param(a_try(3), a_try(2), 1, O.Later, id="a later try, seen by a worker that stood still"),
        pytest.param(
            a_try(1, max_tries=None), a_try(2, max_tries=None), 2, O.Own, id="a retry in a triggerer"
        ),
        pytest.param(
            a_try(1, max_tries=None),
            a_try(2, max_tries=None, clear_number=1),
            2,
            O.Earlier,
            id="a clear in a triggerer",
        ),
        pytest.param(
            a_try(1, max_tries=None),
            a_try(2, max_tries=None, clear_number=1),
            1,
            O.Own,
            id="a retry in a triggerer after a neighbour was cleared",
        ),
        pytest.param(
            a_try(1, base_url="https://staging.example"), a_try(2), 1, O.Foreign, id="another Airflow"
        ),
        pytest.param(a_try(1, map_index=3), a_try(2), 1, O.Foreign, id="another map index"),
        pytest.param(
            a_try(1, region_id="a", region_index=1),
            a_try(2, region_id="a", region_index=2),
            1,
            O.Foreign,
            id="another iteration",
        ),
        pytest.param(a_try(1, dag_id="other"), a_try(2), 1, O.Foreign, id="another DAG"),
    ],
)
def test_origin_of_an_invocation(
    theirs: DagRunProvenance, mine: DagRunProvenance, first_try: int, expected: Origin
) -> None:
    assert origin_of(theirs.source_id, mine, first_try) is expected


@pytest.mark.parametrize("source_id", ["", "ada@example.com", "tr_1", "airflow:dags/fleet/runs/r/tasks/ask"])
def test_origin_of_what_no_task_started_is_foreign(source_id: str) -> None:
    assert origin_of(source_id, a_try(2), 1) is O.Foreign
