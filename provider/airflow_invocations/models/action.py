"""Actions: what can be invoked, with which parameters and in which container."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Container
from enum import StrEnum
from typing import Any, Literal

import pydantic

from .base import WireModel
from .parameter_types import ParameterType, fit_value

#: Memory (MiB) allowed with a number of CPU units (1024 = one vCPU): the combinations of AWS Fargate.
MEMORY_BY_VCPU: dict[int, Container[int]] = {
    256: (512, 1024, 2048),
    512: range(1024, 4096 + 1, 1024),
    1024: range(2048, 8192 + 1, 1024),
    2048: range(4096, 16384 + 1, 1024),
    4096: range(8192, 30720 + 1, 1024),
    8192: range(16384, 61440 + 1, 4096),
    16384: range(32768, 122880 + 1, 8192),
}


class Accessibility(StrEnum):
    """Who may invoke an action: its organisation, or everyone."""

    Organization = "organization"
    ActionHub = "action_hub"


def require_flat(metadata: dict[str, Any]) -> None:
    """Raise ValueError unless an action's metadata is flat, as the platform requires.

    Datasets and files may have nested metadata.
    """
    for key, value in metadata.items():
        if not isinstance(value, str | bool | int | float):
            raise ValueError(
                f"the metadata of an action is flat: {key!r} is {type(value).__name__}; allowed: a string, "
                "a number, true or false"
            )


class ActionReference(WireModel):
    """An action by name, with its version and owner where they matter."""

    name: str
    digest: str | None = None
    owner: str | None = None


class ActionParameter(WireModel):
    """A parameter that an action declares.

    A parameter without a `type`, or with a type that this version does not know, accepts any value. The
    invocation API has no types; the local server and other platforms do.

    `default` is converted to the type: "true" becomes true for a boolean. Without a type it is kept as a
    string, as the platform does. A default that does not fit the type is kept unchanged; the local server
    rejects such an action.
    """

    name: str
    required: bool = False
    description: str | None = None
    default: Any = None
    type: ParameterType | None = pydantic.Field(default=None, exclude_if=lambda kind: kind is None)

    @pydantic.field_validator("type", mode="before")
    @classmethod
    def _if_known(cls, value: object) -> object:
        return value if isinstance(value, str) and value in set(ParameterType) else None

    @pydantic.model_validator(mode="after")
    def _read_default(self) -> ActionParameter:
        if self.default is None:
            return self
        if self.type is None:
            self.default = str(self.default)
        else:
            with contextlib.suppress(ValueError):
                self.default = fit_value(self.type, self.default)
        return self


class ComputeRequirements(WireModel):
    """The resources of an action's container.

    vCPU in CPU units (1024 = one vCPU), memory in MiB, storage in GiB (at least 21). Combinations that
    MEMORY_BY_VCPU lacks raise a ValidationError.
    """

    vCPU: int = 512
    memory: int = pydantic.Field(
        default=1024, validation_alias=pydantic.AliasChoices("memory", "memory_MiB", "memory_mib")
    )
    gpu: Literal[False] = False
    storage: int = pydantic.Field(
        default=21, ge=21, validation_alias=pydantic.AliasChoices("storage", "storage_GiB", "storage_gib")
    )

    @pydantic.model_validator(mode="after")
    def _is_offered(self) -> ComputeRequirements:
        allowed = MEMORY_BY_VCPU.get(self.vCPU)
        if allowed is None:
            raise ValueError(f"vCPU is {self.vCPU}; allowed: {', '.join(map(str, MEMORY_BY_VCPU))}")
        if self.memory not in allowed:
            raise ValueError(
                f"memory is {self.memory} MiB; with vCPU {self.vCPU} allowed: {_listed(allowed)}"
            )
        return self


def _listed_parameter(parameter: ActionParameter) -> str:
    notes = [
        *([parameter.type.value] if parameter.type else []),
        *(["required"] if parameter.required else []),
    ]
    return f"{parameter.name} ({', '.join(notes)})" if notes else parameter.name


def _listed(allowed: Container[int]) -> str:
    if isinstance(allowed, range):
        return f"{allowed.start} to {allowed[-1]} in steps of {allowed.step}"
    return ", ".join(map(str, allowed)) if isinstance(allowed, tuple) else str(allowed)


class ContainerParameters(WireModel):
    """How an action's container is started: its command line, environment and working directory."""

    command: list[str] | None = None
    entry_point: list[str] | None = None
    env_vars: dict[str, str] | None = None
    workdir: str | None = None

    def overridden_by(self, overrides: ContainerParameters | None) -> ContainerParameters:
        """Return these parameters, replaced by those that `overrides` sets; env_vars are merged by name."""
        if overrides is None:
            return self
        merged = self.model_dump() | overrides.model_dump(exclude_none=True)
        if self.env_vars or overrides.env_vars:
            merged["env_vars"] = {**(self.env_vars or {}), **(overrides.env_vars or {})}
        return ContainerParameters.model_validate(merged)


class CreateActionRequest(WireModel):
    """`POST v1/actions`. `timeout` is in minutes, `short_description` at most 140 characters.

    `may_invoke`: whether the action's process may invoke actions; only the local server has this field.
    """

    name: str
    compute_requirements: ComputeRequirements | None = None
    container_parameters: ContainerParameters | None = None
    description: str | None = None
    inherits: ActionReference | None = None
    may_invoke: bool = pydantic.Field(default=False, exclude_if=lambda may: not may)
    metadata: dict[str, Any] = {}
    parameters: list[ActionParameter] = []
    requires_downloaded_inputs: bool | None = None
    short_description: str | None = pydantic.Field(default=None, max_length=140)
    tags: list[str] = []
    timeout: int | None = pydantic.Field(default=None, ge=1)
    uri: str | None = None


class ActionRecord(WireModel):
    """An action as the platform returns it. `digest` identifies the version; `timeout` is in minutes.

    For `may_invoke` see CreateActionRequest.
    """

    created: datetime.datetime
    created_by: str
    modified: datetime.datetime
    modified_by: str
    name: str
    org_id: str
    accessibility: Accessibility = Accessibility.Organization
    compute_requirements: ComputeRequirements | None = None
    container_parameters: ContainerParameters | None = None
    description: str | None = None
    digest: str | None = None
    inherits: ActionReference | None = None
    may_invoke: bool = pydantic.Field(default=False, exclude_if=lambda may: not may)
    metadata: dict[str, Any] = {}
    parameters: list[ActionParameter] = []
    published: datetime.datetime | None = None
    requires_downloaded_inputs: bool | None = None
    short_description: str | None = None
    tags: list[str] = []
    timeout: int | None = None
    uri: str | None = None

    @property
    def takes_more(self) -> bool:
        """Whether it accepts parameters that it does not declare."""
        return False

    @property
    def declared_parameters(self) -> str:
        """The parameters as text: names, types, and which are required."""
        return ", ".join(map(_listed_parameter, self.parameters))

    def missing_parameters(self, given: Container[str]) -> list[str]:
        """Return the required parameters that have no default and are not in `given`."""
        return [p.name for p in self.parameters if p.required and p.default is None and p.name not in given]


class OpenActionRecord(ActionRecord):
    """An action that accepts undeclared parameters, or whose platform validates them itself.

    The invocation API has no such field.
    """

    @property
    def takes_more(self) -> bool:
        """Whether it accepts parameters that it does not declare."""
        return True
