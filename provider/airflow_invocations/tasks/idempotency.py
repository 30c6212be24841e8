"""Derive a task's idempotency ids, and invoke an action once for all of its tries."""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Awaitable, Callable, Collection, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .. import models
from ..models import InvocationStatus
from ..platforms.base import Platform
from ..platforms.errors import ConflictError, RepeatedIdError
from .adoption import check_adopted

if TYPE_CHECKING:
    from ..models import InvocationRecord, InvocationRequest

#: Changes whenever the derivation does, so that an old identity is never taken for a new one.
_SCHEME = "airflow-2"


@dataclass(frozen=True, slots=True)
class TaskInvocationKey:
    """What tells one task's work from any other's, and is the same for every retry of it.

    A worker that is killed at any instant derives the same identity again, so nothing has to be remembered.
    """

    #: The deployment's base url: staging and production may share a platform.
    deployment: str
    dag_id: str
    run_id: str
    #: The DAG run's `run_after`, which nothing changes: a manual run that is created again under the same
    #: run id has another one.
    run_after: datetime.datetime | None
    task_id: str
    map_index: int
    #: Constant over automatic retries, another one after a clear: the task instance's `max_tries`, which only
    #: a clear changes (`clear_task_instances`); in a triggerer, which doesn't know it, the tries before the
    #: clear. A clear after an edit of `retries` may leave the number as it was, and then the provenance of
    #: an invocation decides (`tasks.incarnation`).
    incarnation: int
    #: Which of several invocations that the task asks for; a task that asks for one has none.
    part: str = ""
    #: Where a task in a loop is: the region (one execution of the loop, or of a mapped task within one of
    #: its iterations) and the index in it. None outside of loops: mapped tasks had no regions before
    #: Airflow 3.4, and an upgrade must not change the identity of what is running.
    region: tuple[str, int] | None = None

    def idempotency_id(self, failures: int) -> str:
        """Return the id of the invocation that follows `failures` failed ones of this incarnation."""
        run_after = None if self.run_after is None else self.run_after.astimezone(datetime.UTC).isoformat()
        parts = [
            self.deployment.rstrip("/"),
            self.dag_id,
            self.run_id,
            run_after,
            self.task_id,
            self.map_index,
            self.incarnation,
            failures,
            *([self.part] if self.part else []),
            *([list(self.region)] if self.region else []),
        ]
        # As JSON, so that no two lists of parts are one text.
        return f"{_SCHEME}-{hashlib.sha256(json.dumps(parts).encode()).hexdigest()}"

    def idempotency_ids(self, try_number: int) -> list[str]:
        """Return the ids that this incarnation may have used up to its try `try_number`, in order.

        Each earlier try has left one failed invocation behind at most.

        :param try_number: from 1; 0, as `airflow tasks test` has it, counts as the first.
        """
        return [self.idempotency_id(failures) for failures in range(max(1, try_number))]

    def earlier_ids(self, try_number: int) -> list[str]:
        """Return the ids that earlier incarnations may have used; there are some after a clear only."""
        before = (replace(self, incarnation=incarnation) for incarnation in range(self.incarnation))
        return [one for identity in before for one in identity.idempotency_ids(try_number)]


async def invoke_idempotent(
    platform: Platform,
    action: str,
    request: InvocationRequest,
    idempotency_ids: Iterable[str],
    try_number: int,
    volatile: Collection[str] = (),
    reject_stale: Callable[[InvocationRecord], Awaitable[bool]] | None = None,
) -> InvocationRecord:
    """Return this try's invocation: the first one that no earlier try has seen fail.

    Sends one id after the other. The platform returns the invocation that has the id, or starts one. One
    request is enough unless an invocation of an earlier try has failed. An invocation of another try is
    adopted only if its request is the same (`check_adopted`). When another triggerer takes over, it renders
    the request of the same try again; differences to the try's own invocation are then ignored.

    :param volatile: names of parameters that may change from one try to the next.
    :param reject_stale: returns whether an invocation is one from before a clear, and has ended it; the next
        id is used then.

    Raises:
        RequestConflictError: the invocation has a different request.
        ConflictError: the id belongs to an invocation of another action, or no id is left.
        PlatformError: as `platform.invoke` does.
    """
    for idempotency_id in idempotency_ids:
        named = request.model_copy(update={"idempotency_id": idempotency_id})
        try:
            record = await platform.invoke(action, named)
        except RepeatedIdError as repeated:
            record = repeated.record
        if has_failed(record) and started_by_earlier_try(record, try_number):
            continue
        if reject_stale is not None and await reject_stale(record):
            continue
        if record.provenance.source.source_id != request.invocation_source_id:
            check_adopted(record, action, named, platform.capabilities, volatile)
        return record
    raise ConflictError(f"every idempotency id that try {try_number} may use belongs to a failed invocation")


def started_by_earlier_try(record: InvocationRecord, try_number: int) -> bool:
    """Whether an invocation was there before this try; one that doesn't say who started it was."""
    starter = models.task_instance_of(record.provenance.source.source_id)
    return starter is None or starter.try_number < try_number


def was_cancelled_by_clear(record: InvocationRecord, try_number: int, clear_number: int) -> bool:
    """Whether an invocation that is Cancelled was so because its task was cleared, not against this try.

    A task that is cleared while a worker runs it keeps its incarnation (Airflow restarts it as if it were
    a retry), and its new try may come to wait for the old invocation before the cancel has reached it.
    """
    starter = models.task_instance_of(record.provenance.source.source_id)
    return (
        record.current.status is InvocationStatus.Cancelled
        and starter is not None
        and starter.try_number < try_number
        and starter.clear_number < clear_number
    )


def has_failed(record: InvocationRecord) -> bool:
    """Whether an invocation has ended without being Completed."""
    status = record.current.status
    return status.is_terminal and status is not InvocationStatus.Completed
