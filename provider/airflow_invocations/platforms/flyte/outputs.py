"""Convert a run's outputs to JSON types; nothing that it wrote is executed."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import UnsupportedError
from .literals import MSGPACK_TAG, unpack
from .shapes import MISSHAPEN, reads

#: The key of the reason why a value isn't read. Pickled values never are, because that runs code.
NOT_LOADED = "not_loaded"

#: Flyte's name of a task's only output.
_ONLY = "o0"

#: The format of a blob that holds a pickled object.
_PICKLE = "PythonPickle"


@reads
def outputs_of(literals: Sequence[Mapping[str, Any]]) -> Any:
    """Return a task's only output, a dict of several by name, or None.

    Datetimes are ISO 8601 texts, durations seconds, files and datasets their URI. Integers and floats are
    numbers, except NaN and the infinities, which are texts. A value that can't be read without executing
    code is `{"not_loaded": why}`.
    """
    values = {one.get("name", ""): value_of(one.get("value", {})) for one in literals}
    return values[_ONLY] if list(values) == [_ONLY] else values or None


def value_of(literal: Mapping[str, Any]) -> Any:
    """Return the value of one Literal, as JSON types; `{"not_loaded": why}` if it is malformed."""
    try:
        return _value(literal)
    except MISSHAPEN as error:
        return _not_loaded(f"literal that does not match Flyte's API: {type(error).__name__}")


def _value(literal: Mapping[str, Any]) -> Any:
    match literal:
        case {"scalar": {"primitive": primitive}}:
            return _primitive(primitive)
        case {"scalar": {"noneType": _}}:
            return None
        case {"scalar": {"union": union}}:
            return value_of(union.get("value", {}))
        case {"scalar": {"binary": binary}}:
            return _binary(binary)
        case {"scalar": {"generic": struct}}:
            return struct
        case {"scalar": {"blob": blob}}:
            if blob.get("metadata", {}).get("type", {}).get("format") == _PICKLE:
                return _not_loaded(f"pickled object at {blob.get('uri')}")
            return blob.get("uri")
        case {"scalar": {"structuredDataset": stored}} | {"scalar": {"schema": stored}}:
            return stored.get("uri")
        case {"collection": collection}:
            return [value_of(one) for one in collection.get("literals", [])]
        case {"map": entries}:
            return {name: value_of(one) for name, one in entries.get("literals", {}).items()}
        case {"offloadedMetadata": where}:
            return _not_loaded(f"kept at {where.get('uri')}, {where.get('sizeBytes', '?')} bytes")
    return _not_loaded(f"literal of an unknown kind: {', '.join(literal.get('scalar', literal))}")


def _primitive(primitive: Mapping[str, Any]) -> Any:
    match primitive:
        case {"integer": value}:
            return int(value)
        case {"duration": str(value)}:
            return float(value.removesuffix("s"))
        case {"floatValue": int(value)}:
            return float(value)
    return next(iter(primitive.values()), None)


def _binary(binary: Mapping[str, Any]) -> Any:
    tag = binary.get("tag", "")
    try:
        packed = base64.b64decode(binary.get("value", ""), validate=True)
    except binascii.Error:
        packed = b""
    if tag != MSGPACK_TAG:
        return _not_loaded(f"binary of {len(packed)} bytes, tagged {tag!r}")
    try:
        return _json(unpack(packed))
    except (UnsupportedError, ValueError) as error:
        return _not_loaded(str(error))


def _json(value: Any) -> Any:
    """Return an unpacked value without types that JSON lacks."""
    match value:
        case dict():
            return {str(key): _json(item) for key, item in value.items()}
        case list():
            return [_json(item) for item in value]
        case None | bool() | int() | float() | str():
            return value
        case bytes():
            return _not_loaded(f"binary of {len(value)} bytes")
    return _not_loaded(f"extension of MessagePack: {type(value).__name__}")


def _not_loaded(why: str) -> dict[str, str]:
    return {NOT_LOADED: why}
