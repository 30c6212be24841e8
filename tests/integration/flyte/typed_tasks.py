"""A task with an input of every kind that we send, for the SDK to describe and to execute."""

from __future__ import annotations

import datetime
import enum
from dataclasses import dataclass, field

import flyte
import flyte.io
import pydantic

env = flyte.TaskEnvironment(name="typed")


class Colour(enum.Enum):
    """Flyte sends the names."""

    RED = "red"
    GREEN = "green"


@dataclass
class Point:
    """A part of another one."""

    x: float
    label: str = "here"


@dataclass
class Pose:
    """A dataclass in a dataclass."""

    at: Point
    history: list[Point] = field(default_factory=list)
    note: str | None = None


class Robot(pydantic.BaseModel):
    """A model of pydantic's."""

    name: str
    wheels: int = 4


@env.task
async def describe(
    whole: int,
    number: float,
    text: str,
    truth: bool,
    moment: datetime.datetime,
    span: datetime.timedelta,
    several: list[int],
    named: dict[str, float],
    colour: Colour,
    pose: Pose,
    robot: Robot,
    anything: dict,
    either: int | str,
    perhaps: float | None,
    file: flyte.io.File,
    missing: int | None = None,
    season: int = 24,
) -> dict[str, str]:
    """What arrived, as Python shows it."""
    return {name: repr(value) for name, value in locals().items() if name != "file"} | {"file": file.path}
