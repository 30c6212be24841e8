"""A Flyte 2 for tests: the official service definitions over a state that behaves as the Go source does."""

from .server import Client, FlyteServer
from .state import (
    DOMAIN,
    FAILED,
    PROJECT,
    QUEUED,
    RUNNING,
    SUCCEEDED,
    Backend,
    Pod,
    SimpleType,
    TaskError,
    literal,
)

__all__ = [
    "DOMAIN",
    "FAILED",
    "PROJECT",
    "QUEUED",
    "RUNNING",
    "SUCCEEDED",
    "Backend",
    "Client",
    "FlyteServer",
    "Pod",
    "SimpleType",
    "TaskError",
    "literal",
]
