"""Callers of the API: the roles of tokens, and the resources of an action's own token."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class Role(IntEnum):
    """What a token may do; each role includes the ones before it."""

    #: The role of an action's own token, which can access only the resources of its invocation.
    Action = 0
    #: View actions, invocations and logs.
    Read = 1
    #: Invoke actions as registered, cancel invocations, and change datasets.
    Invoke = 2
    #: Create and change actions, invoke with overrides, report statuses, and everything else.
    Admin = 3

    @classmethod
    def named(cls, name: str) -> Role:
        """Return the role of a name in lower case, if a token can be created with it. Raises ValueError."""
        given = [role for role in cls if role is not cls.Action]
        for role in given:
            if role.name.lower() == name:
                return role
        raise ValueError(f"{name!r} is not a role; allowed: {', '.join(role.name.lower() for role in given)}")


@dataclass(frozen=True, slots=True)
class Own:
    """The resources of one invocation; the token of its process can access nothing else.

    `datasets` are those of its input and of its outputs. Those that its selectors match are added when the
    input is resolved.
    """

    invocation_id: str
    org_id: str
    action: str
    datasets: set[str]


@dataclass(frozen=True, slots=True)
class Caller:
    """The sender of a request, and the organisation that it belongs to."""

    user: str
    org_id: str
    role: Role
    #: The hash of the token.
    token_id: str
    #: The resources that an action's own token can access; None for other tokens.
    own: Own | None = None
