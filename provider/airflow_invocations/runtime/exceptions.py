"""Exceptions of the action runtime."""

from __future__ import annotations

from ..exit_codes import ExitCode


class ActionRuntimeException(Exception):
    """The runtime of an action is incomplete or can't be read.

    The tree:

        ActionRuntimeException
         +-- PrepareEnvException       an invocation's environment can't be prepared
         +-- PlatformError             a call of the platform's API failed
              +-- PlatformRejected      the platform would reject the same call again
              |    +-- PlatformNotFound    unknown id or path, or not visible to this token
              +-- PlatformUnavailable  no connection, timeout, 5xx, or unreadable response

    A retry can help for PlatformUnavailable only.
    """


class PrepareEnvException(ActionRuntimeException):
    """An invocation's environment can't be prepared, so its action isn't started.

    Attributes:
        exit_code: exit code of the invocation, as if the action itself had returned it.
        reason: explanation for the reader of the log.
    """

    def __init__(self, exit_code: ExitCode, reason: str) -> None:
        super().__init__(exit_code, reason)
        self.exit_code = exit_code
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.reason} (exit code {int(self.exit_code)}, {self.exit_code.name})"


class SecretNotSetError(LookupError):
    """A secret isn't set; the message says how to set it."""


class PlatformError(ActionRuntimeException):
    """A call of the platform's API failed."""


class PlatformRejected(PlatformError):
    """The platform rejected a call; the message has the reason."""


class PlatformNotFound(PlatformRejected):
    """The id or path is unknown, or not visible to this token."""


class PlatformUnavailable(PlatformError):
    """The platform didn't respond, or its response can't be read. A retry can help."""
