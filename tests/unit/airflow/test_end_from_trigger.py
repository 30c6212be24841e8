"""Which tasks may end in the triggerer: rejected when the DAG is parsed, or left to a worker."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import DAG, Asset, task

from airflow_invocations.operators import InvokeActionOperator, _end_from_trigger
from airflow_invocations.retry_policy import invocation_retry_policy

from ...support.airflow_version import since

IGNORED = [
    ({"outlets": [Asset("a")]}, "outlets emit no asset event there"),
    ({"on_success_callback": print}, "on_success_callback isn't called there"),
    ({"post_execute": print}, "post_execute isn't called there"),
]


@pytest.mark.parametrize(("arguments", "named"), IGNORED)
def test_arguments_that_airflow_ignores_in_a_triggerer_are_rejected_at_parse(
    arguments: dict[str, Any], named: str
) -> None:
    with (
        DAG("fleet"),
        pytest.raises(ValueError, match="DAG 'fleet', task 'ask': argument 'end_from_trigger'") as raised,
    ):
        InvokeActionOperator(task_id="ask", action="a", end_from_trigger=True, **arguments)
    assert named in str(raised.value)
    assert "use deferrable=True" in str(raised.value)


@pytest.mark.parametrize(("arguments", "named"), IGNORED)
@pytest.mark.filterwarnings("error")
def test_mapped_task_with_ignored_arguments_is_rejected_at_parse(
    arguments: dict[str, Any], named: str
) -> None:
    with DAG("fleet"), pytest.raises(ValueError, match=named):
        InvokeActionOperator.partial(task_id="ask", action="a", end_from_trigger=True, **arguments)


def test_task_that_ends_in_the_triggerer_is_deferrable_also_if_mapped_or_decorated() -> None:
    @task.invoke_action(action="a", end_from_trigger=True)
    def ask() -> None:
        return None

    with DAG("fleet") as dag:
        assert InvokeActionOperator(task_id="one", action="a", end_from_trigger=True).deferrable is True
        InvokeActionOperator.partial(task_id="many", end_from_trigger=True).expand(action=["a", "b"])
        ask()
    assert dag.get_task("ask").end_from_trigger is True
    assert dag.get_task("many").unmap({"action": "a"}).end_from_trigger is True


@since("3.3", "tasks that end in the triggerer")
@pytest.mark.parametrize("is_on", [False, True])
def test_lineage_needs_a_worker_at_the_end(monkeypatch: pytest.MonkeyPatch, is_on: bool) -> None:
    monkeypatch.setattr(_end_from_trigger, "is_switched_on", lambda: is_on)
    with DAG("fleet"):
        made = InvokeActionOperator(task_id="ask", action="a", end_from_trigger=True)
    assert _end_from_trigger.needs_worker_to_succeed(made) is is_on


@pytest.mark.parametrize(
    ("try_number", "arguments", "expected"),
    [
        (1, {}, True),
        (2, {}, True),
        (3, {}, False),
        (3, {"on_failure_callback": print}, True),
        (3, {"on_retry_callback": print}, True),
        pytest.param(
            3, {"retry_policy": invocation_retry_policy()}, True, marks=since("3.3", "retry policies")
        ),
    ],
)
def test_failure_needs_a_worker_for_retries_callbacks_and_policies(
    try_number: int, arguments: dict[str, Any], expected: bool
) -> None:
    with DAG("fleet"):
        made = InvokeActionOperator(task_id="ask", action="a", end_from_trigger=True, **arguments)
    instance = SimpleNamespace(try_number=try_number, max_tries=2)
    assert _end_from_trigger.needs_worker_to_fail(made, instance) is expected
