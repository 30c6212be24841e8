"""One package for each system that runs actions; all of them are a `Platform`."""

from .base import (
    Capabilities,
    EventStream,
    Platform,
    Watch,
)
from .errors import (
    CannotStopError,
    ConflictError,
    InvalidRequestError,
    LimitExceededError,
    NotFoundError,
    PermanentError,
    PlatformError,
    RateLimitedError,
    RepeatedIdError,
    RequestConflictError,
    TransientError,
    UnauthorizedError,
    UnavailableError,
    UnsupportedError,
)

__all__ = [
    "CannotStopError",
    "Capabilities",
    "ConflictError",
    "EventStream",
    "InvalidRequestError",
    "LimitExceededError",
    "NotFoundError",
    "PermanentError",
    "Platform",
    "PlatformError",
    "RateLimitedError",
    "RepeatedIdError",
    "RequestConflictError",
    "TransientError",
    "UnauthorizedError",
    "UnavailableError",
    "UnsupportedError",
    "Watch",
]
