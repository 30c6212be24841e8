"""Read Flyte's messages. A malformed one is an outage, not a Python error."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

from ..errors import UnavailableError

Json = dict[str, Any]
P = ParamSpec("P")
T = TypeVar("T")

#: What Python raises for a value of another type, or out of range; pydantic's is a ValueError.
MISSHAPEN = (AttributeError, LookupError, TypeError, ValueError, ArithmeticError, RecursionError)

_KINDS: dict[type, str] = {dict: "an object", list: "an array", str: "text"}


class MisshapenError(UnavailableError):
    """Flyte, or a proxy, sent a message of another shape than its API describes.

    It says nothing about a run, so waits continue.
    """


def reads(read: Callable[P, T]) -> Callable[P, T]:
    """Decorate a function that reads a message: it raises MisshapenError for one of another shape.

    :param read: a function of messages alone: what a user's values raise must not become an outage.
    """

    @functools.wraps(read)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return read(*args, **kwargs)
        except MISSHAPEN as error:
            raise MisshapenError(
                f"Flyte's response does not match its API: {type(error).__name__}: {error}"
            ) from error

    return guarded


def object_at(message: Mapping[str, Any], *path: str) -> Json:
    """Return the object at a path of field names; an empty one where a field is left out or null.

    :raises MisshapenError: a field on the path is something else.
    """
    at: Json = dict(message) if not path else _field(message, path[0], path, dict)
    for name in path[1:]:
        at = _field(at, name, path, dict)
    return at


def objects_at(message: Mapping[str, Any], *path: str) -> list[Json]:
    """Return the array of objects at a path of field names; an empty one where a field is left out or null.

    :raises MisshapenError: a field on the path, or an item, is something else.
    """
    items: list[Json] = _field(_parent(message, path), path[-1], path, list)
    if not all(isinstance(item, dict) for item in items):
        raise MisshapenError(f"Flyte's response has items that are not objects in field {'.'.join(path)!r}")
    return items


def text_at(message: Mapping[str, Any], *path: str) -> str:
    """Return the text at a path of field names; an empty one where a field is left out or null.

    :raises MisshapenError: a field on the path is something else.
    """
    text: str = _field(_parent(message, path), path[-1], path, str)
    return text


def _parent(message: Mapping[str, Any], path: tuple[str, ...]) -> Mapping[str, Any]:
    return object_at(message, *path[:-1]) if path[:-1] else message


def _field(message: Mapping[str, Any], name: str, path: tuple[str, ...], kind: type) -> Any:
    value = message.get(name)
    if value is None:
        return kind()
    if not isinstance(value, kind):
        raise MisshapenError(
            f"Flyte's response has {type(value).__name__} in field {'.'.join(path)!r}, not {_KINDS[kind]}"
        )
    return value
