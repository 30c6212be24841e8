"""Request bodies that this service checks more closely than the vocabulary does, and who sends them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import pydantic

from ..model import ActionParameter, CreateActionRequest, InvocationStatus
from ..model.wire import WireModel

_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
#: Names that would be taken for endpoints.
_RESERVED = frozenset({"invocations", "query"})


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sends a request: the user, and the organisation whose actions and invocations it is about."""

    user: str
    org_id: str


def _named_for_a_variable(parameters: list[ActionParameter]) -> list[ActionParameter]:
    for parameter in parameters:
        if not parameter.name or {"=", "\0"} & set(parameter.name):
            raise ValueError(f"parameter {parameter.name!r}: a name is not empty and has no '=' in it")
    return parameters


class NamedAction(CreateActionRequest):
    """A CreateActionRequest whose names can be part of an address and of an environment."""

    name: Annotated[str, pydantic.Field(pattern=_NAME)]
    parameters: Annotated[list[ActionParameter], pydantic.AfterValidator(_named_for_a_variable)] = []

    @pydantic.field_validator("name")
    @classmethod
    def _not_reserved(cls, name: str) -> str:
        if name in _RESERVED:
            raise ValueError(f"{name!r} is an endpoint's name and can't be an action's")
        return name


class StatusUpdate(WireModel):
    """`POST v1/actions/invocations/{id}/status`."""

    status: InvocationStatus
    detail: str | None = pydantic.Field(default=None, max_length=10_000)
