"""What is wrong with a task is said when its DAG is parsed, with the task's and the argument's name."""

from __future__ import annotations

from typing import Any

import pytest
from airflow.sdk import DAG, XComArg

from airflow_invocations.model import (
    ComputeRequirements,
    ContainerParameters,
    FileSelector,
    InvocationInput,
    UploadDestination,
)
from airflow_invocations.operators import InvokeActionOperator
from airflow_invocations.operators.arguments import is_late, request_of
from airflow_invocations.sensors import InvocationSensor

from .conftest import PROVENANCE

BAD = [
    ("action", "", "allowed: a name"),
    ("action", 3, "allowed: a name"),
    ("parameters", ["a"], "allowed: a dict"),
    ("parameters", {1: "a"}, "allowed: a dict"),
    ("parameters", {"a": object()}, "must be JSON"),
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
    ("poll_interval", 0, "seconds, from 0.1"),
    ("poll_interval", "soon", "seconds, from 0.1"),
    ("conn_id", "", "allowed: a name"),
]


@pytest.mark.parametrize(("argument", "value", "hint"), BAD, ids=[f"{a}-{v!r}"[:40] for a, v, _ in BAD])
def test_an_argument_that_can_not_be_right_is_refused_at_parse(argument: str, value: Any, hint: str) -> None:
    arguments = {"action": "a", argument: value}
    with DAG("d"), pytest.raises(ValueError, match=rf"task 'ask'.*argument '{argument}'") as raised:
        InvokeActionOperator(task_id="ask", **arguments)
    assert hint in str(raised.value)


@pytest.mark.parametrize("argument", sorted({argument for argument, *_ in BAD} - {"poll_interval"}))
def test_what_is_known_only_at_run_time_is_left_alone_at_parse(argument: str) -> None:
    with DAG("d"):
        InvokeActionOperator(task_id="ask", **{"action": "a", argument: "{{ params.later }}"})


def test_values_in_templates_lists_and_xcoms_are_late() -> None:
    with DAG("d"):
        upstream = InvokeActionOperator(task_id="up", action="a")
    assert is_late({"a": ["{{ ds }}"]})
    assert is_late({"{{ ds }}": 1})
    assert is_late([XComArg(upstream)])
    assert is_late(InvocationInput(files=FileSelector(paths=["{{ ds }}/*"])))
    assert not is_late({"a": ["plain", 1, None, {"b": "}}"}]})


def test_a_sensor_says_so_too() -> None:
    with DAG("d"), pytest.raises(ValueError, match=r"task 'wait'.*argument 'invocation_id'"):
        InvocationSensor(task_id="wait", invocation_id="")


def arguments(**given: Any) -> dict[str, Any]:
    names = [
        "action", "parameters", "data_source_id", "input_data", "upload_destination",
        "compute_requirements", "container_parameters", "timeout",
    ]  # fmt: skip
    return {**dict.fromkeys(names), "action": "a", **given}


def test_everything_that_is_asked_for_is_in_the_request() -> None:
    request = request_of(
        "ask",
        arguments(
            parameters={"n": 1, "deep": {"a": [1.5, None, "x"]}},
            data_source_id="ds_1",
            input_data=["*.csv"],
            upload_destination="ds_2",
            compute_requirements={"vCPU": 1024, "memory_MiB": 4096},
            container_parameters={"command": ["run"], "env_vars": {"MINE": "1"}},
            timeout="15",
        ),
        PROVENANCE,
    )
    assert request.parameter_values == {"n": 1, "deep": {"a": [1.5, None, "x"]}}
    assert (request.data_source_id, request.input_data) == ("ds_1", ["*.csv"])
    assert request.upload_destination == UploadDestination(destination_id="ds_2")
    assert request.compute_requirement_overrides == ComputeRequirements(vCPU=1024, memory=4096)
    assert request.timeout == 15
    assert request.idempotency_id is None
    assert request.invocation_source_id == PROVENANCE.source_id
    container = request.container_parameter_overrides
    assert container is not None
    assert container.command == ["run"]
    assert container.env_vars is not None
    assert container.env_vars["MINE"] == "1"
    assert container.env_vars["AIRFLOW_CTX_DAG_ID"] == PROVENANCE.dag_id


def test_models_are_taken_as_well_as_their_dicts() -> None:
    chosen = InvocationInput(files=FileSelector(query='dataset_id = "ds_1"'))
    request = request_of(
        "ask",
        arguments(
            input_data=chosen,
            compute_requirements=ComputeRequirements(),
            container_parameters=ContainerParameters(entry_point=["sh"]),
            upload_destination=UploadDestination(destination_id="ds_2"),
        ),
        PROVENANCE,
    )
    assert request.rich_input_data == chosen
    assert request.input_data == []


def test_what_is_not_asked_for_is_not_sent() -> None:
    wire = request_of("ask", arguments(), PROVENANCE).wire()
    assert set(wire) == {
        "data_source_id", "data_source_type", "input_data", "invocation_source", "invocation_source_id",
        "container_parameter_overrides",
    }  # fmt: skip
    assert set(wire["container_parameter_overrides"]) == {"env_vars"}


def test_rendered_values_are_checked_again() -> None:
    with pytest.raises(ValueError, match="task 'ask': argument 'timeout'"):
        request_of("ask", arguments(timeout="rendered to nonsense"), PROVENANCE)
