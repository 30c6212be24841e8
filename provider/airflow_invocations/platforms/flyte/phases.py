"""Flyte's phases of an action, and the status of each: one table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ...models import InvocationStatus

_S = InvocationStatus
_PREFIX = "ACTION_PHASE_"


class Phase(NamedTuple):
    """A phase's number in flyteidl2.common.ActionPhase, and its status."""

    number: int
    status: InvocationStatus


#: The whole enum. The numbers aren't in order: 9 is active, 10 is terminal.
PHASES: Mapping[str, Phase] = {
    "UNSPECIFIED": Phase(0, _S.Queued),
    "QUEUED": Phase(1, _S.Queued),
    # Flyte counts this as time in the queue, too (TimeoutStrategy.queued_timeout).
    "WAITING_FOR_RESOURCES": Phase(2, _S.Queued),
    "INITIALIZING": Phase(3, _S.Scheduled),
    "RUNNING": Phase(4, _S.Processing),
    "SUCCEEDED": Phase(5, _S.Completed),
    "FAILED": Phase(6, _S.Failed),
    "ABORTED": Phase(7, _S.Cancelled),
    "TIMED_OUT": Phase(8, _S.Failed),
    # It waits for an external signal, and then continues.
    "PAUSED": Phase(9, _S.Processing),
    # It has the result of an earlier run.
    "RECOVERED": Phase(10, _S.Completed),
}

#: The numbers of the terminal phases, as texts for a filter.
ENDS = [str(phase.number) for phase in PHASES.values() if phase.status.is_terminal]

#: The numbers of the active phases.
ACTIVE = [str(phase.number) for phase in PHASES.values() if not phase.status.is_terminal]

#: Added to the number of an unknown phase, which gives an unknown status.
_UNKNOWN = 1000


def word_of(phase: str | int | None) -> str:
    """Return Flyte's own word for a phase, as JSON has it: a name, a number without one here, or left out.

    :raises TypeError: it is of another type.
    """
    if phase is None:
        return "UNSPECIFIED"
    if isinstance(phase, int):
        return next(
            (word for word, known in PHASES.items() if known.number == phase), f"unknown phase {phase}"
        )
    if not isinstance(phase, str):
        raise TypeError(f"a phase is a name or a number, not {type(phase).__name__}")
    return phase.removeprefix(_PREFIX)


def status_of(action_status: Mapping[str, Any]) -> InvocationStatus:
    """Return the status of an ActionStatus.

    An unknown phase is terminal, with an unknown status, if it has an end time; else it is active.
    """
    phase = action_status.get("phase")
    known = PHASES.get(word_of(phase))
    if known is not None:
        return known.status
    if "endTime" not in action_status:
        return _S.Processing
    return InvocationStatus(_UNKNOWN + (phase if isinstance(phase, int) else 0))
