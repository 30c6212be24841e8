"""What an action's exit code says about why it ended; imports nothing, as an action's process imports it."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """The exit codes that mean something to the platform; their values are those of BSD's sysexits.

    Running the action again may help after InternalError only: the others say that the call, the data or
    the set-up is wrong.
    """

    #: The action did what it was asked to do.
    Success = 0
    #: The action was called wrongly: a parameter is missing or has a value that it can't have.
    UsageError = 64
    #: The action works, but its input doesn't: the wrong format, cut off, empty.
    DataError = 65
    #: The action itself is at fault.
    InternalError = 70
    #: What is around the action isn't set up as it has to be.
    ConfigurationError = 78


#: What the exit codes say that an action fails with, and whether a retry can mend that.
_MEANINGS: dict[ExitCode, tuple[str, bool]] = {
    ExitCode.UsageError: ("the action was called wrongly", False),
    ExitCode.DataError: ("the action can't use its input", False),
    ExitCode.InternalError: ("the action itself is at fault", True),
    ExitCode.ConfigurationError: ("what is around the action isn't set up", False),
}


def meaning_of(exit_code: int | None) -> str | None:
    """What an exit code says, for a person; None: nothing that is agreed on."""
    if exit_code not in _MEANINGS:
        return None
    code = ExitCode(exit_code)
    meaning, mendable = _MEANINGS[code]
    return f"{code.name}: {meaning}, which a retry {'may' if mendable else 'can not'} mend"


def is_beyond_retry(exit_code: int | None) -> bool:
    """Whether an exit code says that the same invocation would end the same way again."""
    return exit_code in _MEANINGS and not _MEANINGS[ExitCode(exit_code)][1]
