"""What every platform that runs actions can be asked, and how it says no."""

from __future__ import annotations

import random
from typing import Protocol

from ..model import ActionRecord, InvocationRecord, InvocationRequest, LogPage


def backoff(attempt: int, base: float = 0.5, cap: float = 30.0) -> float:
    """Seconds to wait after try number `attempt` (from 0): full jitter, growing from `base` to `cap`.

    The defaults are those of the platform's own client (facts: Transport).
    """
    return random.uniform(0, min(cap, base * 2 ** min(attempt, 30)))  # noqa: S311


class PlatformError(Exception):
    """Something went wrong between us and the platform. The tree:

    PlatformError
     +-- TransientError           try again, keep waiting: it says nothing about the invocation
     |    +-- UnavailableError    no connection, a timeout, a 5xx, an answer that is none
     |    +-- RateLimitedError    429
     +-- PermanentError           the same request would be refused again
          +-- UnauthorizedError   401
          +-- NotFoundError       404
          +-- InvalidRequestError 400, 413, and what is refused before it is sent
          +-- ConflictError       409
          +-- LimitExceededError  403
          +-- UnsupportedError    501

    Which one it is follows from status and error code, never from a message's text.
    """


class TransientError(PlatformError):
    """It may well work later."""


class UnavailableError(TransientError):
    """The platform didn't answer, or not with anything that can be read."""


class RateLimitedError(TransientError):
    """The platform asks for fewer requests."""


class PermanentError(PlatformError):
    """It would be refused again."""


class UnauthorizedError(PermanentError):
    """The token is missing, unknown or may not do this."""


class NotFoundError(PermanentError):
    """Nothing of that name or id, or nothing that this token may see."""


class InvalidRequestError(PermanentError):
    """The request is wrong; the message says what and where."""


class ConflictError(PermanentError):
    """Something is there already that can't be there twice."""


class LimitExceededError(PermanentError):
    """The organisation's quota doesn't allow it."""


class UnsupportedError(PermanentError):
    """This platform can't do that."""


class InvocationPlatform(Protocol):
    """A system that runs actions, seen from a DAG. Every method may raise a PlatformError."""

    async def check(self) -> str:
        """Ask the cheapest thing that needs the token; a sentence about who answered."""

    async def get_action(self, name: str) -> ActionRecord:
        """An action in its newest version."""

    async def invoke(self, action: str, request: InvocationRequest) -> InvocationRecord:
        """Start an invocation; the one that has the request's `idempotency_id`, if there is one already."""

    async def get(self, invocation_id: str) -> InvocationRecord:
        """An invocation with its history."""

    async def logs(self, invocation_id: str, cursor: str | None = None) -> LogPage:
        """Log lines from `cursor` (None: the beginning) on; `last_read` of the page is the next cursor."""

    async def cancel(self, invocation_id: str) -> None:
        """Ask for an invocation to be cancelled; one that has ended stays as it is."""
