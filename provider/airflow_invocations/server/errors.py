"""Errors of the API: a class for each error code, with its HTTP status."""

from __future__ import annotations

from typing import Any, ClassVar


class ApiError(Exception):
    """An error response: `{"error": {"error_code": ..., "message": ...}}`."""

    code: ClassVar[str] = "RobotoInternalException"
    status: ClassVar[int] = 500

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def body(self) -> dict[str, Any]:
        """Return the error envelope."""
        return {"error": {"error_code": self.code, "message": self.message}}


class UnauthorizedError(ApiError):
    """No token, or an unknown one."""

    code = "RobotoUnauthorizedException"
    status = 401


class ForbiddenError(ApiError):
    """The token's role doesn't permit the request."""

    code = "RobotoUnauthorizedException"
    status = 403


class NotFoundError(ApiError):
    """No resource of that name or id."""

    code = "RobotoNotFoundException"
    status = 404


class UnknownOperationError(ApiError):
    """No operation of that path and method."""

    code = "RobotoUnknownOperationException"
    status = 404


class InvalidRequestError(ApiError):
    """The request is malformed or invalid."""

    code = "RobotoInvalidRequestException"
    status = 400


class RangeError(InvalidRequestError):
    """The requested range has no byte of the content.

    :param size: bytes of the content.
    """

    status = 416

    def __init__(self, message: str, size: int) -> None:
        super().__init__(message)
        self.size = size


class InvalidStateTransitionError(ApiError):
    """The new status may not follow the current one."""

    code = "RobotoInvalidStateTransitionException"
    status = 400


class ConflictError(ApiError):
    """A resource of that name or id exists."""

    code = "RobotoConflictException"
    status = 409


class ConditionError(ApiError):
    """The caller doesn't own the invocation."""

    code = "RobotoConditionException"
    status = 409


class UnsupportedError(ApiError):
    """A feature of the platform that this server doesn't support."""

    code = "RobotoNotImplementedException"
    status = 501


class UnavailableError(ApiError):
    """The server is temporarily unavailable, for example because its disk is full; a retry may succeed."""

    code = "RobotoServiceUnavailableException"
    status = 503
