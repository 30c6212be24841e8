"""Fits the values that somebody gives to the parameters that an action declares."""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from .action import ActionParameter, ActionRecord, ParameterType

#: What a value begins with that stands for a secret; what it is, shows when the action runs.
SECRET_SCHEME = "roboto-secret://"  # noqa: S105

#: Characters of a text that a message quotes.
_QUOTED = 60

_WHOLE = re.compile(r"[+-]?[0-9]{1,400}")


def fit_parameters(action: ActionRecord, given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
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
            problems.append(f"{name!r} must be {_ARTICLE[parameter.type]}, not {_described(value)}")
    if missing := action.missing_parameters(given):
        problems.append(f"it lacks {', '.join(map(repr, missing))}")
    return values, problems


def read_text(text: str) -> Any:
    """What a text says as JSON, or as Python writes it: a template renders a list the latter way.

    Raises:
        ValueError: it is neither.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        return json.loads(json.dumps(ast.literal_eval(text.strip()), allow_nan=False))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise ValueError("it is neither JSON nor a Python literal") from None


def _fitted(parameter: ActionParameter, value: Any) -> Any:
    """The value as the parameter's type wants it. Raises ValueError."""
    if parameter.type is None or (isinstance(value, str) and value.startswith(SECRET_SCHEME)):
        return value
    if value is None:
        if parameter.required:
            raise ValueError("null")
        return None
    return _FITS[parameter.type](value)


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(value)
    return value


def _integer(value: Any) -> int:
    if isinstance(value, str) and _WHOLE.fullmatch(value.strip()):
        return int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(value)
    return value


def _number(value: Any) -> int | float:
    if isinstance(value, str):
        text = value.strip()
        value = int(text) if _WHOLE.fullmatch(text) else float(text)
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise ValueError(value)
    return value


def _boolean(value: Any) -> bool:
    if isinstance(value, str):
        value = {"true": True, "false": False}.get(value.strip().lower())
    if not isinstance(value, bool):
        raise ValueError(value)
    return value


def _holding(kind: type) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        if isinstance(value, str):
            value = read_text(value)
        if kind is list and isinstance(value, tuple):
            value = list(value)
        if not isinstance(value, kind):
            raise ValueError(value)
        return value

    return read


_FITS: dict[ParameterType, Callable[[Any], Any]] = {
    ParameterType.String: _string,
    ParameterType.Integer: _integer,
    ParameterType.Number: _number,
    ParameterType.Boolean: _boolean,
    ParameterType.Array: _holding(list),
    ParameterType.Object: _holding(dict),
}
_ARTICLE: dict[ParameterType | None, str] = {
    ParameterType.String: "a string",
    ParameterType.Integer: "an integer",
    ParameterType.Number: "a number",
    ParameterType.Boolean: "a boolean",
    ParameterType.Array: "an array",
    ParameterType.Object: "an object",
}


def _described(value: Any) -> str:
    """A value for a message: a text is quoted, of anything else only its kind is said."""
    match value:
        case None:
            return "null"
        case str():
            return f"the text {value[:_QUOTED]!r}{' ...' if len(value) > _QUOTED else ''}"
        case bool():
            return f"the boolean {str(value).lower()}"
        case int():
            return f"the integer {value}" if abs(value) < 10**30 else "an integer"
        case float():
            return f"the number {value}"
        case list() | tuple():
            return "an array"
    return "an object"
