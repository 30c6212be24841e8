"""The types of parameters, and conversion of values to them."""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Callable
from enum import StrEnum
from typing import Any

#: Characters of a text that a message quotes.
_QUOTED = 60

_WHOLE = re.compile(r"[+-]?[0-9]{1,400}")


class ParameterType(StrEnum):
    """The type of a parameter's value, named as in JSON Schema."""

    String = "string"
    Integer = "integer"
    Number = "number"
    Boolean = "boolean"
    Array = "array"
    Object = "object"


def fit_value(kind: ParameterType, value: Any, secret_prefix: str | None = None) -> Any:
    """Convert a value to a type: JSON types are kept, and a string is converted if it is unambiguous.

    :param secret_prefix: how the URI of a secret begins, which fits every type; None if there are no secrets.
    :raises ValueError: it doesn't fit.
    """
    if secret_prefix is not None and isinstance(value, str) and value.startswith(secret_prefix):
        return value
    return _FITS[kind](value)


def read_text(text: str) -> Any:
    """Parse a string as JSON or as a Python literal; a template renders a list as the latter.

    :raises ValueError: it is neither.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        return json.loads(json.dumps(ast.literal_eval(text.strip()), allow_nan=False))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise ValueError("it is neither JSON nor a Python literal") from None


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
ARTICLES: dict[ParameterType | None, str] = {
    ParameterType.String: "a string",
    ParameterType.Integer: "an integer",
    ParameterType.Number: "a number",
    ParameterType.Boolean: "a boolean",
    ParameterType.Array: "an array",
    ParameterType.Object: "an object",
}


def described(value: Any) -> str:
    """Describe a value for a message: a string is quoted; an array or object is only named."""
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
