"""`@task.invoke_action` when the DAG is parsed, and what a function may return."""

from __future__ import annotations

from typing import Any

import pytest
from airflow.sdk import DAG, task

from airflow_invocations.decorators.invoke_action import InvokeActionDecoratedOperator
from airflow_invocations.exceptions import RequestRejectedError


def operator(returned: Any, **arguments: Any) -> InvokeActionDecoratedOperator:
    return InvokeActionDecoratedOperator(
        task_id="ask", python_callable=lambda: returned, **{"action": "a", **arguments}
    )


def test_a_function_becomes_a_task_that_can_be_mapped() -> None:
    with DAG("fleet") as dag:

        @task.invoke_action(action="find_anomalies", conn_id="c", deferrable=True)
        def find(file: str) -> dict[str, Any]:
            """Find anomalies."""
            return {"file": file}

        find("a.csv")
        find.override(task_id="find_all").expand(file=["a.csv", "b.csv"])
    one = dag.get_task("find")
    assert isinstance(one, InvokeActionDecoratedOperator)
    assert (one.action, one.conn_id, one.deferrable) == ("find_anomalies", "c", True)
    assert one.doc_md == "Find anomalies."
    assert one.operator_name == "@task.invoke_action"
    assert {"action", "conn_id", "op_kwargs"} <= set(one.template_fields)
    assert dag.get_task("find_all").is_mapped


def test_invalid_decorator_is_rejected_at_parse() -> None:
    @task.invoke_action(action="a", timeout=0)
    def find() -> None:
        return None

    with DAG("fleet"), pytest.raises(ValueError, match="DAG 'fleet', task 'find': argument 'timeout'"):
        find()


@pytest.mark.parametrize("expand", ["expand", "expand_kwargs"])
def test_it_is_said_of_a_mapped_function_too(expand: str) -> None:
    def mapped(**arguments: Any) -> None:
        function = task.invoke_action(**arguments)(lambda file: {"file": file})
        over: Any = [{"file": "a"}] if expand == "expand_kwargs" else ["a"]
        made = function.override(task_id="find")
        made.expand_kwargs(over) if expand == "expand_kwargs" else made.expand(file=over)

    with DAG("fleet"), pytest.raises(ValueError, match=r"DAG 'fleet', task 'find': argument 'action'.*'poll"):
        mapped(action="", poll_interval=0)
    with DAG("fleet"):
        mapped(action="{{ params.action }}", conn_id="c")


def test_a_mapped_function_needs_a_worker_too() -> None:
    @task.invoke_action(action="a")
    def find(file: str) -> dict[str, Any]:
        return {"file": file}

    with DAG("fleet"), pytest.raises(ValueError, match="task 'find': argument 'start_from_trigger'"):
        find.override(start_from_trigger=True).expand(file=["a"])


def test_an_annotation_unrolls_the_result_as_it_does_with_any_function() -> None:
    def plain(file):  # type: ignore[no-untyped-def]
        return {"file": file}

    def typed(file: str) -> dict[str, Any]:
        return {"file": file}

    with DAG("fleet"):
        for function, given, unrolls in (
            (plain, {}, False),
            (typed, {}, True),
            (typed, {"multiple_outputs": False}, False),
        ):
            made = task.invoke_action(action="a", **given)(function)("a.csv")
            assert made.operator.multiple_outputs is unrolls


@pytest.mark.parametrize(
    ("returned", "parameters", "action"),
    [
        (None, {"kept": 1}, "a"),
        ({}, {}, "a"),
        ({"n": 1}, {"n": 1}, "a"),
        ({"timeout": 3}, {"timeout": 3}, "a"),
        ({"parameters": {"n": 1}}, {"n": 1}, "a"),
        ({"parameters": {"n": 1}, "action": "b"}, {"n": 1}, "b"),
        ({"parameters": [1], "n": 2}, {"parameters": [1], "n": 2}, "a"),
    ],
)
def test_a_function_returns_parameters_or_a_whole_request(
    returned: Any, parameters: dict[str, Any], action: str
) -> None:
    made = operator(returned, parameters={"kept": 1})
    made._take(returned)
    assert (made.parameters, made.action) == (parameters, action)


def test_other_return_types_are_rejected() -> None:
    with pytest.raises(RequestRejectedError, match="task 'ask': the function returned list"):
        operator([1])._take([1])


def test_a_decorator_that_is_used_twice_makes_two_tasks() -> None:
    decorate = task.invoke_action(action="a")

    def find() -> None: ...
    def check() -> None: ...

    with DAG("fleet") as dag:
        decorate(find)()
        decorate(check)()
    assert set(dag.task_ids) == {"find", "check"}
