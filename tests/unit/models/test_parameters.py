"""Values for declared parameters: kept, converted if unambiguous, or rejected with all problems."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_invocations.models import (
    ActionParameter,
    ActionRecord,
    OpenActionRecord,
    ParameterType,
    coerce_parameters,
    default_misfit,
    read_text,
)

T = ParameterType


def action(**types: str | None) -> ActionRecord:
    return ActionRecord.model_validate(
        {
            "name": "a", "org_id": "og_1", "created": "2026-01-31T12:00:00Z", "created_by": "ada",
            "modified": "2026-01-31T12:00:00Z", "modified_by": "ada",
            "parameters": [{"name": name, "type": kind} for name, kind in types.items()],
        }
    )  # fmt: skip


FITS: list[tuple[ParameterType, Any, Any]] = [
    (T.String, "3", "3"),
    (T.String, "", ""),
    (T.Integer, 3, 3),
    (T.Integer, " -3 ", -3),
    (T.Integer, "1" * 300, int("1" * 300)),
    (T.Number, 3, 3),
    (T.Number, "3", 3),
    (T.Number, "1e3", 1000.0),
    (T.Number, 0.1, 0.1),
    (T.Boolean, False, False),
    (T.Boolean, "True", True),
    (T.Boolean, "false", False),
    (T.Array, [1, "a"], [1, "a"]),
    (T.Array, (1, 2), [1, 2]),
    (T.Array, "['a', None, True]", ["a", None, True]),
    (T.Array, '["a", null]', ["a", None]),
    (T.Object, {"a": 1}, {"a": 1}),
    (T.Object, "{'a': {'b': [1.5]}}", {"a": {"b": [1.5]}}),
    (T.Integer, None, None),
]


@pytest.mark.parametrize(("kind", "value", "expected"), FITS, ids=lambda value: repr(value)[:30])
def test_fitting_value_is_kept_and_string_is_converted(kind: str, value: Any, expected: Any) -> None:
    values, problems = coerce_parameters(action(n=kind), {"n": value})
    assert problems == []
    assert (values["n"], type(values["n"])) == (expected, type(expected))


MISFITS: list[tuple[ParameterType, Any, str]] = [
    (T.String, 3, "'n' must be a string, not the integer 3"),
    (T.String, True, "'n' must be a string, not the boolean true"),
    (T.Integer, 3.0, "'n' must be an integer, not the number 3.0"),
    (T.Integer, True, "'n' must be an integer, not the boolean true"),
    (T.Integer, "3.0", "'n' must be an integer, not the text '3.0'"),
    (T.Integer, "\N{SUPERSCRIPT TWO}", "'n' must be an integer"),
    (T.Integer, "9" * 5000, "'n' must be an integer, not the text '999"),
    (T.Number, "many", "'n' must be a number, not the text 'many'"),
    (T.Number, "nan", "'n' must be a number, not the text 'nan'"),
    (T.Number, float("inf"), "'n' must be a number"),
    (T.Boolean, 1, "'n' must be a boolean, not the integer 1"),
    (T.Boolean, "yes", "'n' must be a boolean, not the text 'yes'"),
    (T.Array, "{'a': 1}", "'n' must be an array"),
    (T.Array, "__import__('os')", "'n' must be an array"),
    (T.Array, {"a": 1}, "'n' must be an array, not an object"),
    (T.Object, [1], "'n' must be an object, not an array"),
    (T.Object, "[" * 100_000, "'n' must be an object"),
]


@pytest.mark.parametrize(("kind", "value", "problem"), MISFITS, ids=lambda value: repr(value)[:30])
def test_value_that_does_not_fit_is_rejected(kind: str, value: Any, problem: str) -> None:
    _, problems = coerce_parameters(action(n=kind), {"n": value})
    assert len(problems) == 1
    assert problems[0].startswith(problem)
    assert len(problems[0]) < 200


@pytest.mark.parametrize(("kind", "value", "expected"), FITS, ids=lambda value: repr(value)[:30])
def test_default_is_converted_to_its_type(kind: ParameterType, value: Any, expected: Any) -> None:
    parameter = ActionParameter(name="n", type=kind, default=value)
    assert (parameter.default, type(parameter.default)) == (expected, type(expected))
    assert default_misfit(parameter) is None
    again = ActionParameter.model_validate_json(parameter.model_dump_json())
    assert again == parameter


@pytest.mark.parametrize(("kind", "value", "problem"), MISFITS, ids=lambda value: repr(value)[:30])
def test_default_that_does_not_fit_is_reported(kind: ParameterType, value: Any, problem: str) -> None:
    parameter = ActionParameter(name="n", type=kind, default=value)
    assert (default_misfit(parameter) or "").startswith(f"the default of parameter {problem}")


def test_uri_of_a_secret_fits_every_type_where_the_platform_has_secrets() -> None:
    uri = "vault://threshold"
    assert coerce_parameters(action(n=T.Integer), {"n": uri}, "vault://") == ({"n": uri}, [])
    assert coerce_parameters(action(n=T.Integer), {"n": uri})[1] != []
    parameter = ActionParameter(name="n", type=T.Integer, default=uri)
    assert (parameter.default, default_misfit(parameter, "vault://")) == (uri, None)
    assert default_misfit(parameter) is not None


def test_default_without_a_type_is_a_string_as_on_the_platform() -> None:
    assert ActionParameter(name="n", default=True).default == "True"
    assert ActionParameter(name="n", default=["a"], type=None).default == "['a']"
    assert ActionParameter.model_validate({"name": "n", "default": 3, "type": "duration"}).default == "3"
    assert ActionParameter(name="n").default is None


def test_all_problems_are_reported_together() -> None:
    declared = action(count="integer", flag="boolean", note=None)
    declared.parameters.append(ActionParameter(name="file", required=True))
    _, problems = coerce_parameters(declared, {"count": "many", "flag": 1, "note": object, "wot": 2})
    assert problems == [
        "'count' must be an integer, not the text 'many'",
        "'flag' must be a boolean, not the integer 1",
        "unknown parameter 'wot'",
        "missing: 'file'",
    ]
    assert declared.declared_parameters == "count (integer), flag (boolean), note, file (required)"


def test_undeclared_types_and_parameters_accept_any_value() -> None:
    given = {"n": "3", "m": [1.5]}
    assert coerce_parameters(action(n=None, m=None), given) == (given, [])
    assert coerce_parameters(action(), given) == (given, [])
    open_ended = OpenActionRecord.model_validate(action(other="integer").model_dump())
    assert coerce_parameters(open_ended, given) == (given, [])


def test_null_is_rejected_for_a_required_parameter() -> None:
    declared = action()
    declared.parameters.append(ActionParameter(name="n", required=True, type=T.Integer))
    assert coerce_parameters(declared, {"n": None})[1] == ["'n' must be an integer, not null"]


@pytest.mark.parametrize("kind", [None, "duration", 3, ["integer"]])
def test_unknown_type_is_none_and_none_is_not_sent(kind: Any) -> None:
    parameter = ActionParameter.model_validate({"name": "n", "type": kind})
    assert parameter.type is None
    assert "type" not in parameter.model_dump(mode="json")
    assert ActionParameter(name="n", type=T.Array).model_dump(mode="json")["type"] == "array"


@pytest.mark.parametrize("text", ["", "a b", "{1: object()}", "(1", "{'a': nan}"])
def test_text_that_is_neither_json_nor_a_literal_is_rejected(text: str) -> None:
    with pytest.raises(ValueError, match="neither JSON nor a Python literal"):
        read_text(text)
