"""The result of a task and its other XComs."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, cast

from ..exceptions import with_url
from .idempotency import started_by_earlier_try
from .xcom import DEPTH_LIMIT, OUTPUTS_LIMIT, is_too_large, storable, storable_name, storable_token

if TYPE_CHECKING:
    from ..models import DagRunProvenance, InvocationRecord

#: The XCom with the invocation's id, from the moment it exists.
INVOCATION_ID_KEY = "invocation_id"

#: The XCom with the number of the last try that handled the invocation.
TRY_KEY = "invocation_try"

#: The XCom by which a triggerer passes its number of the incarnation, with the try, to a worker that takes
#: over the same try; that of the first try is always 0.
INCARNATION_KEY = "invocation_incarnation"

#: The XComs from which Airflow's API reads the links to an invocation and to its log.
URL_KEY = "_link_InvocationLink"
LOGS_URL_KEY = "_link_InvocationLogsLink"

_log = logging.getLogger(__name__)


def invoked_line(action: str, record: InvocationRecord, try_number: int, url: str) -> str:
    """Return the log line that names the invocation that the task started or continues with."""
    who = "An earlier try invoked" if started_by_earlier_try(record, try_number) else "Invoked"
    return with_url(f"{who} {action} as {record.invocation_id}", url)


def result_of(
    record: InvocationRecord, url: str, provenance: DagRunProvenance | None, outputs: Any = None
) -> dict[str, Any]:
    """Return the result of a task with an invocation, which fits an XCom.

    `started` is when the last attempt began to run. Times are in ISO 8601 and UTC, None if there is none yet.
    `duration` is in seconds from started to ended, `queued` in seconds from created to started. `tasks.xcom`
    replaces values that Airflow can't store.

    :param provenance: None if Airflow did not start the invocation.
    :param outputs: what the action returned; None if the platform keeps no outputs.
    """
    step = record.current
    started, ended = record.started_at, record.ended_at
    result = {
        "invocation_id": storable_name(record.invocation_id),
        "action": storable_name(record.provenance.action.name),
        "digest": storable_name(record.provenance.action.digest),
        "status": step.status.name,
        "created": record.created.isoformat(),
        "started": started.isoformat() if started else None,
        "ended": ended.isoformat() if ended else None,
        "duration": record.ran_for.total_seconds() if record.ran_for is not None else None,
        "queued": record.queued_for.total_seconds() if record.queued_for is not None else None,
        "outputs": _outputs_that_fit(record, outputs),
        "url": storable_token(url) or "",
        "provenance": provenance.model_dump(mode="json", exclude_none=True) if provenance else None,
    }
    return cast("dict[str, Any]", storable(result))


def _outputs_that_fit(record: InvocationRecord, outputs: Any) -> Any:
    if not is_too_large(outputs):
        return outputs
    _log.warning(
        "The result does not contain the outputs of invocation %s: they have more than %s characters and "
        "values, or more than %s levels. Write them to a file or a dataset",
        storable_name(record.invocation_id), f"{OUTPUTS_LIMIT:,}", DEPTH_LIMIT,
    )  # fmt: skip
    return None
