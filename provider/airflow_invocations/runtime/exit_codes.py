"""What an action's exit code says about why it ended."""

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
