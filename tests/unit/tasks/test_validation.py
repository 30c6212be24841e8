"""What is wrong with a task is said when its DAG is parsed, with the task's and the argument's name."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from airflow.sdk import DAG, XComArg, task_group

from airflow_invocations.models import (
    ComputeRequirements,
    ContainerParameters,
    FileSelector,
    InvocationInput,
    InvocationRequest,
    UploadDestination,
)
from airflow_invocations.operators import FetchInvocationLogsOperator, InvokeActionOperator
from airflow_invocations.sensors import InvocationSensor
from airflow_invocations.tasks.validation import ids_of, is_templated, read_arguments, request_of

from ...support.task_context import (
    NOON,
    PROVENANCE,
)

BAD = [
    ("action", "", "allowed: a name"),
    ("action", 3, "allowed: a name"),
    ("parameters", ["a"], "allowed: a dict"),
    ("parameters", {1: "a"}, "allowed: a dict"),
    ("parameters", {"a": {1}}, "must be JSON"),
    ("parameters", {"a": float("nan")}, "must be JSON"),
    ("input_data", "*.csv", "a list of path patterns"),
    ("input_data", ["*.csv"], "set data_source_id"),
    ("input_data", {}, "at least one of: files, sessions, topics"),
    ("input_data", {"files": {}}, "at least one of: query, ids, names, paths"),
    ("data_source_id", "", "allowed: a name"),
    ("upload_destination", 3, "allowed: a UploadDestination"),
    ("compute_requirements", {"vCPU": 300}, "allowed: 256, 512"),
    ("compute_requirements", {"vCPU": 256, "memory": 8192}, "512, 1024, 2048"),
    ("compute_requirements", {"cpus": 2}, "'cpus'; allowed: vCPU"),
    ("container_parameters", {"command": "ls"}, "command"),
    ("container_parameters", {"image": "x"}, "'image'; allowed: command"),
    ("timeout", 0, "whole minutes, from 1"),
    ("timeout", 1.5, "whole minutes, from 1"),
    ("timeout", True, "whole minutes, from 1"),
    ("timeout", "5m", "it is '5m'; allowed: whole minutes, from 1"),
    ("poll_interval", 0, "seconds, from 0.1"),
    ("poll_interval", "soon", "seconds, from 0.1"),
    ("conn_id", "", "allowed: a name"),
]


@pytest.mark.parametrize(("argument", "value", "hint"), BAD, ids=[f"{a}-{v!r}"[:40] for a, v, _ in BAD])
def test_an_argument_that_can_not_be_right_is_rejected_at_parse(argument: str, value: Any, hint: str) -> None:
    arguments = {"action": "a", argument: value}
    with DAG("d"), pytest.raises(ValueError, match=rf"task 'ask'.*argument '{argument}'") as raised:
        InvokeActionOperator(task_id="ask", **arguments)
    assert hint in str(raised.value)


@pytest.mark.parametrize("argument", sorted({argument for argument, *_ in BAD} - {"poll_interval"}))
def test_templated_values_are_not_checked_at_parse(argument: str) -> None:
    with DAG("d"):
        InvokeActionOperator(task_id="ask", **{"action": "a", argument: "{{ params.later }}"})


def test_values_in_templates_lists_and_xcoms_are_late() -> None:
    with DAG("d"):
        upstream = InvokeActionOperator(task_id="up", action="a")
    assert is_templated({"a": ["{{ ds }}"]})
    assert is_templated({"{{ ds }}": 1})
    assert is_templated([XComArg(upstream)])
    assert is_templated(InvocationInput(files=FileSelector(paths=["{{ ds }}/*"])))
    assert not is_templated({"a": ["plain", 1, None, {"b": "}}"}]})


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        (InvokeActionOperator, ("parameters", "input_data", "data_source_id", "upload_destination")),
        (FetchInvocationLogsOperator, ("invocation_id",)),
        (InvocationSensor, ("invocation_id", "invocation_ids")),
    ],
)
def test_type_checkers_are_told_of_other_tasks_results(kind: Any, names: tuple[str, ...]) -> None:
    for name in names:
        assert "XComArg" in inspect.signature(kind.__init__).parameters[name].annotation


def test_a_sensor_says_so_too() -> None:
    with DAG("d"), pytest.raises(ValueError, match=r"task 'wait'.*argument 'invocation_id'"):
        InvocationSensor(task_id="wait", invocation_id="")


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        ({"invocation_id": "iv_1", "wait_for": 3}, "'wait_for': it can't be used with 'invocation_id'"),
        ({"action": "a", "wait_for": 2}, "'wait_for': it can't be used with 'action'"),
        ({"invocation_ids": ["iv_1"], "since": NOON}, "'since': it can't be used with 'invocation_ids'"),
        (
            {"action": "a", "since": "yesterday"},
            "'since': it is 'yesterday'; allowed: a time with its offset",
        ),
    ],
)
def test_a_sensor_ignores_no_argument(arguments: dict[str, Any], hint: str) -> None:
    with DAG("d"), pytest.raises(ValueError, match=f"DAG 'd', task 'wait': argument {hint}"):
        InvocationSensor(task_id="wait", **arguments)


def request(**given: Any) -> InvocationRequest:
    values, problems = read_arguments(arguments(**given))
    assert problems == []
    return request_of(values, PROVENANCE)


def arguments(**given: Any) -> dict[str, Any]:
    names = [
        "action", "parameters", "data_source_id", "input_data", "upload_destination",
        "compute_requirements", "container_parameters", "timeout",
    ]  # fmt: skip
    return {**dict.fromkeys(names), "action": "a", **given}


def test_everything_that_is_asked_for_is_in_the_request() -> None:
    asked = request(
        parameters={"n": 1, "deep": {"a": [1.5, None, "x"]}},
        data_source_id="ds_1",
        input_data=["*.csv"],
        upload_destination="ds_2",
        compute_requirements={"vCPU": 1024, "memory_MiB": 4096},
        container_parameters={"command": ["run"], "env_vars": {"MINE": "1"}},
        timeout="15",
    )
    assert asked.parameter_values == {"n": 1, "deep": {"a": [1.5, None, "x"]}}
    assert (asked.data_source_id, asked.input_data) == ("ds_1", ["*.csv"])
    assert asked.upload_destination == UploadDestination(destination_id="ds_2")
    assert asked.compute_requirement_overrides == ComputeRequirements(vCPU=1024, memory=4096)
    assert asked.timeout == 15
    assert asked.idempotency_id is None
    assert asked.invocation_source_id == PROVENANCE.source_id
    container = asked.container_parameter_overrides
    assert container is not None
    assert container.command == ["run"]
    assert container.env_vars is not None
    assert container.env_vars["MINE"] == "1"
    assert container.env_vars["AIRFLOW_CTX_DAG_ID"] == PROVENANCE.dag_id


def test_models_are_taken_as_well_as_their_dicts() -> None:
    chosen = InvocationInput(files=FileSelector(query='dataset_id = "ds_1"'))
    asked = request(
        input_data=chosen,
        compute_requirements=ComputeRequirements(),
        container_parameters=ContainerParameters(entry_point=["sh"]),
        upload_destination=UploadDestination(destination_id="ds_2"),
    )
    assert asked.rich_input_data == chosen
    assert asked.input_data == []


def test_unset_arguments_are_not_sent() -> None:
    wire = request().wire()
    assert set(wire) == {
        "data_source_id", "data_source_type", "input_data", "invocation_source", "invocation_source_id",
        "container_parameter_overrides",
    }  # fmt: skip
    assert set(wire["container_parameter_overrides"]) == {"env_vars"}


def test_rendered_values_are_checked_again_and_all_that_is_wrong_is_said() -> None:
    values, problems = read_arguments(
        arguments(action="", timeout="rendered to nonsense", parameters="{'n': 1}")
    )
    assert [problem.partition(":")[0] for problem in problems] == ["argument 'action'", "argument 'timeout'"]
    assert values["parameters"] == {"n": 1}


def test_problems_are_reported_together_at_parse_with_the_dag() -> None:
    with DAG("fleet"), pytest.raises(ValueError, match="DAG 'fleet', task 'ask': ") as raised:
        InvokeActionOperator(
            task_id="ask", action="", timeout=0, parameters="{{ ds }}", compute_requirements={"cpus": 1}
        )
    said = str(raised.value)
    for argument in ("action", "timeout", "compute_requirements"):
        assert f"argument {argument!r}: it" in said
    assert "parameters" not in said


def test_partial_arguments_of_a_mapped_task_are_checked_at_parse() -> None:
    with DAG("fleet"), pytest.raises(ValueError, match="DAG 'fleet', task 'ask': argument 'timeout'"):
        InvokeActionOperator.partial(task_id="ask", action="a", timeout=0)
    with DAG("fleet") as dag:
        InvokeActionOperator.partial(task_id="ask", input_data=["*.csv"]).expand(
            action=["a"], data_source_id=["ds_1"]
        )
    assert dag.get_task("ask").is_mapped


def test_tasks_of_a_mapped_group_take_what_the_group_hands_them() -> None:
    with DAG("fleet") as dag:

        @task_group
        def each(parameters: dict[str, Any]) -> None:
            InvokeActionOperator(task_id="ask", action="a", parameters=parameters)

        each.expand(parameters=[{"n": 1}, {"n": 2}])
    assert "each.ask" in dag.task_ids


@pytest.mark.parametrize(
    ("value", "ids"),
    [
        ("iv_1", ["iv_1"]),
        ({"invocation_id": "iv_1", "status": "Failed"}, ["iv_1"]),
        (["iv_1", None, {"invocation_id": "iv_2"}, "iv_1"], ["iv_1", "iv_2"]),
        ([["iv_1"], ["iv_2"]], ["iv_1", "iv_2"]),
        ("['iv_1', 'iv_2']", ["iv_1", "iv_2"]),
        ('["iv_1"]', ["iv_1"]),
        (None, []),
        ("None", []),
        ("", []),
    ],
)
def test_ids_are_found_in_whatever_tasks_hand_on(value: object, ids: list[str]) -> None:
    assert ids_of(value) == ids


@pytest.mark.parametrize("value", [3, {"status": "Failed"}, ["iv_1", 4], "[unclosed"])
def test_value_that_names_no_invocation_is_rejected(value: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        ids_of(value)
