"""Read values that pynenc stores as text, without its serializers, which run code."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from ..errors import UnsupportedError

#: The serializers whose text is JSON.
JSON_SERIALIZERS = frozenset({"JsonPickleSerializer", "JsonSerializer"})

#: Prefixes of keys that stand for a value that isn't JSON.
_TAGS = ("py/", "__pynenc__")

#: Those of them that hold a list.
_LISTS = ("py/tuple", "py/set")

#: Longest message of an exception, in characters.
MAX_MESSAGE = 2000


def plain(text: str) -> Any:
    """Return a stored value as JSON types; tuples and sets become lists.

    :raises UnsupportedError: it contains another type; the message says which, and where.
    """
    try:
        value = json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise UnsupportedError(f"it isn't JSON: {error}") from None
    return _plain(value, "it")


def message_in(text: str, text_of: Callable[[str], str] = str) -> str:
    """Return the message of a stored exception: its name and its arguments that are JSON.

    :param text_of: returns the text of a value that is stored elsewhere.
    """
    try:
        stored = json.loads(text)
        name = str(stored["error_name"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return text[:MAX_MESSAGE]
    try:
        data = json.loads(text_of(stored["error_data"]))
    except (ValueError, KeyError, TypeError, RecursionError, UnsupportedError):
        return name[:MAX_MESSAGE]
    said = ", ".join(str(one) for one in _arguments_in(data))
    return (f"{name}: {said}" if said else name)[:MAX_MESSAGE]


def _plain(value: Any, where: str) -> Any:
    if isinstance(value, list):
        return [_plain(item, f"{where}[{number}]") for number, item in enumerate(value)]
    if not isinstance(value, dict):
        return value
    for tag in _LISTS:
        if value.keys() == {tag} and isinstance(value[tag], list):
            return _plain(value[tag], where)
    for key, kind in value.items():
        if key.startswith(_TAGS):
            what = f"{key} {kind}" if isinstance(kind, str) else key
            raise UnsupportedError(f"{where} isn't JSON but {what}")
    return {key: _plain(item, f"{where}[{key!r}]") for key, item in value.items()}


def _arguments_in(data: Any) -> list[Any]:
    """Return the arguments of an exception that are JSON."""
    if not isinstance(data, dict):
        return []
    for envelope in ("__pynenc__std_py_exc__", "__pynenc__client_exception__"):
        if isinstance(data.get(envelope), dict):
            return [data[envelope].get("message", "")]
    reduced = data.get("py/reduce")
    given: Any = reduced[1] if isinstance(reduced, list) and len(reduced) > 1 else data.get("args", data)
    if isinstance(given, dict):
        given = given.get("py/tuple", [f"{key}={one}" for key, one in given.items()])
    return [one for one in given if isinstance(one, str | int | float)] if isinstance(given, list) else []


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is not a number in JSON")
