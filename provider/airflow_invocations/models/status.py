"""The statuses of an invocation and the rules of its transitions, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Annotated, Generic, TypeVar

import pydantic


class InvocationStatus(IntEnum):
    """The status of an invocation. On the wire it is an integer; users see its name."""

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

    @classmethod
    def _missing_(cls, value: object) -> InvocationStatus | None:
        """Return a status for a number that only a newer platform knows, with a name that says so."""
        if type(value) is not int:
            return None
        unknown = int.__new__(cls, value)
        unknown._name_ = f"unknown status {value}"
        unknown._value_ = value
        return unknown

    @property
    def is_known(self) -> bool:
        """Whether this version knows it."""
        return self in DEFINITIONS

    @property
    def is_terminal(self) -> bool:
        """Whether the invocation has ended: Completed, Cancelled, Failed or Deadly.

        An unknown status counts as terminal, so that no wait for it lasts without end.
        """
        return not self.is_known or DEFINITIONS[self].terminal

    @property
    def is_running(self) -> bool:
        """Whether the action is at work: Downloading, Processing or Uploading."""
        return InvocationStatus.Downloading <= self <= InvocationStatus.Uploading


def _require_known(status: InvocationStatus) -> InvocationStatus:
    if not status.is_known:
        raise ValueError(
            f"{status}; allowed: {', '.join(f'{one.value} ({one})' for one in InvocationStatus)}"
        )
    return status


#: A status in a request, where only known ones are valid.
KnownStatus = Annotated[InvocationStatus, pydantic.AfterValidator(_require_known)]

StatusT = TypeVar("StatusT", bound=Enum)


@dataclass(frozen=True, slots=True)
class StatusDefinition(Generic[StatusT]):
    """Which transitions are allowed from a status, and what they require."""

    #: Statuses that may directly follow this one.
    allowed: frozenset[StatusT] = frozenset()
    #: The invocation has ended.
    terminal: bool = False
    #: Only the owner of an invocation in this status may change it.
    requires_owner: bool = False
    #: Who changes an invocation to this status becomes its owner.
    acquires_owner: bool = False
    #: An invocation in this status has no owner.
    releases_owner: bool = False
    #: Callers other than the owner may change an invocation to this status, to cancel or recover it.
    overrides_owner: bool = False


#: Definitions by status; that of None lists the statuses of a new invocation.
Definitions = Mapping[StatusT | None, StatusDefinition[StatusT]]


@dataclass(frozen=True, slots=True)
class OwnedStatus(Generic[StatusT]):
    """A status, and the owner of the invocation (None: no owner)."""

    status: StatusT
    owner: str | None = None


class InvalidTransition(ValueError):
    """A status that may not directly follow the current one.

    Attributes:
        current: the status of the invocation; None: it is new.
        following: the requested status.
        allowed: the statuses that may follow `current`.
    """

    def __init__(self, current: Enum | None, following: Enum, allowed: frozenset[Enum]) -> None:
        self.current = current
        self.following = following
        self.allowed = allowed
        names = (
            ", ".join(sorted(status.name for status in allowed - {current})) or "none, because it is terminal"
        )
        what = "a new invocation" if current is None else f"an invocation that is {current.name}"
        super().__init__(f"{what} can't become {following.name}; allowed: {names}")


class NotOwned(ValueError):
    """A change of status that only the invocation's owner may make.

    Attributes:
        current: the status of the invocation.
        following: the requested status.
        owner: the owner of the invocation; None: it has none.
        mover: the caller; None: a caller without a name.
    """

    def __init__(self, current: Enum, following: Enum, owner: str | None, mover: str | None) -> None:
        self.current = current
        self.following = following
        self.owner = owner
        self.mover = mover
        super().__init__(
            f"{mover or 'an unnamed caller'} can't change an invocation of {owner or 'no owner'} "
            f"from {current.name} to {following.name}"
        )


def get_status_definition(
    status: StatusT | None, definitions: Definitions[StatusT]
) -> StatusDefinition[StatusT]:
    """Return the definition of a status; that of None lists the statuses of a new invocation."""
    return definitions[status]


def validate_transition(
    current: StatusT | None, following: StatusT, definitions: Definitions[StatusT]
) -> None:
    """Raise InvalidTransition unless `following` may directly follow `current`."""
    allowed = get_status_definition(current, definitions).allowed
    if following not in allowed:
        raise InvalidTransition(current, following, frozenset(allowed))


def validate_ownership(
    current: OwnedStatus[StatusT] | None,
    following: StatusT,
    mover: str | None,
    definitions: Definitions[StatusT],
) -> None:
    """Raise NotOwned unless `mover` may change an invocation from `current` to `following`."""
    entered = get_status_definition(following, definitions)
    if current is None or entered.overrides_owner:
        return
    left = get_status_definition(current.status, definitions)
    foreign = left.requires_owner and mover != current.owner
    if foreign or (entered.acquires_owner and not mover):
        raise NotOwned(current.status, following, current.owner, mover)


def compute_new_owner(
    current: OwnedStatus[StatusT] | None,
    following: StatusT,
    mover: str | None,
    definitions: Definitions[StatusT],
) -> str | None:
    """Return the owner of an invocation after `mover` has changed it to `following`."""
    entered = get_status_definition(following, definitions)
    if entered.releases_owner:
        return None
    if entered.acquires_owner:
        return mover
    return None if current is None else current.owner


def status_record_transition(
    current: OwnedStatus[StatusT] | None,
    following: StatusT,
    mover: str | None,
    definitions: Definitions[StatusT],
) -> OwnedStatus[StatusT]:
    """Return the status and owner of an invocation after a change by `mover`.

    :raises InvalidTransition: `following` may not directly follow the current status.
    :raises NotOwned: `mover` may not make this change.
    """
    validate_transition(None if current is None else current.status, following, definitions)
    validate_ownership(current, following, mover, definitions)
    return OwnedStatus(following, compute_new_owner(current, following, mover, definitions))


_S = InvocationStatus


def _after(status: InvocationStatus, *more: InvocationStatus) -> frozenset[InvocationStatus]:
    """Return what may follow an active status: itself, each later step, Cancelled, Failed and `more`."""
    later = {step for step in _S if status < step <= _S.Completed}
    return frozenset({status, *later, _S.Cancelled, _S.Failed, *more})


#: All statuses of an invocation. The transitions are those of the published client.
DEFINITIONS: Definitions[InvocationStatus] = {
    None: StatusDefinition(frozenset({_S.Queued})),
    _S.Queued: StatusDefinition(_after(_S.Queued, _S.Deadly), releases_owner=True, overrides_owner=True),
    _S.Scheduled: StatusDefinition(_after(_S.Scheduled), requires_owner=True, acquires_owner=True),
    _S.Downloading: StatusDefinition(_after(_S.Downloading), requires_owner=True, acquires_owner=True),
    _S.Processing: StatusDefinition(_after(_S.Processing), requires_owner=True, acquires_owner=True),
    _S.Uploading: StatusDefinition(_after(_S.Uploading), requires_owner=True, acquires_owner=True),
    _S.Completed: StatusDefinition(frozenset({_S.Completed}), terminal=True, releases_owner=True),
    _S.Cancelled: StatusDefinition(
        frozenset({_S.Cancelled}), terminal=True, releases_owner=True, overrides_owner=True
    ),
    _S.Failed: StatusDefinition(
        frozenset({_S.Failed, _S.Queued, _S.Deadly}), terminal=True, releases_owner=True, overrides_owner=True
    ),
    _S.Deadly: StatusDefinition(
        frozenset({_S.Deadly}), terminal=True, releases_owner=True, overrides_owner=True
    ),
}
