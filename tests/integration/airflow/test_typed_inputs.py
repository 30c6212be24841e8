"""Inputs against what an action declares, on the real server: all that is wrong at once, nothing sent."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_invocations.exceptions import RequestRejectedError
from airflow_invocations.hooks import RobotoHook
from airflow_invocations.models import ActionParameter, ParameterType
from airflow_invocations.operators import InvokeActionOperator

from .conftest import Task, script
from .test_durability import count

PARAMETERS = [
    ActionParameter(name="file", required=True, type=ParameterType.String),
    ActionParameter(name="lines", required=True, type=ParameterType.Integer),
    ActionParameter(name="columns", type=ParameterType.Array),
    ActionParameter(name="note"),
]


def run(action: str, task: Task, **arguments: Any) -> Any:
    operator = InvokeActionOperator(task_id="ask", action=action, poll_interval=0.1, **arguments)
    return operator.execute(task.context)


def test_the_service_keeps_types_and_texts_become_what_is_declared(hook: RobotoHook, task: Task) -> None:
    action = script(hook, "true", parameters=PARAMETERS)
    assert [parameter.type for parameter in hook.get_action(action).parameters] == [
        parameter.type for parameter in PARAMETERS
    ]
    given = {"file": "1.0", "lines": "12", "columns": "['a', 'b']", "note": "3"}
    result = run(action, task, parameters=given)
    kept = hook.get(result["invocation_id"]).parameter_values
    assert kept == {"file": "1.0", "lines": 12, "columns": ["a", "b"], "note": "3"}


def test_problems_are_reported_together_before_a_request(hook: RobotoHook, task: Task) -> None:
    action = script(hook, "true", parameters=PARAMETERS)
    operator = InvokeActionOperator(
        task_id="ask", action=action, timeout="{{ params.none }}",
        parameters={"lines": "many", "columns": 3, "wot": 1},
    )  # fmt: skip
    operator.timeout = "soon"  # as a template may render
    with pytest.raises(RequestRejectedError) as rejected:
        operator.execute(task.context)
    said = str(rejected.value)
    for problem in (
        "task 'ask': argument 'timeout'",
        "'lines' must be an integer, not the text 'many'",
        "'columns' must be an array, not the integer 3",
        "unknown parameter 'wot'",
        "missing: 'file'",
        "the action declares: file (string, required), lines (integer, required), columns (array), note",
    ):
        assert problem in said
    assert task.pushed == {}
    assert count(hook, action) == 0


def test_an_unknown_action_is_said_beside_the_rest(hook: RobotoHook, task: Task) -> None:
    operator = InvokeActionOperator(task_id="ask", action="no-such-action")
    operator.timeout = "soon"
    with pytest.raises(
        RequestRejectedError, match=r"argument 'timeout'.*there is no action 'no-such-action'"
    ):
        operator.execute(task.context)
