"""What the server rejects of a request before anything is stored."""

from __future__ import annotations

import json
from typing import Any

import pydantic
import pytest

from airflow_invocations.server.api.schemas import (
    CreateActionBody,
    CreateDatasetBody,
    InvokeBody,
    UpdateActionBody,
)

NAN, INFINITY, HALF = float("nan"), float("inf"), "\ud800"


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def invocation(**fields: Any) -> InvokeBody:
    return InvokeBody.model_validate({"invocation_source": "Manual", **fields})


@pytest.mark.parametrize("name", ["a", "A.b-c_1", "0", "x" * 128, "Query", "invocations2"])
def test_a_name_that_can_be_part_of_an_address_is_taken(name: str) -> None:
    assert CreateActionBody(name=name).name == name


@pytest.mark.parametrize(
    "name",
    ["", " ", "a b", "a/b", "..", ".a", "-a", "a\n", "a\0", "é", "x" * 129, "a%2f", "query", "invocations"],
)
def test_any_other_is_not(name: str) -> None:
    with pytest.raises(pydantic.ValidationError, match="name"):
        CreateActionBody(name=name)


@pytest.mark.parametrize("name", ["", "a=b", "=", "a\0"])
def test_a_parameter_that_can_not_be_a_variable_is_rejected(name: str) -> None:
    with pytest.raises(pydantic.ValidationError, match="is not a valid name of a variable"):
        CreateActionBody.model_validate({"name": "act", "parameters": [{"name": name}]})
    with pytest.raises(pydantic.ValidationError, match="is not a valid name of a variable"):
        invocation(parameter_values={name: 1})


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (NAN, "not a number in JSON"),
        (INFINITY, "not a number in JSON"),
        ([{"deep": -INFINITY}], "not a number in JSON"),
        (HALF, "surrogates not allowed"),
        ({HALF: 1}, "surrogates not allowed"),
        (nested(40), "nested more than 32 levels deep"),
        (nested(500), "nested more than 32 levels deep"),
    ],
)
def test_a_value_that_could_not_be_written_again_is_rejected(value: Any, message: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=message):
        invocation(parameter_values={"v": value})
    with pytest.raises(pydantic.ValidationError, match=message):
        CreateDatasetBody(metadata={"v": value})


@pytest.mark.parametrize(
    "value", [None, True, 0, -1.5, 10**400, "", "é🤖", ["é\0🤖"], [], {}, nested(30), {"": {"": 1}}]
)
def test_every_other_is_taken_and_can(value: Any) -> None:
    assert invocation(parameter_values={"v": value}).parameter_values == {"v": value}
    taken = CreateDatasetBody(metadata={"v": value})
    assert json.loads(json.dumps(taken.model_dump(mode="json")).encode())["metadata"] == {"v": value}


@pytest.mark.parametrize("value", [True, 0, -1.5, 10**400, "", "é🤖"])
def test_the_metadata_of_an_action_is_flat(value: Any) -> None:
    assert CreateActionBody(name="act", metadata={"v": value}).metadata == {"v": value}


@pytest.mark.parametrize("value", [None, [], {}, {"a": 1}])
def test_nested_metadata_of_an_action_is_rejected(value: Any) -> None:
    with pytest.raises(pydantic.ValidationError, match="the metadata of an action is flat: 'v' is"):
        CreateActionBody(name="act", metadata={"v": value})


@pytest.mark.parametrize("minutes", [0, -1, 365 * 24 * 60 + 1, 10**400, 1.5, "soon"])
def test_a_timeout_that_is_none_is_rejected(minutes: Any) -> None:
    for kind in (CreateActionBody, InvokeBody):
        with pytest.raises(pydantic.ValidationError, match="timeout"):
            kind.model_validate({"name": "act", "invocation_source": "Manual", "timeout": minutes})


def test_no_parameters_are_no_parameters() -> None:
    assert invocation().parameter_values is None
    assert invocation(parameter_values=None).parameter_values is None


@pytest.mark.parametrize(
    ("container", "message"),
    [
        ({"command": ["sh", "a\0b"]}, "command has a NUL character"),
        ({"entry_point": ["\0"]}, "entry_point has a NUL character"),
        ({"workdir": "/a\0"}, "workdir has a NUL character"),
        ({"env_vars": {"A": "\0"}}, "env_vars 'A' has a NUL character"),
        ({"env_vars": {"A\0": ""}}, "is not a valid name of a variable"),
        ({"env_vars": {"A=B": ""}}, "is not a valid name of a variable"),
        ({"env_vars": {"": ""}}, "is not a valid name of a variable"),
        (
            {"env_vars": {"A": "x" * 131_070}},
            "env_vars 'A' has 131,072 bytes; a string for a process may have 131,071",
        ),
        ({"command": ["sh", "é" * 65_536]}, "a part of command has 131,072 bytes"),
    ],
)
def test_values_that_a_process_cannot_have_are_rejected(container: dict[str, Any], message: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=message):
        invocation(container_parameter_overrides=container)
    with pytest.raises(pydantic.ValidationError, match=message):
        CreateActionBody.model_validate({"name": "act", "container_parameters": container})
    with pytest.raises(pydantic.ValidationError, match=message):
        UpdateActionBody.model_validate({"container_parameters": container})


def test_values_that_a_process_can_have_are_accepted() -> None:
    container = {"command": ["x" * 131_071, ""], "env_vars": {"A": "x" * 131_069, "b c": "=\n"}}
    taken = invocation(container_parameter_overrides=container).container_parameter_overrides
    assert taken is not None
    assert taken.model_dump(exclude_none=True) == container


def test_a_nul_in_a_parameter_is_rejected() -> None:
    with pytest.raises(pydantic.ValidationError, match="parameter 'p' has a NUL character"):
        invocation(parameter_values={"p": "a\0b"})


@pytest.mark.parametrize(
    ("parameter", "message"),
    [
        (
            {"type": "boolean", "default": "yes"},
            "the default of parameter 'p' must be a boolean, not the text",
        ),
        (
            {"type": "string", "default": 5},
            "the default of parameter 'p' must be a string, not the integer 5",
        ),
        ({"default": "a\0b"}, "the default of parameter 'p' has a NUL character"),
        ({"type": "object", "default": {"a": NAN}}, "nan is not a number in JSON"),
    ],
)
def test_a_default_that_can_not_be_given_is_rejected(parameter: dict[str, Any], message: str) -> None:
    declared = [{"name": "p", **parameter}]
    with pytest.raises(pydantic.ValidationError, match=message):
        CreateActionBody.model_validate({"name": "act", "parameters": declared})
    with pytest.raises(pydantic.ValidationError, match=message):
        UpdateActionBody.model_validate({"parameter_changeset": {"put_parameters": declared}})
