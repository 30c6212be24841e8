"""A Python function's signature: its parameters, and the errors of arguments against it."""

from __future__ import annotations

import inspect
import json
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pydantic

from ...models import ActionParameter

_Function = Callable[..., Any]

#: Types that JSON has too. Arguments of other types aren't checked, because the function may convert them.
_JSON_TYPES = frozenset({bool, int, float, str, list, dict, type(None), Any, object})
_JSON_ORIGINS = frozenset({list, dict, typing.Union, types.UnionType, typing.Literal, Mapping})


def parameters_of(function: _Function) -> list[ActionParameter]:
    """Return the parameters that can be passed by name, with their defaults as text."""
    return [
        ActionParameter(
            name=parameter.name,
            required=parameter.default is parameter.empty,
            description=_declared_type(parameter),
            default=None if parameter.default is parameter.empty else _text(parameter.default),
        )
        for parameter in _named(function)
    ]


def signature_errors(function: _Function, given: Mapping[str, Any]) -> list[str]:
    """Return the problems of arguments: missing, undeclared, or of another type."""
    declared = {parameter.name: parameter for parameter in _named(function)}
    problems = [
        f"{name!r} is missing"
        for name, parameter in declared.items()
        if parameter.default is parameter.empty and name not in given
    ]
    if not takes_any(function):
        problems += [f"{name!r} isn't declared" for name in given if name not in declared]
    types_of = _types_of(function)
    for name, value in given.items():
        if name in types_of and not _is(value, types_of[name]):
            problems.append(
                f"{name!r} expects {_declared_type(declared[name])}, got {json.dumps(value)[:80]}"
            )
    return problems


def _named(function: _Function) -> Iterator[inspect.Parameter]:
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return (one for one in inspect.signature(function).parameters.values() if one.kind in by_name)


def takes_any(function: _Function) -> bool:
    """Return whether a function has a parameter such as **kwargs."""
    return any(one.kind is one.VAR_KEYWORD for one in inspect.signature(function).parameters.values())


def _types_of(function: _Function) -> dict[str, Any]:
    """Return the declared types that JSON values can be checked against."""
    try:
        hints = typing.get_type_hints(function)
    except Exception:  # evaluating annotations runs the user's code
        return {}
    return {one.name: hints[one.name] for one in _named(function) if _is_json(hints.get(one.name))}


def _is_json(declared: Any) -> bool:
    origin = typing.get_origin(declared)
    if origin is None:
        return declared in _JSON_TYPES
    if origin not in _JSON_ORIGINS:
        return False
    return origin is typing.Literal or all(_is_json(one) for one in typing.get_args(declared))


def _is(value: Any, declared: Any) -> bool:
    try:
        pydantic.TypeAdapter(declared).validate_python(value, strict=True)
    except pydantic.ValidationError:
        return False
    return True


def _declared_type(parameter: inspect.Parameter) -> str | None:
    declared = parameter.annotation
    if declared is parameter.empty:
        return None
    return declared if isinstance(declared, str) else inspect.formatannotation(declared)


def _text(default: Any) -> str:
    try:
        return json.dumps(default) if not isinstance(default, str) else default
    except (TypeError, ValueError):
        return repr(default)
