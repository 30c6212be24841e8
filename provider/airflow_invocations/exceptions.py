"""The exceptions of tasks, and the functions that create them from statuses and from lower layers' errors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

from .exit_codes import is_permanent, meaning_of
from .models import InvocationStatus
from .models.text import printable
from .platforms import (
    NotFoundError,
    PermanentError,
    PlatformError,
    RequestConflictError,
    TransientError,
    UnauthorizedError,
)
from .tasks.xcom import MESSAGE_LIMIT, storable_detail, storable_name, storable_tail, storable_token
from .version_compat import AirflowException, AirflowFailException
from .waiters import AbandonReason, WaitAbandoned

if TYPE_CHECKING:
    from .models import InvocationRecord

#: The attributes of an InvocationError.
_FIELDS = ("action", "invocation_id", "status", "detail", "exit_code", "log_tail", "url")


class InvocationError(AirflowException):
    """Base class of the exceptions with which this provider's tasks fail.

        InvocationError
         +-- InvocationFailedError      the action failed
         +-- InvocationTimedOutError    `execution_timeout` or `queue_timeout` passed; it was cancelled
         +-- InvocationLostError        the platform no longer knows the invocation
         +-- PlatformUnavailableError   the platform was unavailable for longer than `outage_limit`
         and, not retried because a retry would not help:
         +-- InvocationPermanentError  (an InvocationFailedError) the action's exit code is 64, 65 or 78
         +-- InvocationCancelledError   the invocation was cancelled
         +-- InvocationDeadlyError      the platform stopped trying to run the invocation
         +-- UnknownStatusError         it ended with a status that this version doesn't know
         +-- RequestRejectedError        the platform rejected the request; nothing was invoked
                  |    +-- InvocationConflictError  an earlier try has invoked the action with another request
         +-- AccessRejectedError         the platform rejected the connection's credentials

    Callbacks find the exception in `context["exception"]`. Its strings are cleaned and cut to the limits in
    docs/reference/exceptions.md, so that Airflow can store them.

    Attributes:
        action: the action's name; None if unknown.
        invocation_id: None if there is no invocation.
        status: the name of the last known status; None if unknown.
        detail: the reason in the platform's words; None if it gave none.
        exit_code: the action's exit code; None if unknown.
        log_tail: the last lines that the action wrote.
        url: the invocation's page; None if it has none.
    """

    def __init__(
        self,
        message: str,
        *,
        action: str | None = None,
        invocation_id: str | None = None,
        status: str | None = None,
        detail: str | None = None,
        exit_code: int | None = None,
        log_tail: list[str] | None = None,
        url: str | None = None,
    ) -> None:
        super().__init__(printable(message, MESSAGE_LIMIT))
        self.action = storable_name(action)
        self.invocation_id = storable_name(invocation_id)
        self.status = storable_name(status)
        self.detail = storable_detail(detail)
        self.exit_code = exit_code
        self.log_tail = storable_tail(log_tail or [])
        self.url = storable_token(url)

    def serialize(self) -> tuple[str, tuple[str], dict[str, Any]]:
        """Return the class path, arguments and keyword arguments from which Airflow recreates the error."""
        cls = type(self)
        return f"{cls.__module__}.{cls.__qualname__}", (str(self),), self._fields()

    def __reduce__(self) -> tuple[Any, ...]:
        return _recreate, (type(self), str(self), self._fields())

    def as_event(self) -> dict[str, Any]:
        """Return the error as JSON for a trigger's event; `error_from_event` reads it."""
        return {"kind": type(self).__name__, "message": str(self), "fields": self._fields()}

    def _fields(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _FIELDS}

    @classmethod
    def of(cls, record: InvocationRecord, url: str, log_tail: list[str], why: str | None = None) -> Self:
        """Return the exception for an ended invocation.

        :param url: the invocation's page; empty if it has none.
        :param log_tail: the last lines that the action wrote.
        :param why: the reason; None for the status and its detail.
        """
        step = record.current
        action = record.provenance.action.name
        code = step.exit_code
        if why is None:
            why = f"{step.status}" + (f": {storable_detail(step.detail)}" if step.detail else "")
            if (meaning := meaning_of(code)) is not None:
                why += f" ({meaning})"
        return cls(
            with_url(f"action {action!r}, invocation {record.invocation_id}: {why}", url),
            action=action,
            invocation_id=record.invocation_id,
            status=step.status.name,
            detail=step.detail,
            exit_code=code,
            log_tail=log_tail,
            url=url,
        )


def _recreate(cls: type[InvocationError], message: str, fields: dict[str, Any]) -> InvocationError:
    return cls(message, **fields)


class InvocationFailedError(InvocationError):
    """The invocation ended as Failed; a retry of the task starts a new invocation.

    Exit code 70 (InternalError) is included: an internal error of the action may not happen again.
    """


class InvocationPermanentError(InvocationFailedError, AirflowFailException):
    """The action failed with an exit code that blames its arguments, its input or its environment.

    64 (UsageError), 65 (DataError), 78 (ConfigurationError). The same invocation would fail again, so the
    task isn't retried.
    """


class InvocationTimedOutError(InvocationError):
    """`execution_timeout` or `queue_timeout` passed before the invocation ended; it was cancelled."""


class InvocationLostError(InvocationError):
    """The platform no longer knows the invocation, after it was asked more than once."""


class PlatformUnavailableError(InvocationError):
    """The platform was unavailable for longer than `outage_limit`. A retry continues with the invocation.

    Also raised when the platform has rejected, for a minute, credentials that it had accepted before.
    """


class InvocationCancelledError(InvocationError, AirflowFailException):
    """The invocation was cancelled deliberately, so the task isn't retried."""


class InvocationDeadlyError(InvocationError, AirflowFailException):
    """The platform stopped trying to run the invocation (status Deadly); the task isn't retried."""


class UnknownStatusError(InvocationError, AirflowFailException):
    """The invocation has a status that this version of the provider doesn't know; the task isn't retried."""


class RequestRejectedError(InvocationError, AirflowFailException):
    """The platform would reject the same request again, so the task isn't retried. Nothing was invoked.

    Also raised for invalid rendered arguments of a task, with all problems in one message.
    """


class InvocationConflictError(RequestRejectedError):
    """An earlier try of the task started an invocation with a different request; the task isn't retried.

    `invocation_id` is that invocation, which keeps running. `detail` names the fields that differ: the
    action, the input, the upload destination, the command, or parameters by name. Values are left out, as
    they may be secrets. Name parameters that change with each try in the operator's `volatile_parameters`.
    """


class AccessRejectedError(InvocationError, AirflowFailException):
    """The platform rejected the connection's credentials; the task isn't retried.

    An invocation that already exists continues: without credentials it can't be cancelled.
    """


_BY_STATUS: dict[InvocationStatus, type[InvocationError] | None] = {
    InvocationStatus.Completed: None,
    InvocationStatus.Failed: InvocationFailedError,
    InvocationStatus.Cancelled: InvocationCancelledError,
    InvocationStatus.Deadly: InvocationDeadlyError,
}
_BY_REASON: dict[AbandonReason, type[InvocationError]] = {
    AbandonReason.TimedOut: InvocationTimedOutError,
    AbandonReason.QueuedTooLong: InvocationTimedOutError,
    AbandonReason.Unreachable: PlatformUnavailableError,
    AbandonReason.Rejected: AccessRejectedError,
    AbandonReason.AccessLost: PlatformUnavailableError,
    AbandonReason.Lost: InvocationLostError,
}

#: The first class that matches decides.
_BY_PLATFORM_ERROR: list[tuple[type[PlatformError], type[InvocationError]]] = [
    (UnauthorizedError, AccessRejectedError),
    (RequestConflictError, InvocationConflictError),
    (NotFoundError, InvocationLostError),
    (PermanentError, RequestRejectedError),
    (TransientError, PlatformUnavailableError),
]


def exception_class_for(record: InvocationRecord) -> type[InvocationError] | None:
    """Return the exception class for an ended invocation; None if it succeeded."""
    status = record.current.status
    if status is InvocationStatus.Failed and is_permanent(record.current.exit_code):
        return InvocationPermanentError
    return _BY_STATUS.get(status, UnknownStatusError)


def raise_unless_completed(record: InvocationRecord, url: str, log_tail: list[str]) -> None:
    """Raise the exception for an ended invocation, unless its status is Completed.

    :param url: the invocation's page; empty if it has none.
    :param log_tail: the last lines that the action wrote.
    :raises InvocationError: the subclass says how the invocation ended.
    """
    kind = exception_class_for(record)
    if kind is not None:
        raise kind.of(record, url, log_tail)


def task_error(abandoned: WaitAbandoned, action: str | None, invocation_id: str, url: str) -> InvocationError:
    """Return the exception for an abandoned wait.

    :param action: the action's name; None if unknown.
    :param url: the invocation's page; empty if it has none.
    """
    what = f"action {action!r}, invocation {invocation_id}" if action else f"invocation {invocation_id}"
    return _BY_REASON[abandoned.reason](
        with_url(f"{what}: {abandoned.detail}", url),
        action=action,
        invocation_id=invocation_id,
        detail=abandoned.detail,
        url=url,
    )


def unconfirmed_cancel_error(invocation_id: str, timeout: float, url: str) -> PlatformUnavailableError:
    """Return the exception for a cancel that the platform didn't confirm within `timeout` seconds."""
    what = f"invocation {invocation_id}: the platform did not confirm the cancel within {timeout:g} s"
    return PlatformUnavailableError(with_url(what, url), invocation_id=invocation_id, url=url)


def with_url(message: str, url: str) -> str:
    """Return a message that ends with a link; the message alone if there is no URL.

    The URL comes last and bare, because viewers would treat a bracket or full stop after it as a part of it.
    """
    return f"{message}: {url}" if url else message


def platform_task_error(
    error: PlatformError,
    what: str,
    *,
    action: str | None = None,
    invocation_id: str | None = None,
    url: str = "",
    hint: str = "",
    kind: type[InvocationError] | None = None,
) -> InvocationError:
    """Return the task's exception for a platform's error. No other function translates them.

    :param what: what failed, for the message.
    :param action: the action of the request; None if unknown.
    :param invocation_id: the invocation of the request. If None, "not found" doesn't mean that an invocation
        is lost.
    :param url: the invocation's page; empty if it has none.
    :param hint: what to do about it, or where it happened; added to the message.
    :param kind: the exception class; None to choose it by the error's class.
    """
    if kind is None:
        kind = next((kind for cause, kind in _BY_PLATFORM_ERROR if isinstance(error, cause)), InvocationError)
        if kind is InvocationLostError and invocation_id is None:
            kind = RequestRejectedError
    detail = None
    if isinstance(error, RequestConflictError):
        invocation_id, detail = error.invocation_id, "; ".join(error.differences)
    message = f"{what}: {error}" + (f"; {hint}" if hint else "")
    return kind(
        with_url(message, url), action=action, invocation_id=invocation_id, detail=detail, url=url or None
    )


def outputs_task_error(error: PlatformError, action: str, invocation_id: str, url: str) -> InvocationError:
    """Return the exception for an invocation that completed, but whose outputs can't be read.

    Whatever the error was, it is retried: the retry continues with the same invocation.
    """
    return platform_task_error(
        error,
        f"action {action!r}, invocation {invocation_id} completed, but its outputs could not be read",
        action=action,
        invocation_id=invocation_id,
        url=url,
        kind=PlatformUnavailableError,
    )


def error_from_event(event: Mapping[str, Any]) -> InvocationError:
    """Recreate, in a worker, the exception that a trigger wrote with `InvocationError.as_event`."""
    kind = globals().get(str(event["kind"]))
    if not (isinstance(kind, type) and issubclass(kind, InvocationError)):
        kind = InvocationError
    return kind(str(event["message"]), **event["fields"])
