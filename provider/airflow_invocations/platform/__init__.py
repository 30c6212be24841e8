"""One room for each system that runs actions, all behind one protocol."""

from .base import (
    ConflictError,
    InvalidRequestError,
    InvocationPlatform,
    LimitExceededError,
    NotFoundError,
    PermanentError,
    PlatformError,
    RateLimitedError,
    TransientError,
    UnauthorizedError,
    UnavailableError,
    UnsupportedError,
    backoff,
)

__all__ = [
    "ConflictError",
    "InvalidRequestError",
    "InvocationPlatform",
    "LimitExceededError",
    "NotFoundError",
    "PermanentError",
    "PlatformError",
    "RateLimitedError",
    "TransientError",
    "UnauthorizedError",
    "UnavailableError",
    "UnsupportedError",
    "backoff",
]
