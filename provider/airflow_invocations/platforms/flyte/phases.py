"""Flyte's phases of an action, and what they are in our vocabulary: one table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ...models import InvocationStatus

_S = InvocationStatus
_PREFIX = "ACTION_PHASE_"


class Phase(NamedTuple):
    """A phase's number in flyteidl2.common.ActionPhase, and the status that it is."""

    number: int
    status: InvocationStatus


#: The whole enum. The numbers are no order: 9 isn't an end, 10 is one.
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
    # It waits for a signal from outside, and goes on after that.
    "PAUSED": Phase(9, _S.Processing),
    # A result of an earlier run stands for this one's.
    "RECOVERED": Phase(10, _S.Completed),
}

#: The numbers of the ends, as a filter wants them.
ENDS = [str(phase.number) for phase in PHASES.values() if phase.status.is_terminal]

#: What is added to the number of a phase that isn't known to have a status that isn't known.
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
    """What an ActionStatus means.

    A phase that isn't known is an end, of a status that isn't known, if it has an end time; else it goes on.
    """
    phase = action_status.get("phase")
    known = PHASES.get(word_of(phase))
    if known is not None:
        return known.status
    if "endTime" not in action_status:
        return _S.Processing
    return InvocationStatus(_UNKNOWN + (phase if isinstance(phase, int) else 0))
