"""Parameters as inputs: what fits becomes the official message, what doesn't is rejected and named."""

from __future__ import annotations

import builtins
import datetime
from typing import Any

import msgpack
import pytest
from flyteidl2.core import literals_pb2
from flyteidl2.task import common_pb2
from google.protobuf import json_format

from airflow_invocations.platforms import InvalidRequestError, UnsupportedError
from airflow_invocations.platforms.flyte.literals import Variable, inputs_of, variables_of
from airflow_invocations.platforms.flyte.outputs import value_of

from .types import (
    BINARY,
    BOOLEAN,
    DATETIME,
    DURATION,
    ENUM,
    FILE,
    FLOAT,
    FOLDER,
    INTEGER,
    NONE,
    POSE,
    STRUCT,
    TABLE,
    TEXT,
    Json,
    dict_of,
    list_of,
    union,
)


def literal_of(kind: Json, value: Any) -> literals_pb2.Literal:
    """What a value becomes, read by the official definitions."""
    inputs = inputs_of("t", [Variable("x", kind)], {"x": value})
    message: common_pb2.Inputs = json_format.ParseDict(inputs, common_pb2.Inputs())
    (named,) = message.literals
    assert named.name == "x"
    return named.value


def rejection(kind: Json, value: Any) -> str:
    with pytest.raises(InvalidRequestError) as rejected:
        inputs_of("t", [Variable("x", kind)], {"x": value})
    return str(rejected.value).removeprefix("task t can't have these parameters: ")


@pytest.mark.parametrize(
    ("kind", "value", "field", "expected"),
    [
        (INTEGER, 2**53 + 1, "integer", 2**53 + 1),
        (INTEGER, "-7", "integer", -7),
        (FLOAT, 0.5, "float_value", 0.5),
        (FLOAT, 3, "float_value", 3.0),
        (FLOAT, "2.5e3", "float_value", 2500.0),
        (TEXT, "3", "string_value", "3"),
        (BOOLEAN, False, "boolean", False),
        (BOOLEAN, "True", "boolean", True),
        (BOOLEAN, "false", "boolean", False),
        (ENUM, "RED", "string_value", "RED"),
    ],
)
def test_a_value_of_the_wanted_kind_or_a_text_that_stands_for_it(
    kind: Json, value: object, field: str, expected: object
) -> None:
    primitive = literal_of(kind, value).scalar.primitive
    assert primitive.WhichOneof("value") == field
    assert getattr(primitive, field) == expected


@pytest.mark.parametrize(
    "value",
    [
        "2026-01-31T12:00:00.25Z",
        "2026-01-31T13:00:00.25+01:00",
        "2026-01-31T12:00:00.250",
        datetime.datetime(2026, 1, 31, 12, 0, 0, 250_000, datetime.UTC),
    ],
)
def test_a_datetime_is_iso_and_without_a_zone_utc(value: object) -> None:
    written = literal_of(DATETIME, value).scalar.primitive.datetime
    assert written.ToJsonString() == "2026-01-31T12:00:00.250Z"


@pytest.mark.parametrize("value", [90.5, "90.5", "90.5s", datetime.timedelta(seconds=90.5)])
def test_a_duration_is_seconds(value: object) -> None:
    assert literal_of(DURATION, value).scalar.primitive.duration.ToJsonString() == "90.500s"


def test_lists_and_dicts_hold_what_they_say() -> None:
    nested = literal_of(dict_of(list_of(INTEGER)), {"a": [1, "2"], "b": []})
    by_name = nested.map.literals
    assert [one.scalar.primitive.integer for one in by_name["a"].collection.literals] == [1, 2]
    assert by_name["b"].collection.literals == []


def test_files_folders_and_tables_are_their_uris() -> None:
    blob = literal_of(FILE, "s3://b/k.csv").scalar.blob
    assert (blob.uri, blob.metadata.type.format) == ("s3://b/k.csv", "csv")
    assert literal_of(FOLDER, "gs://b/k").scalar.blob.metadata.type.dimensionality == 1
    table = literal_of(TABLE, "s3://b/t").scalar.structured_dataset
    assert (table.uri, table.metadata.structured_dataset_type.format) == ("s3://b/t", "parquet")


def test_dicts_and_dataclasses_are_msgpack() -> None:
    for kind in (STRUCT, POSE):
        binary = literal_of(kind, {"x": 1.5}).scalar.binary
        assert binary.tag == "msgpack"
        assert msgpack.unpackb(binary.value) == {"x": 1.5}


@pytest.mark.parametrize(
    ("kind", "value", "chosen"),
    [
        (union(INTEGER, NONE), None, 1),
        (union(INTEGER, NONE), 5, 0),
        (union(INTEGER, NONE), "5", 0),
        (union(INTEGER, TEXT), "5", 1),
        (union(FLOAT, INTEGER), 5, 1),
        (union(FLOAT, TEXT), 5, 0),
        (union(list_of(INTEGER), INTEGER), [1], 0),
    ],
)
def test_variant_of_a_union_depends_on_the_value(kind: Json, value: object, chosen: int) -> None:
    made = literal_of(kind, value).scalar.union
    assert json_format.MessageToDict(made.type) == kind["unionType"]["variants"][chosen]


def test_a_text_that_could_stand_for_two_kinds_is_rejected() -> None:
    assert rejection(union(INTEGER, FLOAT), "5") == (
        "'x': expected: integer or number, got: str '5' (ambiguous: integer and number)"
    )


@pytest.mark.parametrize(
    ("kind", "value", "said"),
    [
        (INTEGER, 3.0, "expected: integer, got: float 3.0"),
        (INTEGER, True, "expected: integer, got: bool True"),
        (INTEGER, "3.0", "expected: integer, got: str '3.0'"),
        (INTEGER, 2**63, "it needs more than 64 bits"),
        (FLOAT, True, "expected: number, got: bool True"),
        (FLOAT, "nan", "expected: number, got: str 'nan'"),
        (TEXT, 3, "expected: string, got: int 3"),
        (TEXT, None, "expected: string, got: NoneType None"),
        (BOOLEAN, 1, "expected: true or false, got: int 1"),
        (BOOLEAN, "yes", "expected: true or false, got: str 'yes'"),
        (DATETIME, "tomorrow", "expected: datetime (ISO 8601), got: str 'tomorrow'"),
        (DURATION, "soon", "expected: duration (seconds), got: str 'soon'"),
        (NONE, 0, "expected: None, got: int 0"),
        (ENUM, "BLUE", "expected: one of 'RED', 'GREEN', got: str 'BLUE'"),
        (FILE, "/tmp/x", "expected: file (its URI), got: str '/tmp/x'"),
        (FOLDER, 1, "expected: directory (its URI), got: int 1"),
        (TABLE, [], "expected: dataset (its URI), got: list []"),
        (BINARY, "AA==", "expected: binary, got: str 'AA=='"),
        (STRUCT, [1], "expected: dict, got: list [1]"),
        (list_of(INTEGER), "[1]", "expected: list of integer, got: str '[1]'"),
        (dict_of(TEXT), {1: "a"}, "expected: dict from string to string, got: dict {1: 'a'}"),
        ({"schema": {}}, 1, "expected: schema, got: int 1"),
        ({}, 1, "expected: an unknown type, got: int 1"),
        ({"simple": 42}, 1, "expected: simple, got: int 1"),
        (TEXT, ["x" * 500], "..."),
        # What Python itself rejects to make of it.
        (INTEGER, "9" * 5000, "expected: integer, got: str '999"),
        (INTEGER, [10**5000], "expected: integer, got: list (too long to be shown)"),
        (FLOAT, 10**400, "expected: number, got: int 1000"),
        (FLOAT, "1_0", "expected: number, got: str '1_0'"),
        (DURATION, 1e300, "expected: duration (seconds), got: float 1e+300"),
        (DURATION, "9" * 50, "expected: duration (seconds), got: str '999"),
        (DATETIME, "0001-01-01T00:00:00+05:00", "date value out of range"),
        (STRUCT, {"a": 2**70}, "expected: dict, got: dict {'a': 1180591620717411303424}"),
        (TEXT, "\ud800", "expected: string, got: str '\\ud800' ("),
        (union(FLOAT, NONE), 10**400, "expected: number or None, got: int 1000"),
    ],
)
def test_mismatched_value_is_rejected_with_the_expected_type(kind: Json, value: object, said: str) -> None:
    message = rejection(kind, value)
    assert message.startswith("'x': expected: ")
    assert said in message
    assert len(message) < 300


def test_mismatched_fields_of_a_dataclass_are_named() -> None:
    said = rejection(POSE, {"x": "far", "y": 1})
    assert "'x.x': 'far' is not of type 'number'" in said
    assert "'y'" in said
    assert "'x': 'x' is a required property" in rejection(POSE, {})


def test_everything_that_does_not_fit_is_said_at_once() -> None:
    variables = [
        Variable("count", INTEGER),
        Variable("names", list_of(TEXT)),
        Variable("missing", union(TEXT, NONE)),
        Variable("optional", TEXT, default={"scalar": {"primitive": {"stringValue": "d"}}}),
    ]
    with pytest.raises(InvalidRequestError) as rejected:
        inputs_of("p/d/f@v1", variables, {"count": "many", "names": ["a", 1, 2], "cuont": 1})
    assert str(rejected.value) == (
        "task p/d/f@v1 can't have these parameters: "
        "'count': expected: integer, got: str 'many'; "
        "'names[1]': expected: string, got: int 1; "
        "'names[2]': expected: string, got: int 2; "
        "'cuont' is not an input of the task; declared: count, names, missing, optional; "
        "'missing' is missing; expected: string or None"
    )


def test_without_the_extra_a_dict_is_rejected_and_the_extra_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without_msgpack(name: str, *arguments: Any) -> Any:
        if name == "msgpack":
            raise ImportError(name)
        return real(name, *arguments)

    packed = {"scalar": {"binary": {"value": "gA==", "tag": "msgpack"}}}
    monkeypatch.setattr(builtins, "__import__", without_msgpack)
    with pytest.raises(UnsupportedError, match=r"pip install 'airflow-provider-invocations\[flyte\]'"):
        inputs_of("t", [Variable("x", STRUCT)], {"x": {}})
    assert "airflow-provider-invocations[flyte]" in value_of(packed)["not_loaded"]


def test_declarations_of_a_task_are_read_in_either_form() -> None:
    default = {"scalar": {"primitive": {"integer": "1"}}}
    variable = {"type": INTEGER, "description": "how many"}
    given = [{"name": "n", "parameter": {"var": variable, "default": default}}]
    for variables in ([{"key": "n", "value": variable}], {"n": variable}):
        template = {"interface": {"inputs": {"variables": variables}}}
        expected = [Variable("n", INTEGER, default, "how many")]
        assert variables_of({"taskTemplate": template, "defaultInputs": given}) == expected
    assert variables_of({"taskTemplate": {"interface": {}}}) == []
