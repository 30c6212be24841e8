"""Changes to existing actions and invocations, and how to apply them."""

from __future__ import annotations

import copy
import datetime
from typing import Any, TypeVar

import pydantic
import pydantic_core

from .action import (
    Accessibility,
    ActionParameter,
    ActionRecord,
    ActionReference,
    ComputeRequirements,
    ContainerParameters,
    CreateActionRequest,
)
from .base import MAX_DEPTH, MAX_METADATA, WireModel, require_plain_json
from .status import KnownStatus

_Keys = TypeVar("_Keys", dict[str, Any] | None, list[str] | None)


class MetadataChangeset(WireModel):
    """Changes to metadata and tags. A key with dots names a field inside nested objects (or lists, by index).

    A key has at most MAX_DEPTH parts. After a change the metadata is nested at most MAX_DEPTH deep, has no
    number that JSON lacks, and its JSON text has at most MAX_METADATA bytes.

    `replace_all` replaces all metadata with `put_fields`. Fields are put before others are removed. An object
    that a removal leaves empty is removed too.
    """

    put_tags: list[str] | None = None
    remove_tags: list[str] | None = None
    put_fields: dict[str, Any] | None = None
    remove_fields: list[str] | None = None
    replace_all: bool = False

    @pydantic.field_validator("put_fields", "remove_fields")
    @classmethod
    def _within_depth(cls, keys: _Keys) -> _Keys:
        for key in keys or ():
            if (parts := key.count(".") + 1) > MAX_DEPTH:
                raise ValueError(f"the key {key[:60]!r} has {parts} parts; a key may have {MAX_DEPTH}")
        return keys

    def applied_to_metadata(self, metadata: dict[str, Any]) -> dict[str, Any]:
        """Return the metadata after the change.

        :raises ValueError: a path leads through a plain value, or the metadata would break a limit.
        """
        changed = self._changed(metadata)
        require_plain_json(changed)
        if (size := len(pydantic_core.to_json(changed))) > MAX_METADATA:
            raise ValueError(f"the metadata would have {size} bytes; it may have {MAX_METADATA}")
        return changed

    def _changed(self, metadata: dict[str, Any]) -> dict[str, Any]:
        if self.replace_all:
            return dict(self.put_fields or {})
        changed = copy.deepcopy(metadata)
        for path, value in (self.put_fields or {}).items():
            _put(changed, path, value)
        for path in self.remove_fields or []:
            _remove(changed, path.split("."))
        return changed

    def applied_to_tags(self, tags: list[str]) -> list[str]:
        """Return the tags after the change without duplicates, in their order of insertion."""
        removed = set(self.remove_tags or [])
        return [tag for tag in dict.fromkeys([*tags, *(self.put_tags or [])]) if tag not in removed]


def _put(container: Any, path: str, value: Any) -> None:
    *parents, last = path.split(".")
    for part in parents:
        if isinstance(container, dict):
            container = container.setdefault(part, {})
        elif isinstance(container, list):
            container = container[_index(container, part, path)]
        else:
            raise ValueError(f"metadata {path!r}: {part!r} is a plain value and has no fields")
    if isinstance(container, dict):
        container[last] = value
    elif isinstance(container, list):
        container.insert(_index([*container, None], last, path), value)
    else:
        raise ValueError(f"metadata {path!r}: the field above {last!r} is a plain value")


def _index(container: list[Any], part: str, path: str) -> int:
    if not part.isdigit() or int(part) >= len(container):
        raise ValueError(f"metadata {path!r}: {part!r} is not an index of a list of {len(container)}")
    return int(part)


def _remove(container: Any, path: list[str]) -> None:
    first, rest = path[0], path[1:]
    key: Any = first
    if isinstance(container, list):
        if not first.isdigit() or int(first) >= len(container):
            return
        key = int(first)
    elif not isinstance(container, dict) or first not in container:
        return
    if rest:
        _remove(container[key], rest)
        if container[key] not in ({}, []):
            return
    del container[key]


class ActionParameterChangeset(WireModel):
    """Parameters to add or replace, and names of those to remove."""

    put_parameters: list[ActionParameter] = []
    remove_parameters: list[str] = []

    def applied_to(self, parameters: list[ActionParameter]) -> list[ActionParameter]:
        """Return the parameters after the change; a replaced parameter keeps its position."""
        changed = {parameter.name: parameter for parameter in parameters}
        changed |= {parameter.name: parameter for parameter in self.put_parameters}
        return [parameter for name, parameter in changed.items() if name not in self.remove_parameters]


class UpdateActionRequest(WireModel):
    """`PUT v1/actions/{name}`: an absent field is not changed, a null field is emptied."""

    compute_requirements: ComputeRequirements | None = None
    container_parameters: ContainerParameters | None = None
    description: str | None = None
    inherits: ActionReference | None = None
    metadata_changeset: MetadataChangeset | None = None
    parameter_changeset: ActionParameterChangeset | None = None
    requires_downloaded_inputs: bool | None = None
    short_description: str | None = pydantic.Field(default=None, max_length=140)
    timeout: int | None = pydantic.Field(default=None, ge=1)
    uri: str | None = pydantic.Field(default=None, min_length=1)

    def applied_to(self, action: ActionRecord) -> CreateActionRequest:
        """Return the request that would create the changed action.

        :raises ValueError: a metadata path leads through a plain value, or the metadata would break a limit.
        """
        content = {name: getattr(action, name) for name in CreateActionRequest.model_fields}
        changesets = {"metadata_changeset", "parameter_changeset"}
        content |= {name: getattr(self, name) for name in self.model_fields_set - changesets}
        if self.metadata_changeset is not None:
            content["metadata"] = self.metadata_changeset.applied_to_metadata(action.metadata)
            content["tags"] = self.metadata_changeset.applied_to_tags(action.tags)
        if self.parameter_changeset is not None:
            content["parameters"] = self.parameter_changeset.applied_to(action.parameters)
        return CreateActionRequest.model_validate(content)


class SetAccessibilityRequest(WireModel):
    """`PUT v1/actions/{name}/accessibility`; `digest` None: the newest version."""

    accessibility: Accessibility
    digest: str | None = None


class StatusUpdate(WireModel):
    """`POST v1/actions/invocations/{id}/status`."""

    status: KnownStatus
    detail: str | None = pydantic.Field(default=None, max_length=10_000)


class CancelAllRequest(WireModel):
    """`POST v1/actions/invocations/cancel/all`: active invocations created before a time; None: all."""

    created_before: datetime.datetime | None = None


class CancelAllAnswer(WireModel):
    """The numbers of cancelled and not cancelled invocations, and whether to call again for the rest."""

    success_count: int
    failure_count: int
    has_more: bool


class ContainerInfo(WireModel):
    """`PUT v1/actions/invocations/{id}/container-info`: the digest of the image that was pulled."""

    image_digest: str = pydantic.Field(min_length=1, max_length=512)


class LogsLocation(WireModel):
    """`PUT v1/actions/invocations/{id}/logs`: where a platform keeps an invocation's log."""

    bucket: str = pydantic.Field(min_length=1, max_length=512)
    prefix: str = pydantic.Field(max_length=2048)


class ActionStats(WireModel):
    """The numbers of completed, failed and active invocations of one action."""

    action_name: str
    action_org_id: str
    completed_count: int
    fail_count: int
    queued_count: int
