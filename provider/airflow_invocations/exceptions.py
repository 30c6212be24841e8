"""How a task fails: one exception for each reason, and those that a retry can't mend say so to Airflow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

from .exit_codes import is_beyond_retry, meaning_of
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

#: What an InvocationError knows beside its message.
_FIELDS = ("action", "invocation_id", "status", "detail", "exit_code", "log_tail", "url")


class InvocationError(AirflowException):
    """A task that doesn't succeed; every exception of this provider's tasks is one.

        InvocationError
         +-- InvocationFailedError      the action failed
         +-- InvocationTimedOutError    the task's time, or its time in the queue, was over; it was cancelled
         +-- InvocationLostError        the platform doesn't know the invocation any more
         +-- PlatformUnavailableError   the platform was out of reach for longer than `outage_limit`
         and, not retried, as a retry can't mend them:
         +-- InvocationPermanentError  (an InvocationFailedError) the action's exit code says so: 64, 65, 78
         +-- InvocationCancelledError   somebody cancelled the invocation
         +-- InvocationDeadlyError      the platform has given it up
         +-- UnknownStatusError         it ended with a status that this version doesn't know
         +-- RequestRefusedError        the platform refuses the request; nothing was invoked
                  |    +-- InvocationConflictError  an earlier try has invoked the action with another request
         +-- AccessRefusedError         the platform doesn't accept the connection's credentials

    A callback finds it in `context["exception"]`. Its strings are cleaned and cut to the limits in
    docs/reference/exceptions.md, so that Airflow can store them.

    Attributes:
        action: the action's name; None: not known.
        invocation_id: None: there is no invocation.
        status: the name of the status that it had last; None: not known.
        detail: why, in the platform's words; None: it didn't say.
        exit_code: the action's exit code; None: not known.
        log_tail: the last lines that the action wrote.
        url: where to look; None: nowhere.
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
        """Class, arguments and keyword arguments to make it anew from, as Airflow wants them."""
        cls = type(self)
        return f"{cls.__module__}.{cls.__qualname__}", (str(self),), self._fields()

    def __reduce__(self) -> tuple[Any, ...]:
        return _made_anew, (type(self), str(self), self._fields())

    def as_event(self) -> dict[str, Any]:
        """The error as plain JSON, for a trigger's event; `error_from_event` makes it anew."""
        return {"kind": type(self).__name__, "message": str(self), "fields": self._fields()}

    def _fields(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _FIELDS}

    @classmethod
    def of(cls, record: InvocationRecord, url: str, log_tail: list[str], why: str | None = None) -> Self:
        """The exception about an invocation; `why` None: what the platform says of its status."""
        step = record.current
        action = record.provenance.action.name
        code = step.exit_code
        if why is None:
            why = f"{step.status}" + (f": {storable_detail(step.detail)}" if step.detail else "")
            if (meaning := meaning_of(code)) is not None:
                why += f" ({meaning})"
        return cls(
            f"action {action!r}, invocation {record.invocation_id}: {why}{at(url)}",
            action=action,
            invocation_id=record.invocation_id,
            status=step.status.name,
            detail=step.detail,
            exit_code=code,
            log_tail=log_tail,
            url=url,
        )


def _made_anew(cls: type[InvocationError], message: str, fields: dict[str, Any]) -> InvocationError:
    return cls(message, **fields)


class InvocationFailedError(InvocationError):
    """The invocation ended as Failed; Airflow may retry the task, with a new invocation.

    Also after exit code 70 (InternalError): the action itself is at fault, and may do better next time.
    """


class InvocationPermanentError(InvocationFailedError, AirflowFailException):
    """The action failed with an exit code that says: the call, the data or the set-up is wrong.

    64 (UsageError), 65 (DataError), 78 (ConfigurationError). The same invocation would end the same way, so
    the task isn't retried.
    """


class InvocationTimedOutError(InvocationError):
    """The task's time, or its time in the queue, was over before the invocation ended; it was cancelled."""


class InvocationLostError(InvocationError):
    """The platform doesn't know the invocation any more, and was asked more than once."""


class PlatformUnavailableError(InvocationError):
    """The platform was unavailable for longer than `outage_limit`. A retry continues with the invocation.

    Also raised when the platform has rejected, for a minute, credentials that it had accepted before.
    """


class InvocationCancelledError(InvocationError, AirflowFailException):
    """The invocation was cancelled: somebody wanted it to end, so the task isn't retried."""


class InvocationDeadlyError(InvocationError, AirflowFailException):
    """The platform has given the invocation up (Deadly); the task isn't retried."""


class UnknownStatusError(InvocationError, AirflowFailException):
    """The invocation has a status that this version of the provider doesn't know; the task isn't retried."""


class RequestRefusedError(InvocationError, AirflowFailException):
    """The platform would refuse the same request again, so the task isn't retried; nothing was invoked.

    Also what is wrong with a task's arguments once they are rendered, all of it in one message.
    """


class InvocationConflictError(RequestRefusedError):
    """An earlier try of the task started an invocation with a different request; the task isn't retried.

    `invocation_id` is that invocation, which keeps running. `detail` names the fields that differ: the
    action, the input, the upload destination, the command, or parameters by name. Values are left out, as
    they may be secrets. Name parameters that change with each try in the operator's `volatile_parameters`.
    """


class AccessRefusedError(InvocationError, AirflowFailException):
    """The platform doesn't accept the connection's credentials; the task isn't retried.

    If there is an invocation already, it goes on: without credentials it can't be cancelled.
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
    AbandonReason.Refused: AccessRefusedError,
    AbandonReason.AccessLost: PlatformUnavailableError,
    AbandonReason.Lost: InvocationLostError,
}


#: The first that fits decides.
_BY_PLATFORM_ERROR: list[tuple[type[PlatformError], type[InvocationError]]] = [
    (UnauthorizedError, AccessRefusedError),
    (RequestConflictError, InvocationConflictError),
    (NotFoundError, InvocationLostError),
    (PermanentError, RequestRefusedError),
    (TransientError, PlatformUnavailableError),
]


def exception_class_for(record: InvocationRecord) -> type[InvocationError] | None:
    """What the end of an invocation means for the task; None: success. Every path of every task asks this."""
    status = record.current.status
    if status is InvocationStatus.Failed and is_beyond_retry(record.current.exit_code):
        return InvocationPermanentError
    return _BY_STATUS.get(status, UnknownStatusError)


def raise_unless_completed(record: InvocationRecord, url: str, log_tail: list[str]) -> None:
    """Turn an invocation that has ended into the task's verdict: Completed is the only success.

    Raises:
        InvocationError: by the status; which action, which invocation, why, and where to look.
    """
    kind = exception_class_for(record)
    if kind is not None:
        raise kind.of(record, url, log_tail)


def task_error(given_up: WaitAbandoned, action: str | None, invocation_id: str, url: str) -> InvocationError:
    """The exception for a wait that was given up."""
    what = f"action {action!r}, invocation {invocation_id}" if action else f"invocation {invocation_id}"
    return _BY_REASON[given_up.reason](
        f"{what}: {given_up.detail}{at(url)}",
        action=action,
        invocation_id=invocation_id,
        detail=given_up.detail,
        url=url,
    )


def outputs_task_error(
    error: PlatformError, action: str, invocation_id: str, url: str
) -> PlatformUnavailableError:
    """The exception for an invocation that has completed, but whose outputs can't be read."""
    return PlatformUnavailableError(
        f"action {action!r}, invocation {invocation_id} has completed, but what it returned can't be read: "
        f"{error}{at(url)}",
        action=action,
        invocation_id=invocation_id,
        url=url,
    )


def at(url: str) -> str:
    """Return the end of a message that links to a page; empty if there is no page.

    The URL comes last and bare, because viewers would treat a bracket or full stop after it as a part of it.
    """
    return f": {url}" if url else ""


def platform_task_error(
    error: PlatformError, what: str, invocation_id: str | None = None, url: str = ""
) -> InvocationError:
    """Return the public error for a platform's error. This is the only place that translates them.

    :param what: the request, in words for the message.
    :param invocation_id: the invocation of the request. None if it had none; "not found" then doesn't mean
        that an invocation is lost.
    """
    kind = next((kind for cause, kind in _BY_PLATFORM_ERROR if isinstance(error, cause)), InvocationError)
    if kind is InvocationLostError and invocation_id is None:
        kind = RequestRefusedError
    if isinstance(error, RequestConflictError):
        invocation_id = error.invocation_id
    return kind(f"{what}: {error}{at(url)}", invocation_id=invocation_id, url=url or None)


def error_from_event(event: Mapping[str, Any]) -> InvocationError:
    """The exception of a trigger, made anew in a worker from `InvocationError.as_event`."""
    kind = globals().get(str(event["kind"]))
    if not (isinstance(kind, type) and issubclass(kind, InvocationError)):
        kind = InvocationError
    return kind(str(event["message"]), **event["fields"])
