"""What can go wrong in an action's own process, and before it starts."""

from __future__ import annotations

from ..exit_codes import ExitCode


class ActionRuntimeException(Exception):
    """Something of the runtime isn't there or can't be read. The tree:

        ActionRuntimeException
         +-- PrepareEnvException       an invocation's environment can't be made
         +-- PlatformError             a call of the platform's API failed
              +-- PlatformRefused      it would be refused again
              |    +-- PlatformNotFound    there is nothing of that id or path, or nothing we may see
              +-- PlatformUnavailable  no answer, or none that can be read: it may work later

    Only a PlatformUnavailable may go away by itself.
    """


class PrepareEnvException(ActionRuntimeException):
    """An invocation's environment can't be made, so its action isn't started.

    Attributes:
        exit_code: what the invocation ends with, as if the action itself had ended with it.
        reason: why, for a person.
    """

    def __init__(self, exit_code: ExitCode, reason: str) -> None:
        super().__init__(exit_code, reason)
        self.exit_code = exit_code
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.reason} (exit code {int(self.exit_code)}, {self.exit_code.name})"


class SecretNotSetError(LookupError):
    """There is no secret of a name; the message says how to set it."""


class PlatformError(ActionRuntimeException):
    """A call of the platform's API failed."""


class PlatformRefused(PlatformError):
    """The platform understood the call and said no; the message says to what."""


class PlatformNotFound(PlatformRefused):
    """There is nothing of that id or path, or nothing that this token may see."""


class PlatformUnavailable(PlatformError):
    """The platform didn't answer, or not with anything that can be read."""
