"""Flyte's literals: the inputs that a task declares, and parameters converted to them, strictly."""

from __future__ import annotations

import base64
import datetime
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import InvalidRequestError, UnsupportedError
from .shapes import MISSHAPEN, object_at, objects_at, reads, text_at

Json = dict[str, Any]

_INT64 = range(-(2**63), 2**63)
_INTEGER = re.compile(r"[+-]?\d+")
_DURATION = re.compile(r"(-?\d+(?:\.\d+)?)s?")
_URI = re.compile(r"[a-z][a-z0-9+.-]*://.+", re.IGNORECASE | re.DOTALL)

#: How a binary literal says that it is MessagePack.
MSGPACK_TAG = "msgpack"

_NO_MSGPACK = (
    "dicts and dataclasses of Flyte need an extra: pip install 'airflow-provider-invocations[flyte]'"
)

#: Characters of a rejected value that a message shows.
_SHOWN = 60


@dataclass(frozen=True, slots=True)
class Variable:
    """An input that a task declares; `type` is a LiteralType, `default` a Literal (None: no default)."""

    name: str
    type: Json
    default: Json | None = None
    description: str | None = None

    @property
    def wanted(self) -> str:
        """The type, in words."""
        return type_in_words(self.type)


@reads
def variables_of(task_spec: Mapping[str, Any]) -> list[Variable]:
    """Return the inputs that a TaskSpec declares, in its order."""
    inputs = object_at(task_spec, "taskTemplate", "interface", "inputs")
    if isinstance(inputs.get("variables"), Mapping):
        # An earlier flyteidl2 had a map here.
        variables = object_at(inputs, "variables")
        entries: list[Json] = [{"key": name, "value": variable} for name, variable in variables.items()]
    else:
        entries = objects_at(inputs, "variables")
    defaults = {
        text_at(one, "name"): object_at(one, "parameter", "default") or None
        for one in objects_at(task_spec, "defaultInputs")
    }
    return [
        Variable(
            name=text_at(entry, "key"),
            type=object_at(entry, "value", "type"),
            default=defaults.get(text_at(entry, "key")),
            description=text_at(entry, "value", "description") or None,
        )
        for entry in entries
    ]


def inputs_of(task: str, variables: list[Variable], values: Mapping[str, Any]) -> Json:
    """Return the Inputs message for parameters. Flyte fills in the task's defaults.

    Texts are converted to numbers and booleans where the task declares these, because templates render texts.

    :raises InvalidRequestError: parameters don't fit; the message has all problems.
    :raises UnsupportedError: the task takes a dict or dataclass, and the extra `flyte` isn't installed.
    """
    known = {variable.name: variable for variable in variables}
    problems: list[str] = []
    literals: list[Json] = []
    for name, value in values.items():
        if name not in known:
            declared = ", ".join(known) or "none"
            problems.append(f"{name!r} is not an input of the task; declared: {declared}")
            continue
        try:
            literal = _literal(value, known[name].type, name, lenient=True)
        except _Mismatch as mismatch:
            problems += mismatch.problems
        else:
            literals.append({"name": name, "value": literal})
    problems += [
        f"{variable.name!r} is missing; expected: {variable.wanted}"
        for variable in variables
        if variable.name not in values and variable.default is None
    ]
    if problems:
        raise InvalidRequestError(f"task {task} can't have these parameters: {'; '.join(problems)}")
    return {"literals": literals}


#: The words for an unknown type, or none.
_UNKNOWN = "an unknown type"


def type_in_words(kind: Mapping[str, Any]) -> str:
    """Return a LiteralType, in words."""
    match kind:
        case {"simple": "STRUCT"}:
            metadata = kind.get("metadata")
            return str((metadata.get("title") if isinstance(metadata, Mapping) else None) or "dict")
        case {"simple": str(simple)}:
            return _SIMPLE_IN_WORDS.get(simple, simple.lower())
        case {"collectionType": of}:
            return f"list of {type_in_words(of)}"
        case {"mapValueType": of}:
            return f"dict from string to {type_in_words(of)}"
        case {"enumType": {"values": [*values]}}:
            return f"one of {', '.join(map(repr, values))}"
        case {"unionType": {"variants": [*variants]}}:
            return " or ".join(map(type_in_words, variants))
        case {"blob": {"dimensionality": "MULTIPART"}}:
            return "directory (its URI)"
        case {"blob": _}:
            return "file (its URI)"
        case {"structuredDatasetType": _}:
            return "dataset (its URI)"
    return next(iter(kind), _UNKNOWN) if isinstance(kind, Mapping) else _UNKNOWN


_SIMPLE_IN_WORDS = {
    "NONE": "None",
    "FLOAT": "number",
    "STRING": "string",
    "BOOLEAN": "true or false",
    "DATETIME": "datetime (ISO 8601)",
    "DURATION": "duration (seconds)",
}


class _Mismatch(Exception):
    """Values don't fit a type."""

    def __init__(self, *problems: str) -> None:
        super().__init__(*problems)
        self.problems = list(problems)


def _mismatch(where: str, kind: Mapping[str, Any], value: object, why: str = "") -> _Mismatch:
    try:
        shown = repr(value)
    except ValueError:  # Python writes no integer of more than some thousand digits
        shown = "(too long to be shown)"
    if len(shown) > _SHOWN:
        shown = f"{shown[:_SHOWN]}..."
    return _Mismatch(
        f"{where!r}: expected: {type_in_words(kind)}, got: {type(value).__name__} {shown}"
        f"{why and f' ({why})'}"
    )


def _literal(value: Any, kind: Json, where: str, *, lenient: bool) -> Json:
    """Return the Literal for a value.

    :param lenient: convert texts to what they say, and integers to numbers.
    :raises _Mismatch: it doesn't fit, or the type can't hold it, such as half a surrogate pair.
    """
    match kind:
        case {"simple": str(simple)}:
            make = _SIMPLE.get(simple)
            try:
                literal = None if make is None else make(value, kind, where, lenient)
            except (ValueError, OverflowError) as error:
                raise _mismatch(where, kind, value, str(error)) from None
            if literal is not None:
                return literal
        case {"collectionType": of} if isinstance(value, list | tuple):
            each = [(item, f"{where}[{number}]") for number, item in enumerate(value)]
            return {"collection": {"literals": _all([(item, at) for item, at in each], of, lenient)}}
        case {"mapValueType": of} if isinstance(value, Mapping) and all(
            isinstance(key, str) for key in value
        ):
            items = _all([(item, f"{where}.{key}") for key, item in value.items()], of, lenient)
            return {"map": {"literals": dict(zip(value, items, strict=True))}}
        case {"enumType": {"values": [*values]}} if isinstance(value, str) and value in values:
            return {"scalar": {"primitive": {"stringValue": value}}}
        case {"unionType": {"variants": [*variants]}}:
            return _union(value, kind, variants, where, lenient=lenient)
        case {"blob": blob} if lenient and isinstance(value, str) and _URI.fullmatch(value):
            return {"scalar": {"blob": {"metadata": {"type": blob}, "uri": value}}}
        case {"structuredDatasetType": dataset} if (
            lenient and isinstance(value, str) and _URI.fullmatch(value)
        ):
            metadata = {"structuredDatasetType": dataset}
            return {"scalar": {"structuredDataset": {"metadata": metadata, "uri": value}}}
    raise _mismatch(where, kind, value)


def _all(items: list[tuple[Any, str]], kind: Json, lenient: bool) -> list[Json]:
    """Return the literals of all items. Raises _Mismatch with the problems of all of them."""
    problems: list[str] = []
    literals: list[Json] = []
    for item, where in items:
        try:
            literals.append(_literal(item, kind, where, lenient=lenient))
        except _Mismatch as mismatch:
            problems += mismatch.problems
    if problems:
        raise _Mismatch(*problems)
    return literals


def _union(value: Any, kind: Json, variants: list[Json], where: str, *, lenient: bool) -> Json:
    """Return the first variant that a value is of, else the only one that it can be converted to."""
    for attempt in (False, True)[: 1 + lenient]:
        fitting = []
        for variant in variants:
            try:
                fitting.append((variant, _literal(value, variant, where, lenient=attempt)))
            except _Mismatch:
                continue
        if len(fitting) > 1 and attempt:
            words = " and ".join(type_in_words(variant) for variant, _ in fitting)
            raise _mismatch(where, kind, value, f"ambiguous: {words}")
        if fitting:
            variant, literal = fitting[0]
            return {"scalar": {"union": {"value": literal, "type": variant}}}
    raise _mismatch(where, kind, value)


def _primitive(name: str, value: object) -> Json:
    return {"scalar": {"primitive": {name: value}}}


def _integer(value: Any, kind: Json, where: str, lenient: bool) -> Json | None:
    if lenient and isinstance(value, str) and _INTEGER.fullmatch(value.strip()):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    if value not in _INT64:
        raise _mismatch(where, kind, value, "it needs more than 64 bits")
    return _primitive("integer", str(value))


def _float(value: Any, _: Json, __: str, lenient: bool) -> Json | None:
    if lenient and isinstance(value, str):
        if "_" in value:
            return None  # only Python writes numbers like this
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, (int, float) if lenient else float):
        return None
    return _primitive("floatValue", float(value)) if math.isfinite(value) else None


def _text(value: Any, _: Json, __: str, ___: bool) -> Json | None:
    if not isinstance(value, str):
        return None
    value.encode()  # half a surrogate pair: a ValueError that says so
    return _primitive("stringValue", value)


def _boolean(value: Any, _: Json, __: str, lenient: bool) -> Json | None:
    if lenient and isinstance(value, str):
        value = {"true": True, "false": False}.get(value.strip().lower())
    return _primitive("boolean", value) if isinstance(value, bool) else None


def _datetime(value: Any, _: Json, __: str, lenient: bool) -> Json | None:
    if lenient and isinstance(value, str):
        try:
            value = datetime.datetime.fromisoformat(value)
        except ValueError:
            return None
    if not isinstance(value, datetime.datetime):
        return None
    # Like Flyte's SDK, which treats a time without a zone as UTC.
    aware = value if value.tzinfo else value.replace(tzinfo=datetime.UTC)
    return _primitive("datetime", aware.astimezone(datetime.UTC).isoformat().replace("+00:00", "Z"))


def _duration(value: Any, _: Json, __: str, lenient: bool) -> Json | None:
    if lenient and isinstance(value, str):
        said = _DURATION.fullmatch(value.strip())
        value = float(said[1]) if said else None
    if lenient and isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        value = datetime.timedelta(seconds=value)
    if not isinstance(value, datetime.timedelta):
        return None
    return _primitive("duration", f"{value.total_seconds():.6f}s")


def _none(value: Any, _: Json, __: str, ___: bool) -> Json | None:
    return {"scalar": {"noneType": {}}} if value is None else None


def _struct(value: Any, kind: Json, where: str, _: bool) -> Json | None:
    if not isinstance(value, Mapping):
        return None
    if problems := _violations(value, kind.get("metadata")):
        raise _Mismatch(*(f"{where + path!r}: {what}" for path, what in problems))
    packed = base64.b64encode(_pack(dict(value))).decode()
    return {"scalar": {"binary": {"value": packed, "tag": MSGPACK_TAG}}}


def _violations(value: Mapping[str, Any], schema: Any) -> list[tuple[str, str]]:
    """Return where a dict violates a dataclass's JSON schema, and how; without a schema, nothing."""
    if not isinstance(schema, Mapping) or "properties" not in schema:
        return []
    # Airflow depends on it.
    from jsonschema import Draft202012Validator, SchemaError  # type: ignore[import-untyped]
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    try:
        Draft202012Validator.check_schema(schema)
        # An empty registry fetches nothing.
        found = list(Draft202012Validator(schema, registry=Registry()).iter_errors(value))
    except (SchemaError, Unresolvable, re.error, *MISSHAPEN):
        return []
    return [(error.json_path.removeprefix("$"), error.message[: 2 * _SHOWN]) for error in found]


_SIMPLE: dict[str, Callable[[Any, Json, str, bool], Json | None]] = {
    "NONE": _none,
    "INTEGER": _integer,
    "FLOAT": _float,
    "STRING": _text,
    "BOOLEAN": _boolean,
    "DATETIME": _datetime,
    "DURATION": _duration,
    "STRUCT": _struct,
}


def _pack(value: object) -> bytes:
    """Return a value of JSON types as MessagePack, in which Flyte stores dicts and dataclasses.

    :raises UnsupportedError: the extra `flyte` isn't installed.
    """
    try:
        import msgpack  # type: ignore[import-untyped]
    except ImportError:
        raise UnsupportedError(_NO_MSGPACK) from None
    packed: bytes = msgpack.packb(value)
    return packed


def unpack(packed: bytes) -> Any:
    """Return the value of a MessagePack.

    :raises UnsupportedError: the extra `flyte` isn't installed.
    :raises ValueError: it isn't MessagePack.
    """
    try:
        import msgpack
    except ImportError:
        raise UnsupportedError(_NO_MSGPACK) from None
    try:
        return msgpack.unpackb(packed, strict_map_key=False)
    except (ValueError, msgpack.exceptions.UnpackException) as error:
        raise ValueError(str(error) or type(error).__name__) from error
