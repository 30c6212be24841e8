"""How a task fails: one exception for each reason, and those that a retry can't mend say so to Airflow."""

from __future__ import annotations

import re
from typing import Any, Self

from airflow.sdk.exceptions import AirflowException, AirflowFailException

from .model import InvocationRecord, InvocationStatus
from .waiting import GivenUp, Reason

#: What an InvocationError knows beside its message.
_FIELDS = ("action", "invocation_id", "status", "detail", "exit_code", "log_tail", "url")

#: How the local service begins the detail of what has failed by its exit code.
_EXIT_CODE = re.compile(r"exit code (\d+)\b")


class InvocationError(AirflowException):
    """A task that doesn't succeed; every exception of this provider's tasks is one.

    InvocationError
     +-- InvocationFailedError      the action failed
     +-- InvocationTimedOutError    the task's time, or its time in the queue, was over; it was cancelled
     +-- InvocationLostError        the platform doesn't know the invocation any more
     +-- PlatformUnavailableError   the platform was out of reach for longer than `outage_limit`
     and, not retried, as a retry can't mend them:
     +-- InvocationCancelledError   somebody cancelled the invocation
     +-- InvocationDeadlyError      the platform has given it up
     +-- UnknownStatusError         it ended with a status that this version doesn't know
     +-- RequestRefusedError        the platform refuses the request; nothing was invoked
     +-- AccessRefusedError         the platform doesn't accept the connection's credentials

    A callback finds it in `context["exception"]`.

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
        super().__init__(message)
        self.action = action
        self.invocation_id = invocation_id
        self.status = status
        self.detail = detail
        self.exit_code = exit_code
        self.log_tail = log_tail or []
        self.url = url

    def serialize(self) -> tuple[str, tuple[str], dict[str, Any]]:
        """Class, arguments and keyword arguments to make it anew from, as Airflow wants them."""
        cls = type(self)
        return f"{cls.__module__}.{cls.__qualname__}", (str(self),), self._fields()

    def __reduce__(self) -> tuple[Any, ...]:
        return _made_anew, (type(self), str(self), self._fields())

    def _fields(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _FIELDS}

    @classmethod
    def of(cls, record: InvocationRecord, url: str, log_tail: list[str], why: str | None = None) -> Self:
        """The exception about an invocation; `why` None: what the platform says of its status."""
        step = record.current
        action = record.provenance.action.name
        why = why or f"{step.status}" + (f": {step.detail}" if step.detail else "")
        code = _EXIT_CODE.match(step.detail or "")
        return cls(
            f"action {action!r}, invocation {record.invocation_id}: {why} ({url})",
            action=action,
            invocation_id=record.invocation_id,
            status=step.status.name,
            detail=step.detail,
            exit_code=int(code[1]) if code else None,
            log_tail=log_tail,
            url=url,
        )


def _made_anew(cls: type[InvocationError], message: str, fields: dict[str, Any]) -> InvocationError:
    return cls(message, **fields)


class InvocationFailedError(InvocationError):
    """The invocation ended as Failed; Airflow may retry the task, with a new invocation."""


class InvocationTimedOutError(InvocationError):
    """The task's time, or its time in the queue, was over before the invocation ended; it was cancelled."""


class InvocationLostError(InvocationError):
    """The platform doesn't know the invocation any more, and was asked more than once."""


class PlatformUnavailableError(InvocationError):
    """The platform was out of reach for longer than `outage_limit`. A retry goes on with the invocation."""


class InvocationCancelledError(InvocationError, AirflowFailException):
    """The invocation was cancelled: somebody wanted it to end, so the task isn't retried."""


class InvocationDeadlyError(InvocationError, AirflowFailException):
    """The platform has given the invocation up (Deadly); the task isn't retried."""


class UnknownStatusError(InvocationError, AirflowFailException):
    """The invocation has a status that this version of the provider doesn't know; the task isn't retried."""


class RequestRefusedError(InvocationError, AirflowFailException):
    """The platform would refuse the same request again, so the task isn't retried; nothing was invoked."""


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
_BY_REASON: dict[Reason, type[InvocationError]] = {
    Reason.TimedOut: InvocationTimedOutError,
    Reason.QueuedTooLong: InvocationTimedOutError,
    Reason.Unreachable: PlatformUnavailableError,
    Reason.Refused: AccessRefusedError,
    Reason.Lost: InvocationLostError,
}


def verdict_on(status: InvocationStatus) -> type[InvocationError] | None:
    """What a terminal status means for the task; None: success. Every path of every operator asks this."""
    return _BY_STATUS.get(status, UnknownStatusError)


def raise_unless_completed(record: InvocationRecord, url: str, log_tail: list[str]) -> None:
    """Turn an invocation that has ended into the task's verdict: Completed is the only success.

    Raises:
        InvocationError: by the status; which action, which invocation, why, and where to look.
    """
    kind = verdict_on(record.current.status)
    if kind is not None:
        raise kind.of(record, url, log_tail)


def error_of(given_up: GivenUp, action: str | None, invocation_id: str, url: str) -> InvocationError:
    """The exception for a wait that was given up."""
    what = f"action {action!r}, invocation {invocation_id}" if action else f"invocation {invocation_id}"
    return _BY_REASON[given_up.reason](
        f"{what}: {given_up.detail} ({url})",
        action=action,
        invocation_id=invocation_id,
        detail=given_up.detail,
        url=url,
    )
