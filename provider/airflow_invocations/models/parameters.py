"""Fits the values that somebody gives to the parameters that an action declares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .action import ActionParameter, ActionRecord
from .parameter_types import ARTICLES, described, fit_value


def coerce_parameters(action: ActionRecord, given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The values as an action's declared parameters want them, and everything that is wrong with them.

    A parameter that declares no type takes any value as it is, and so does an action that declares no
    parameters at all. JSON types are kept; a text becomes what is declared if it says so without doubt
    (templates render to texts): "3" an integer, "true" a boolean, "[1, 2]" an array. An integer is a number
    too, and nothing else is made anything else of.

    Returns:
        The values, and one sentence for each problem: a value that doesn't fit, a name that isn't declared,
        a required parameter that is missing.
    """
    declared = {parameter.name: parameter for parameter in action.parameters}
    values: dict[str, Any] = {}
    problems: list[str] = []
    for name, value in given.items():
        parameter = declared.get(name)
        if parameter is None:
            if declared and not action.takes_more:
                problems.append(f"it has no {name!r}")
            values[name] = value
            continue
        try:
            values[name] = _fitted(parameter, value)
        except ValueError:
            problems.append(f"{name!r} must be {ARTICLES[parameter.type]}, not {described(value)}")
    if missing := action.missing_parameters(given):
        problems.append(f"it lacks {', '.join(map(repr, missing))}")
    return values, problems


def default_misfit(parameter: ActionParameter) -> str | None:
    """Return what is wrong with a parameter's default, in one sentence; None if it is valid or absent."""
    if parameter.type is None or parameter.default is None:
        return None
    try:
        fit_value(parameter.type, parameter.default)
    except ValueError:
        return (
            f"the default of parameter {parameter.name!r} must be {ARTICLES[parameter.type]}, "
            f"not {described(parameter.default)}"
        )
    return None


def _fitted(parameter: ActionParameter, value: Any) -> Any:
    """The value as the parameter's type wants it. Raises ValueError."""
    if parameter.type is None:
        return value
    if value is None:
        if parameter.required:
            raise ValueError("null")
        return None
    return fit_value(parameter.type, value)
