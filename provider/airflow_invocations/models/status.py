"""The rules of an invocation's life, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Annotated, Generic, TypeVar

import pydantic


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

    @classmethod
    def _missing_(cls, value: object) -> InvocationStatus | None:
        """A number that isn't known, as a newer platform may answer it, under a name that says so."""
        if type(value) is not int:
            return None
        unknown = int.__new__(cls, value)
        unknown._name_ = f"unknown status {value}"
        unknown._value_ = value
        return unknown

    @property
    def is_known(self) -> bool:
        """Whether it is one of those above."""
        return self in DEFINITIONS

    @property
    def is_terminal(self) -> bool:
        """Whether nothing more happens by itself: Completed, Cancelled, Failed or Deadly.

        A status that isn't known counts as terminal: nobody should wait for ever on what they can't read.
        """
        return not self.is_known or DEFINITIONS[self].terminal

    @property
    def is_running(self) -> bool:
        """Whether the action's own work is under way: Downloading, Processing or Uploading."""
        return InvocationStatus.Downloading <= self <= InvocationStatus.Uploading


def _require_known(status: InvocationStatus) -> InvocationStatus:
    if not status.is_known:
        raise ValueError(
            f"{status}; allowed: {', '.join(f'{one.value} ({one})' for one in InvocationStatus)}"
        )
    return status


#: A status in what a platform is asked for: one that there is.
KnownStatus = Annotated[InvocationStatus, pydantic.AfterValidator(_require_known)]

StatusT = TypeVar("StatusT", bound=Enum)


@dataclass(frozen=True, slots=True)
class StatusDefinition(Generic[StatusT]):
    """What may follow a status, and who may decide it."""

    #: Statuses that may come right after this one.
    allowed: frozenset[StatusT] = frozenset()
    #: Nothing more happens by itself.
    terminal: bool = False
    #: While an invocation is in this status, only its owner may move it on.
    requires_owner: bool = False
    #: Entering it makes whoever moves the invocation its owner.
    acquires_owner: bool = False
    #: Entering it leaves the invocation without an owner.
    releases_owner: bool = False
    #: It may be entered whoever owns the invocation: a cancel, a recovery.
    overrides_owner: bool = False


#: Definitions by status; under None, what a new invocation may begin with.
Definitions = Mapping[StatusT | None, StatusDefinition[StatusT]]


@dataclass(frozen=True, slots=True)
class OwnedStatus(Generic[StatusT]):
    """A status, and the owner of the invocation that is in it (None: nobody)."""

    status: StatusT
    owner: str | None = None


class InvalidTransition(ValueError):
    """A status that may not come right after the current one.

    Attributes:
        current: the status the invocation is in; None: it is new.
        following: the status that was asked for.
        allowed: what may follow `current`.
    """

    def __init__(self, current: Enum | None, following: Enum, allowed: frozenset[Enum]) -> None:
        self.current = current
        self.following = following
        self.allowed = allowed
        names = ", ".join(sorted(status.name for status in allowed - {current})) or "nothing: it is final"
        what = "a new invocation" if current is None else f"an invocation that is {current.name}"
        super().__init__(f"{what} can't become {following.name}; allowed: {names}")


class NotOwned(ValueError):
    """A move that somebody other than the invocation's owner asked for.

    Attributes:
        current: the status the invocation is in.
        following: the status that was asked for.
        owner: who owns the invocation; None: nobody.
        mover: who asked; None: nobody in particular.
    """

    def __init__(self, current: Enum, following: Enum, owner: str | None, mover: str | None) -> None:
        self.current = current
        self.following = following
        self.owner = owner
        self.mover = mover
        super().__init__(
            f"{mover or 'nobody in particular'} can't move an invocation of {owner or 'nobody'} "
            f"from {current.name} to {following.name}"
        )


def get_status_definition(
    status: StatusT | None, definitions: Definitions[StatusT]
) -> StatusDefinition[StatusT]:
    """What the table says of a status; of None: what a new invocation may begin with."""
    return definitions[status]


def validate_transition(
    current: StatusT | None, following: StatusT, definitions: Definitions[StatusT]
) -> None:
    """Raise InvalidTransition unless `following` may come right after `current`."""
    allowed = get_status_definition(current, definitions).allowed
    if following not in allowed:
        raise InvalidTransition(current, following, frozenset(allowed))


def validate_ownership(
    current: OwnedStatus[StatusT] | None,
    following: StatusT,
    mover: str | None,
    definitions: Definitions[StatusT],
) -> None:
    """Raise NotOwned unless `mover` may move an invocation that is `current` to `following`."""
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
    """Who owns an invocation once `mover` has moved it to `following`."""
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
    """Move an invocation on: its new status and owner.

    Raises:
        InvalidTransition: `following` may not come right after the current status.
        NotOwned: `mover` may not move it.
    """
    validate_transition(None if current is None else current.status, following, definitions)
    validate_ownership(current, following, mover, definitions)
    return OwnedStatus(following, compute_new_owner(current, following, mover, definitions))


_S = InvocationStatus


def _after(status: InvocationStatus, *more: InvocationStatus) -> frozenset[InvocationStatus]:
    """What may follow an unfinished status: itself, every later step, and the ends that come from outside."""
    later = {step for step in _S if status < step <= _S.Completed}
    return frozenset({status, *later, _S.Cancelled, _S.Failed, *more})


#: The whole life of an invocation. The transitions are those of the published client.
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
