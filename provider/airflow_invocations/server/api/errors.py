"""The API's errors: one class an error code, each with its status."""

from __future__ import annotations

from typing import Any, ClassVar


class ApiError(Exception):
    """An answer that isn't the one asked for: `{"error": {"error_code": ..., "message": ...}}`."""

    code: ClassVar[str] = "RobotoInternalException"
    status: ClassVar[int] = 500

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def body(self) -> dict[str, Any]:
        """The error envelope."""
        return {"error": {"error_code": self.code, "message": self.message}}


class UnauthorizedError(ApiError):
    """No token, or one that isn't known."""

    code = "RobotoUnauthorizedException"
    status = 401


class ForbiddenError(ApiError):
    """A token that is known and may not do this."""

    code = "RobotoUnauthorizedException"
    status = 403


class NotFoundError(ApiError):
    """Nothing of that name or id."""

    code = "RobotoNotFoundException"
    status = 404


class InvalidRequestError(ApiError):
    """A request that is malformed, or asks for something that can't be done."""

    code = "RobotoInvalidRequestException"
    status = 400


class InvalidStateTransitionError(ApiError):
    """A status that may not follow the current one."""

    code = "RobotoInvalidStateTransitionException"
    status = 400


class ConflictError(ApiError):
    """Something of that name or id is there already."""

    code = "RobotoConflictException"
    status = 409


class ConditionError(ApiError):
    """The invocation isn't the caller's to move."""

    code = "RobotoConditionException"
    status = 409


class UnsupportedError(ApiError):
    """Something that the platform does and this server doesn't."""

    code = "RobotoNotImplementedException"
    status = 501


class UnavailableError(ApiError):
    """Something that the server needs cannot be had for now, such as a disk; it may work later."""

    code = "RobotoServiceUnavailableException"
    status = 503
