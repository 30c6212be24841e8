"""Literal types as JSON, as Flyte sends them."""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]


def simple(name: str) -> Json:
    return {"simple": name}


def list_of(kind: Json) -> Json:
    return {"collectionType": kind}


def dict_of(kind: Json) -> Json:
    return {"mapValueType": kind}


def union(*kinds: Json) -> Json:
    return {"unionType": {"variants": list(kinds)}}


INTEGER, FLOAT, TEXT, BOOLEAN = simple("INTEGER"), simple("FLOAT"), simple("STRING"), simple("BOOLEAN")
DATETIME, DURATION, NONE, STRUCT = simple("DATETIME"), simple("DURATION"), simple("NONE"), simple("STRUCT")
BINARY = simple("BINARY")
ENUM: Json = {"enumType": {"values": ["RED", "GREEN"]}}
FILE: Json = {"blob": {"format": "csv"}}
FOLDER: Json = {"blob": {"dimensionality": "MULTIPART"}}
TABLE: Json = {"structuredDatasetType": {"format": "parquet"}}
#: As flyte 2.12 describes a dataclass `Pose(x: float, frame: str = "map")`.
POSE: Json = {
    **STRUCT,
    "metadata": {
        "type": "object",
        "title": "Pose",
        "properties": {"x": {"type": "number"}, "frame": {"type": "string", "default": "map"}},
        "required": ["x"],
        "additionalProperties": False,
    },
}
