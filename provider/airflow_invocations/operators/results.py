"""What a task leaves of an invocation: a small dict that fits an XCom."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..model import InvocationStatus

if TYPE_CHECKING:
    from ..model import DagRunProvenance, InvocationRecord

#: The XCom that holds the invocation's id from the moment it exists.
INVOCATION_ID_KEY = "invocation_id"


def result_of(
    record: InvocationRecord, url: str, provenance: DagRunProvenance | None, outputs: Any = None
) -> dict[str, Any]:
    """An invocation as a task's result.

    invocation_id, action, digest, status, created, started, ended (ISO 8601, UTC; None: never), duration
    (seconds), outputs (None: the platform keeps none), url, provenance (None: nobody of Airflow's asked).
    """
    step = record.current
    started = record.reached(InvocationStatus.Processing)
    return {
        "invocation_id": record.invocation_id,
        "action": record.provenance.action.name,
        "digest": record.provenance.action.digest,
        "status": step.status.name,
        "created": record.created.isoformat(),
        "started": started.isoformat() if started else None,
        "ended": step.timestamp.isoformat() if step.status.is_terminal else None,
        "duration": record.duration.total_seconds(),
        "outputs": outputs,
        "url": url,
        "provenance": provenance.model_dump(mode="json", exclude_none=True) if provenance else None,
    }
