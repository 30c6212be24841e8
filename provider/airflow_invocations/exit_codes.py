"""The exit codes of actions and their meanings. Imports nothing, because action processes import it."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes that have a meaning on the platform, with the values of BSD's sysexits.

    A retry may help after InternalError only. The other codes report wrong arguments, input or environment.
    """

    #: The action succeeded.
    Success = 0
    #: A parameter is missing or has an invalid value.
    UsageError = 64
    #: The input is unusable: it has the wrong format, is truncated or is empty.
    DataError = 65
    #: The action itself has a defect.
    InternalError = 70
    #: The action's environment is not configured as it has to be.
    ConfigurationError = 78


#: For each exit code of a failure: what it means, and whether a retry can help.
_MEANINGS: dict[ExitCode, tuple[str, bool]] = {
    ExitCode.UsageError: ("the action was called with invalid arguments", False),
    ExitCode.DataError: ("the action can't use its input", False),
    ExitCode.InternalError: ("the action has an internal error", True),
    ExitCode.ConfigurationError: ("the action's environment is not configured", False),
}


def meaning_of(exit_code: int | None) -> str | None:
    """Return the meaning of an exit code for an error message; None if it has none."""
    if exit_code not in _MEANINGS:
        return None
    code = ExitCode(exit_code)
    meaning, is_retryable = _MEANINGS[code]
    return f"{code.name}: {meaning}; a retry {'may' if is_retryable else 'will not'} help"


def is_permanent(exit_code: int | None) -> bool:
    """Return whether an exit code means that the same invocation would fail again."""
    return exit_code in _MEANINGS and not _MEANINGS[ExitCode(exit_code)][1]
