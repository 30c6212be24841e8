"""Convert given values to the parameters that an action declares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .action import ActionParameter, ActionRecord
from .parameter_types import ARTICLES, described, fit_value


def coerce_parameters(
    action: ActionRecord, given: Mapping[str, Any], secret_prefix: str | None = None
) -> tuple[dict[str, Any], list[str]]:
    """Return values converted to the types of an action's parameters, and all problems with them.

    JSON types are kept. A string is converted to the declared type if that is unambiguous, because templates
    render to strings: "3" to an integer, "true" to a boolean, "[1, 2]" to an array. An integer is a valid
    number. There are no other conversions. A parameter without a type, and an action without parameters,
    accept any value.

    :param secret_prefix: how the URI of a secret begins, which fits every type; None if there are no secrets.
    :returns: the values, and one sentence per problem: a value that doesn't fit, a name that isn't declared,
        a required parameter that is missing.
    """
    declared = {parameter.name: parameter for parameter in action.parameters}
    values: dict[str, Any] = {}
    problems: list[str] = []
    for name, value in given.items():
        parameter = declared.get(name)
        if parameter is None:
            if declared and not action.takes_more:
                problems.append(f"unknown parameter {name!r}")
            values[name] = value
            continue
        try:
            values[name] = _fitted(parameter, value, secret_prefix)
        except ValueError:
            problems.append(f"{name!r} must be {ARTICLES[parameter.type]}, not {described(value)}")
    if missing := action.missing_parameters(given):
        problems.append(f"missing: {', '.join(map(repr, missing))}")
    return values, problems


def default_misfit(parameter: ActionParameter, secret_prefix: str | None = None) -> str | None:
    """Return what is wrong with a parameter's default, in one sentence; None if it is valid or absent.

    :param secret_prefix: as for `coerce_parameters`.
    """
    if parameter.type is None or parameter.default is None:
        return None
    try:
        fit_value(parameter.type, parameter.default, secret_prefix)
    except ValueError:
        return (
            f"the default of parameter {parameter.name!r} must be {ARTICLES[parameter.type]}, "
            f"not {described(parameter.default)}"
        )
    return None


def _fitted(parameter: ActionParameter, value: Any, secret_prefix: str | None) -> Any:
    """Return a value converted to the parameter's type. Raises ValueError."""
    if parameter.type is None:
        return value
    if value is None:
        if parameter.required:
            raise ValueError("null")
        return None
    return fit_value(parameter.type, value, secret_prefix)
