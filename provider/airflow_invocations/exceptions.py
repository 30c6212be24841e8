"""How a task fails: one exception for each reason, and those that a retry can't mend say so to Airflow."""

from __future__ import annotations

from airflow.sdk.exceptions import AirflowException, AirflowFailException

from .model import InvocationRecord, InvocationStatus


class InvocationFailedError(AirflowException):
    """The invocation ended as Failed; Airflow may retry the task."""


class InvocationCancelledError(AirflowFailException):
    """The invocation was cancelled: somebody wanted it to end, so the task isn't retried."""


class InvocationDeadlyError(AirflowFailException):
    """The platform has given the invocation up (Deadly); the task isn't retried."""


class RequestRefusedError(AirflowFailException):
    """The platform would refuse the same request again, so the task isn't retried; nothing was invoked."""


_BY_STATUS: dict[InvocationStatus, type[AirflowException]] = {
    InvocationStatus.Failed: InvocationFailedError,
    InvocationStatus.Cancelled: InvocationCancelledError,
    InvocationStatus.Deadly: InvocationDeadlyError,
}


def raise_unless_completed(record: InvocationRecord, url: str) -> None:
    """Turn a terminal status into the task's verdict: Completed is the only success.

    Raises:
        InvocationFailedError, InvocationCancelledError, InvocationDeadlyError: by the status; each says
            which action, which invocation, why, and where to look.
    """
    step = record.current
    if step.status is InvocationStatus.Completed:
        return
    why = f": {step.detail}" if step.detail else ""
    what = f"action {record.provenance.action.name!r}, invocation {record.invocation_id}"
    raise _BY_STATUS.get(step.status, InvocationFailedError)(f"{what}: {step.status}{why} ({url})")
