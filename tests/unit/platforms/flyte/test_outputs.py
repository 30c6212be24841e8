"""What a run has returned: read as JSON types, and never executed."""

from __future__ import annotations

import base64
import json
import pickle
from typing import Any

import msgpack
import pytest

from airflow_invocations.platforms.flyte.outputs import outputs_of, value_of


def primitive(**value: object) -> dict[str, Any]:
    return {"scalar": {"primitive": value}}


def binary(content: bytes, tag: str = "msgpack") -> dict[str, Any]:
    return {"scalar": {"binary": {"value": base64.b64encode(content).decode(), "tag": tag}}}


@pytest.mark.parametrize(
    ("literal", "value"),
    [
        (primitive(integer="9007199254740993"), 9007199254740993),
        (primitive(floatValue=0.5), 0.5),
        (primitive(floatValue=2), 2.0),
        (primitive(floatValue="NaN"), "NaN"),
        (primitive(stringValue=""), ""),
        (primitive(boolean=False), False),
        (primitive(datetime="2026-01-31T12:00:00Z"), "2026-01-31T12:00:00Z"),
        (primitive(duration="90.500s"), 90.5),
        ({"scalar": {"noneType": {}}}, None),
        ({"scalar": {"union": {"value": primitive(integer="1"), "type": {}}}}, 1),
        ({"scalar": {"generic": {"a": 1.0}}}, {"a": 1.0}),
        ({"scalar": {"blob": {"uri": "s3://b/k", "metadata": {"type": {"format": "csv"}}}}}, "s3://b/k"),
        ({"scalar": {"structuredDataset": {"uri": "s3://b/t"}}}, "s3://b/t"),
        ({"scalar": {"schema": {"uri": "s3://b/s"}}}, "s3://b/s"),
        ({"collection": {"literals": [primitive(integer="1"), {"collection": {}}]}}, [1, []]),
        ({"map": {"literals": {"a": primitive(boolean=True)}}}, {"a": True}),
        (binary(msgpack.packb({"a": [1, None, {2: "b"}]})), {"a": [1, None, {"2": "b"}]}),
    ],
)
def test_literals_are_json(literal: dict[str, Any], value: object) -> None:
    read = value_of(literal)
    assert read == value
    assert type(read) is type(value)
    assert json.loads(json.dumps(read)) == value


class Executed:
    """Whoever unpickles one is found out."""

    count = 0

    def __reduce__(self) -> Any:
        return Executed.execute, ()

    @staticmethod
    def execute() -> None:
        Executed.count += 1


@pytest.mark.parametrize(
    ("literal", "said"),
    [
        (binary(pickle.dumps(Executed()), tag=""), "binary of"),
        (binary(pickle.dumps(Executed()), tag="cloudpickle"), "tagged 'cloudpickle'"),
        (binary(pickle.dumps(Executed())), ""),
        (
            {"scalar": {"blob": {"uri": "s3://b/p", "metadata": {"type": {"format": "PythonPickle"}}}}},
            "pickled object at s3://b/p",
        ),
        ({"offloadedMetadata": {"uri": "s3://b/o", "sizeBytes": "77"}}, "kept at s3://b/o, 77 bytes"),
        (binary(msgpack.packb(msgpack.ExtType(5, b"x"))), "ExtType"),
        (binary(msgpack.packb(b"xyz")), "binary of 3 bytes"),
        (binary(b"\xc1"), ""),
        ({"scalar": {"error": {"message": "m"}}}, "error"),
        ({"tomorrow": {}}, "tomorrow"),
    ],
)
def test_unsafe_outputs_are_named_and_not_loaded(literal: dict[str, Any], said: str) -> None:
    Executed.count = 0
    read = value_of(literal)
    assert list(read) == ["not_loaded"]
    assert said in read["not_loaded"]
    assert Executed.count == 0


def test_a_single_result_is_itself_and_several_go_by_their_names() -> None:
    one = {"name": "o0", "value": primitive(integer="1")}
    assert outputs_of([one]) == 1
    assert outputs_of([one, {"name": "o1", "value": primitive(integer="2")}]) == {"o0": 1, "o1": 2}
    assert outputs_of([{"name": "mean", "value": primitive(floatValue=0.5)}]) == {"mean": 0.5}
    assert outputs_of([]) is None
