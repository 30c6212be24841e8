"""The errors that a platform raises: one tree, which says whether a retry can help."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..models.text import printable

if TYPE_CHECKING:
    from ..models import InvocationRecord

#: Characters of a PlatformError's message.
MESSAGE_LIMIT = 2_000


class PlatformError(Exception):
    """A request to a platform failed.

    The tree:

        PlatformError
         +-- TransientError           a retry can help; it says nothing about the invocation
         |    +-- UnavailableError    no connection, timeout, 5xx, or unreadable response
         |    +-- RateLimitedError    429
         +-- PermanentError           the platform would reject the same request again
              +-- UnauthorizedError   401
              +-- NotFoundError       404
              +-- InvalidRequestError 400, 413, and requests that are rejected before they are sent
              +-- ConflictError       409
              |    +-- RepeatedIdError            the idempotency id has an invocation: compare requests
              |    +-- RequestConflictError       the idempotency id has an invocation of another request
              +-- LimitExceededError  403
              +-- UnsupportedError    501
              +-- CannotStopError     a running invocation can't be stopped from outside

    The status and error code decide the class, never the text of a message. The message may quote the
    platform, so it is cut to MESSAGE_LIMIT characters and has no control characters.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(printable(str(message), MESSAGE_LIMIT))


class TransientError(PlatformError):
    """A retry can help.

    Attributes:
        retry_after: seconds to wait before the retry, as the platform asks; None: it doesn't say.
    """

    retry_after: float | None = None


class UnavailableError(TransientError):
    """The platform sent no response, or an unreadable one."""


class RateLimitedError(TransientError):
    """The platform asks for fewer requests."""


class PermanentError(PlatformError):
    """The platform would reject the same request again."""


class UnauthorizedError(PermanentError):
    """The token is missing, unknown, or not allowed to do this."""


class NotFoundError(PermanentError):
    """There is nothing with that name or id, or nothing that this token may see."""


class InvalidRequestError(PermanentError):
    """The request is wrong; the message says what and where."""


class ConflictError(PermanentError):
    """The request conflicts with something that exists."""


class RepeatedIdError(ConflictError):
    """The idempotency id belongs to an invocation whose request has to be compared.

    Attributes:
        record: the invocation that has the id.
    """

    def __init__(self, message: str, record: InvocationRecord) -> None:
        super().__init__(message)
        self.record = record


class RequestConflictError(ConflictError):
    """The idempotency id belongs to an invocation with a different request.

    Attributes:
        invocation_id: the invocation that has the id.
        differences: the fields that differ, such as "parameter 'speed' (another value)"; no values.
    """

    def __init__(self, invocation_id: str, differences: Sequence[str]) -> None:
        super().__init__(f"invocation {invocation_id} has a different request: {'; '.join(differences)}")
        self.invocation_id = invocation_id
        self.differences = list(differences)


class LimitExceededError(PermanentError):
    """The organisation's quota doesn't allow the request."""


class UnsupportedError(PermanentError):
    """This platform doesn't support the request."""


class CannotStopError(PermanentError):
    """The platform can't stop a running invocation; the message says how it was asked to stop."""
