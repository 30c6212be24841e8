"""Read the action.json of an action's folder, and warn of parts without effect."""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pydantic

from ...models import ActionParameter, ActionReference, ComputeRequirements, ContainerParameters
from ...models.base import problems_of
from ..api.schemas import CreateActionBody
from ..settings import StartError

#: Fields that the published client's command writes and that have no effect here or another name.
_ALSO_KNOWN = {"docker_config", "image_uri"}

#: The objects within an action, by field.
_PARTS: dict[str, type[pydantic.BaseModel]] = {
    "compute_requirements": ComputeRequirements,
    "container_parameters": ContainerParameters,
    "inherits": ActionReference,
    "parameters": ActionParameter,
}


def read_action(path: Path) -> tuple[CreateActionBody, list[str]]:
    """Read an action; also return a sentence about each part of its file that has no effect.

    :raises StartError: the file is not a valid action; the message names the file and the field.
    """
    try:
        content = json.loads(path.read_bytes())  # bytes, so that json handles a byte order mark
        warnings = list(_unknown_fields(content))
        if isinstance(content, dict) and "image_uri" in content:
            content["uri"] = content.pop("image_uri")
        action = CreateActionBody.model_validate(content)
    except pydantic.ValidationError as error:
        raise StartError(f"{path}: {problems_of(error.errors())}") from None
    except (OSError, ValueError) as error:
        raise StartError(f"{path}: {error}") from None
    return action, [*warnings, *_what_can_not_run(action)]


def _unknown_fields(content: object) -> Iterator[str]:
    if not isinstance(content, dict):
        return
    yield from _unknown(content, {*_fields_of(CreateActionBody), *_ALSO_KNOWN}, "")
    for name, kind in _PARTS.items():
        inside = content.get(name)
        for part in inside if isinstance(inside, list) else [inside]:
            if isinstance(part, dict):
                yield from _unknown(part, _fields_of(kind), f" in {name}")


def _unknown(content: dict[str, Any], known: Collection[str], where: str) -> Iterator[str]:
    for name in sorted(content.keys() - known):
        alike = difflib.get_close_matches(name, known, n=1)
        yield f"the field {name!r}{where} has no effect" + (f"; did you mean {alike[0]!r}?" if alike else "")


def _fields_of(kind: type[pydantic.BaseModel]) -> set[str]:
    names = set(kind.model_fields)
    for field in kind.model_fields.values():
        alias = field.validation_alias
        if isinstance(alias, pydantic.AliasChoices):
            names |= {choice for choice in alias.choices if isinstance(choice, str)}
    return names


def _what_can_not_run(action: CreateActionBody) -> Iterator[str]:
    container = action.container_parameters
    if action.uri:
        yield f"it needs the container image {action.uri!r}, but this server runs no containers"
    elif action.inherits is None and not (container and (container.entry_point or container.command)):
        yield "it has nothing to run: set container_parameters.command or .entry_point"
