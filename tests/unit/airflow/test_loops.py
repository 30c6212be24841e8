"""Task loops (Airflow 3.4): what tells one iteration's work from another's, and what of it is recorded."""

from __future__ import annotations

import uuid
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.api.datamodels import _generated as datamodels

from airflow_invocations.models import (
    SourceFilter,
    TaskInstanceReference,
    deployment_id,
    task_instance_of,
)
from airflow_invocations.tasks.provenance import identity_of, provenance_of

from ...support.task_context import (
    context,
)

NO_REGION = uuid.UUID(int=0)
LOOP = uuid.UUID("01999999-0000-7000-8000-00000000000a")
FORK = uuid.UUID("01999999-0000-7000-8000-00000000000b")
EXPANSION = uuid.UUID("01999999-0000-7000-8000-00000000000c")

#: Fields of a task instance in the task SDK that tell it from all others. `TaskInvocationKey`
#: has each of them; `id` names a single try.
COORDINATES = {"dag_id", "run_id", "task_id", "map_index", "region_id", "region_index"}
#: The fields that may differ between two tries of the same work.
OF_A_TRY = {
    "id", "try_number", "dag_version_id", "hostname", "context_carrier", "queue", "pool_slots",
    "priority_weight", "external_executor_id", "parent_context_carrier",
}  # fmt: skip

#: Airflow counts iterations, in `loop.index` and in the region index, from 0 in 3.4's betas and from 1 in the
#: release; map indexes always from 0.
FIRST_ITERATIONS = pytest.mark.parametrize("first", [0, 1], ids=["beta", "release"])


def at(
    region_id: uuid.UUID | None,
    region_index: int | None,
    *,
    loop_index: int | None = None,
    map_index: int = -1,
    **instance: Any,
) -> Any:
    """A task's context in Airflow 3.4; without `loop_index` it is in no loop, or in a triggerer."""
    made = context()
    vars(made["ti"]).update(region_id=region_id, region_index=region_index, map_index=map_index, **instance)
    if loop_index is not None:
        made["loop"] = SimpleNamespace(index=loop_index, max_iterations=3)
    return made


def ids(made: Any) -> list[str]:
    return identity_of(made).idempotency_ids(made["ti"].try_number)


def test_a_task_instance_has_no_coordinate_that_the_identity_lacks() -> None:
    unknown = set(datamodels.TaskInstance.model_fields) - COORDINATES - OF_A_TRY
    assert not unknown, (
        f"task instances of this Airflow have {unknown}. If two of them may differ in nothing else, add it "
        "to TaskInvocationKey and to DagRunProvenance: without it they would share one invocation"
    )


@FIRST_ITERATIONS
def test_each_iteration_has_ids_of_its_own(first: int) -> None:
    iterations = [ids(at(LOOP, index, loop_index=index)) for index in range(first, first + 3)]
    assert len({one for each in iterations for one in each}) == 3 * len(iterations[0])


def test_a_retry_in_a_loop_has_the_ids_of_the_try_before_it() -> None:
    before, after = (at(LOOP, 1, loop_index=1, try_number=number) for number in (1, 2))
    assert ids(before)[0] == ids(after)[0]


def test_the_identity_does_not_depend_on_how_airflow_counts_iterations() -> None:
    assert ids(at(LOOP, 1, loop_index=1)) == ids(at(LOOP, 1, loop_index=2))


def test_tasks_repeated_by_a_selective_clear_have_new_ids() -> None:
    assert not set(ids(at(LOOP, 1, loop_index=1))) & set(ids(at(FORK, 1, loop_index=1)))


def test_a_task_that_is_cleared_in_place_knows_its_earlier_ids() -> None:
    cleared = at(LOOP, 1, loop_index=1, try_number=2, max_tries=4)
    assert ids(at(LOOP, 1, loop_index=1, try_number=1))[0] in identity_of(cleared).earlier_ids(2)


def test_mapped_tasks_in_a_loop_differ_by_iteration_and_by_index() -> None:
    found = {
        ids(at(region, index, map_index=index, loop_index=iteration))[0]
        for iteration, region in enumerate((EXPANSION, FORK))
        for index in range(2)
    }
    assert len(found) == 4


@pytest.mark.parametrize("map_index", [-1, 3])
def test_outside_of_loops_an_upgrade_to_airflow_3_4_changes_no_identity(map_index: int) -> None:
    before = context()
    before["ti"].map_index = map_index
    regions = [None, NO_REGION] if map_index < 0 else [None, NO_REGION, EXPANSION]
    for region in regions:
        after = at(region, map_index, map_index=map_index)
        assert identity_of(after) == identity_of(before)
        assert provenance_of(after) == provenance_of(before)


@pytest.mark.parametrize("map_index", [-1, 2])
def test_provenance_names_the_iteration(map_index: int) -> None:
    asked = provenance_of(at(LOOP, 2, loop_index=3, map_index=map_index))
    assert (asked.iteration, asked.region_id, asked.region_index) == (3, str(LOOP), 2)
    assert task_instance_of(asked.source_id) == TaskInstanceReference(
        dag_id=asked.dag_id,
        run_id=asked.run_id,
        task_id=asked.task_id,
        map_index=map_index,
        iteration=3,
        region_id=str(LOOP),
        region_index=2,
        try_number=2,
        instance_id=asked.instance_id,
        max_tries=3,
        deployment=deployment_id(asked.base_url),
    )
    assert asked.environment()["AIRFLOW_CTX_LOOP_ITERATION"] == "3"


@FIRST_ITERATIONS
def test_a_triggerer_sees_the_same_iteration_as_a_worker(first: int) -> None:
    """A triggerer's context has no `loop`."""
    for iteration in range(first, first + 3):
        worker, triggerer = at(LOOP, iteration, loop_index=iteration), at(LOOP, iteration)
        assert identity_of(triggerer) == identity_of(worker)
        assert provenance_of(triggerer) == provenance_of(worker)
        assert provenance_of(triggerer).iteration == iteration


def test_iterations_are_found_apart_and_together() -> None:
    asked = {
        (map_index, iteration): provenance_of(
            at(LOOP, max(map_index, iteration), loop_index=iteration, map_index=map_index)
        ).source_id
        for map_index in (-1, 1, 11)
        for iteration in (0, 1, 11)
    }
    outside = provenance_of(context())
    asked[-1, -1] = outside.source_id

    def found(map_index: int | None, iteration: int | None) -> set[tuple[int, int]]:
        wanted = SourceFilter(outside.dag_id, outside.run_id, outside.task_id, map_index, iteration)
        matching = {key for key, source_id in asked.items() if wanted.matches(source_id)}
        assert all(asked[key].startswith(wanted.prefixes) for key in matching)
        return matching

    assert found(None, None) == set(asked)
    assert found(None, 1) == {(-1, 1), (1, 1), (11, 1)}
    assert found(1, None) == {(1, 0), (1, 1), (1, 11)}
    assert found(-1, None) == {(-1, -1), (-1, 0), (-1, 1), (-1, 11)}
    assert found(1, 1) == {(1, 1)}
    assert found(-1, 1) == {(-1, 1)}
    assert found(2, None) == found(None, 2) == set()
