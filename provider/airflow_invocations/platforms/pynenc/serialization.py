"""Reads what pynenc has stored as text, and never loads it: its serializers run code when they load."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from ..errors import UnsupportedError

#: The serializers whose text is JSON.
JSON_SERIALIZERS = frozenset({"JsonPickleSerializer", "JsonSerializer"})

#: How the keys begin that stand for something which isn't JSON.
_TAGS = ("py/", "__pynenc__")

#: What of these is a list in all but name.
_LISTS = ("py/tuple", "py/set")

#: The longest message that is shown of an exception.
MAX_MESSAGE = 2000


def plain(text: str) -> Any:
    """A stored value as JSON types; tuples and sets become lists.

    Raises:
        UnsupportedError: it holds something else; what, and where in it.
    """
    try:
        value = json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise UnsupportedError(f"it isn't JSON: {error}") from None
    return _plain(value, "it")


def message_in(text: str, text_of: Callable[[str], str] = str) -> str:
    """What an exception said, from its stored text: its name, and what it was made with where that is plain.

    :param text_of: finds the text of a value that is kept elsewhere.
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
    """The arguments that an exception was made with, where they are plain."""
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
    raise ValueError(f"{name} is no number in JSON")
