"""Names: of tasks as people write them, of runs as they are derived."""

from __future__ import annotations

import re
from typing import Any

import pytest

from airflow_invocations.models import (
    ContainerParameters,
    DagRunProvenance,
    InvocationRequest,
    InvocationSource,
)
from airflow_invocations.platforms import InvalidRequestError, NotFoundError
from airflow_invocations.platforms.flyte import FlyteSettings
from airflow_invocations.platforms.flyte.ids import (
    ProjectDomain,
    RunId,
    TaskId,
    name_begin,
    name_middle,
    run_name,
)

HERE = ProjectDomain("fleet", "development")
SETTINGS = FlyteSettings("http://h", project="fleet", domain="development")


def request(key: str | None = "once", **changes: Any) -> InvocationRequest:
    asked_by = DagRunProvenance(
        **{"dag_id": "d", "run_id": "r", "run_type": "manual", "task_id": "t", "try_number": 1, **changes}
    )
    return InvocationRequest(
        invocation_source=InvocationSource.Manual,
        idempotency_id=key,
        container_parameter_overrides=ContainerParameters(env_vars=asked_by.environment()),
    )


@pytest.mark.parametrize(
    ("action", "expected"),
    [
        ("env.f", TaskId(HERE, "env.f")),
        ("env.f@v1", TaskId(HERE, "env.f", "v1")),
        ("production/env.f", TaskId(ProjectDomain("fleet", "production"), "env.f")),
        ("bags/production/env.f@v1", TaskId(ProjectDomain("bags", "production"), "env.f", "v1")),
    ],
)
def test_missing_parts_of_an_action_come_from_the_connection(action: str, expected: TaskId) -> None:
    assert TaskId.of(action, SETTINGS) == expected


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        (
            TaskId(HERE, "env.f", "v1"),
            {"env.f", "development/env.f", "fleet/development/env.f"}
            | {"env.f@v1", "development/env.f@v1", "fleet/development/env.f@v1"},
        ),
        (TaskId(HERE, "env.f"), {"env.f", "development/env.f", "fleet/development/env.f"}),
        (
            TaskId(ProjectDomain("fleet", "production"), "env.f"),
            {"production/env.f", "fleet/production/env.f"},
        ),
        (TaskId(ProjectDomain("bags", "development"), "env.f"), {"bags/development/env.f"}),
    ],
)
def test_a_task_has_every_name_that_stands_for_it_and_no_other(task: TaskId, expected: set[str]) -> None:
    assert task.names(SETTINGS) == expected
    for name in expected:
        assert TaskId.of(name, SETTINGS) in (task, TaskId(task.scope, task.name))


@pytest.mark.parametrize("action", ["", "/", "a//f", "a/b/c/f", "f@", "@v1", "/f"])
def test_invalid_task_names_are_rejected(action: str) -> None:
    with pytest.raises(InvalidRequestError, match="project/domain/name@version"):
        TaskId.of(action, SETTINGS)


def test_missing_part_is_named() -> None:
    nothing = FlyteSettings("http://h")
    with pytest.raises(InvalidRequestError, match="has no project"):
        TaskId.of("f", FlyteSettings("http://h", domain="d"))
    with pytest.raises(InvalidRequestError, match="has no domain"):
        TaskId.of("f", FlyteSettings("http://h", project="p"))
    assert TaskId.of("p/d/f", nothing) == TaskId(ProjectDomain("p", "d"), "f")


@pytest.mark.parametrize("invocation_id", ["", "a", "a/b", "a/b/", "a/b/c/d", "//"])
def test_invalid_run_ids_are_not_found(invocation_id: str) -> None:
    with pytest.raises(NotFoundError):
        RunId.of(invocation_id)
    assert str(RunId.of("a/b/c")) == "a/b/c"


def test_a_name_is_one_that_kubernetes_takes_and_depends_on_the_idempotency_id() -> None:
    names = {run_name(HERE, request(f"key {number}")) for number in range(1000)}
    assert len(names) == 1000
    assert all(re.fullmatch(r"[a-z][a-z2-7]{29}", name) for name in names)


def test_same_idempotency_id_is_the_same_name_in_every_try() -> None:
    assert run_name(HERE, request()) == run_name(HERE, request(try_number=2, clear_number=3, task_id="u"))


def test_without_an_idempotency_id_each_request_is_another_run() -> None:
    assert run_name(HERE, request(None)) != run_name(HERE, request(None))


def test_names_can_be_searched_for_by_what_they_begin_with_and_have_in_the_middle() -> None:
    name = run_name(HERE, request())
    assert name.startswith(name_begin("d", "r"))
    assert name_begin("d", "r").startswith(name_begin("d", None))
    assert name_middle("once") in name
    assert not run_name(HERE, request(run_id="r2")).startswith(name_begin("d", "r"))
    assert not run_name(HERE, request(dag_id="d2")).startswith(name_begin("d", None))


def test_no_two_projects_have_a_run_of_the_same_name() -> None:
    others = [ProjectDomain("fleet", "production"), ProjectDomain("bags", "development")]
    assert len({run_name(place, request()) for place in [HERE, *others]}) == 3
