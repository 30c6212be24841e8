"""The rules of an invocation's life, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Generic, TypeVar


class InvocationStatus(IntEnum):
    """Where an invocation is. On the wire it is its integer; people see its name."""

    Queued = 0
    Scheduled = 1
    Downloading = 2
    Processing = 3
    Uploading = 4
    Completed = 5
    Cancelled = 997
    Failed = 998
    Deadly = 999

    def __str__(self) -> str:
        return self.name

    @property
    def is_terminal(self) -> bool:
        """Whether nothing more happens by itself: Completed, Cancelled, Failed or Deadly."""
        return DEFINITIONS[self].terminal

    @property
    def is_running(self) -> bool:
        """Whether the action's own work is under way: Downloading, Processing or Uploading."""
        return InvocationStatus.Downloading <= self <= InvocationStatus.Uploading


StatusT = TypeVar("StatusT", bound=Enum)


@dataclass(frozen=True, slots=True)
class StatusDefinition(Generic[StatusT]):
    """What may follow a status, and who may decide it."""

    #: Statuses that may come right after this one; a status may also follow itself.
    allowed: frozenset[StatusT] = frozenset()
    #: Nothing more happens by itself.
    terminal: bool = False
    #: Only the runner that owns the invocation may move it into this status.
    requires_owner: bool = False
    #: Entering it makes the caller the invocation's owner.
    acquires_owner: bool = False
    #: Entering it leaves the invocation without an owner.
    releases_owner: bool = False
    #: Entering it is allowed whoever owns the invocation (a cancel, a recovery).
    overrides_owner: bool = False


def _forward(*following: InvocationStatus) -> frozenset[InvocationStatus]:
    """The given statuses, and the two in which anything unfinished may end."""
    return frozenset({*following, InvocationStatus.Cancelled, InvocationStatus.Failed})


_S = InvocationStatus

#: The whole life of an invocation. Transitions: facts, Status; checked against the published client.
DEFINITIONS: Mapping[InvocationStatus, StatusDefinition[InvocationStatus]] = {
    _S.Queued: StatusDefinition(
        _forward(_S.Scheduled, _S.Downloading, _S.Processing, _S.Uploading, _S.Completed, _S.Deadly),
        releases_owner=True,
        overrides_owner=True,
    ),
    _S.Scheduled: StatusDefinition(
        _forward(_S.Downloading, _S.Processing, _S.Uploading, _S.Completed), acquires_owner=True
    ),
    _S.Downloading: StatusDefinition(
        _forward(_S.Processing, _S.Uploading, _S.Completed), requires_owner=True
    ),
    _S.Processing: StatusDefinition(_forward(_S.Uploading, _S.Completed), requires_owner=True),
    _S.Uploading: StatusDefinition(_forward(_S.Completed), requires_owner=True),
    _S.Completed: StatusDefinition(terminal=True, requires_owner=True, releases_owner=True),
    _S.Cancelled: StatusDefinition(terminal=True, releases_owner=True, overrides_owner=True),
    _S.Failed: StatusDefinition(
        frozenset({_S.Queued, _S.Deadly}), terminal=True, releases_owner=True, overrides_owner=True
    ),
    _S.Deadly: StatusDefinition(terminal=True, releases_owner=True, overrides_owner=True),
}


class InvalidTransition(ValueError):
    """A status that may not come right after the current one.

    Attributes:
        current: the status the invocation is in.
        following: the status that was asked for.
        allowed: what may follow `current`.
    """

    def __init__(self, current: Enum, following: Enum, allowed: frozenset[Enum]) -> None:
        self.current = current
        self.following = following
        self.allowed = allowed
        names = ", ".join(sorted(status.name for status in allowed)) or "nothing: it is final"
        super().__init__(
            f"an invocation that is {current.name} can't become {following.name}; allowed: {names}"
        )


def validate_transition(
    current: StatusT,
    following: StatusT,
    definitions: Mapping[StatusT, StatusDefinition[StatusT]] = DEFINITIONS,  # type: ignore[assignment]
) -> None:
    """Raise InvalidTransition unless `following` may come right after `current`."""
    allowed = definitions[current].allowed
    if following is not current and following not in allowed:
        raise InvalidTransition(current, following, frozenset(allowed))
