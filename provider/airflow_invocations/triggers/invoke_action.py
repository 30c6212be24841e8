"""Invoke an action in the triggerer, wait for it, and end the task, without a worker."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from airflow.triggers.base import TriggerEvent

from ..action_log import SHOWN_AGAIN, LiveLog
from ..exceptions import InvocationError
from ..hooks import InvocationHook
from ..models import DagRunProvenance, InvocationRecord
from ..platforms.retry import OUTAGE_LIMIT
from ..tasks.idempotency import TaskInvocationKey, started_by_earlier_try
from ..tasks.lifecycle import InvocationLifecycle
from ..tasks.provenance import identity_of, provenance_of
from ..tasks.result import INCARNATION_KEY, INVOCATION_ID_KEY, invoked_line, result_of
from ..tasks.submission import InvocationSubmission
from ..version_compat import AirflowFailException
from ..waiters import WaitOptions
from ._base import EndingTrigger, has_retries, pull_xcom, push_xcom

#: The XCom by which a try that fails, and that Airflow retries, passes its incarnation to the next try. A
#: worker reads the incarnation from a number that a triggerer doesn't have.
RETRY_KEY = "invocation_retry"


@dataclass(kw_only=True, eq=False, repr=False)
class InvokeActionTrigger(EndingTrigger):
    """Do in the triggerer what an `InvokeActionOperator` does, and end the task.

    Only an error that must not be retried is left to a worker, if the task has retries: Airflow retries every
    task that fails in a triggerer. A trigger that moves to another triggerer derives the same idempotency ids
    there, and so continues with the same invocation.

    The arguments are those of the operator, rendered in the triggerer. They are stored in Airflow's database.

    :param push_result: store the result as an XCom, as `do_xcom_push` of the task says.
    :param multiple_outputs: store each entry of the result as an XCom of its own, too.
    """

    conn_id: str
    action: str
    parameters: Mapping[str, Any] | None = None
    data_source_id: str | None = None
    input_data: Any = None
    upload_destination: Any = None
    compute_requirements: Mapping[str, Any] | None = None
    container_parameters: Mapping[str, Any] | None = None
    timeout: int | str | None = None
    poll_interval: float = 5.0
    stream_logs: bool = True
    cancel_on_kill: bool = True
    outage_limit: float = OUTAGE_LIMIT
    queue_timeout: float | None = None
    wait: bool = True
    durable: bool = True
    volatile_parameters: Sequence[str] = ()
    push_result: bool = True
    multiple_outputs: bool = False

    def __post_init__(self) -> None:
        """Create what isn't serialized."""
        super().__post_init__()
        self._submission: asyncio.Task[InvocationRecord] | None = None
        self._lifecycle: InvocationLifecycle | None = None

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Invoke, wait, show the log, end the task."""
        instance: Any = self.task_instance
        context = instance.get_template_context()
        provenance = provenance_of(context, in_worker=False)
        incarnation = await self._incarnation(provenance.try_number)
        self._key = identity_of(context, incarnation)
        if provenance.try_number > 1:
            await push_xcom(self, INCARNATION_KEY, self._numbers)
        self.in_loop = self._key.region is not None
        event = await self._end_task(self._result(self._key, provenance))
        self._has_fired = True
        yield event

    async def _incarnation(self, try_number: int) -> int:
        """Return how many tries the task had before it was last cleared; 0 if it was not.

        A triggerer doesn't have the numbers for that. So a try that fails, and that Airflow retries, stores
        its incarnation for the next try. A try that finds none is taken for the first of its incarnation; if
        nothing in the run was cleared, it continues with an earlier try's invocation all the same.
        """
        if try_number > 1:
            stored = await pull_xcom(self, RETRY_KEY)
            if isinstance(stored, Mapping) and stored.get("try_number") == try_number - 1:
                return int(stored["incarnation"])
        return try_number - 1

    async def _result(self, key: TaskInvocationKey, provenance: DagRunProvenance) -> dict[str, Any]:
        """Submit the invocation, follow it and return the task's result. Raises as `finish` does."""
        lifecycle = self._lifecycle = self._new_lifecycle()
        self._submission = asyncio.create_task(self._submit(lifecycle, key, provenance))
        # Shielded, so that a kill during the submission can still cancel the invocation.
        record = await asyncio.shield(self._submission)
        if not self.wait:
            return result_of(record, lifecycle.url, provenance)
        return await lifecycle.finish(LiveLog(lifecycle.logs_url, self._warn), provenance)

    def _new_lifecycle(self) -> InvocationLifecycle:
        deadline: datetime.datetime | None = getattr(self, "timeout_after", None)
        waiting = WaitOptions(
            "",
            poll_interval=self.poll_interval,
            outage_limit=self.outage_limit,
            deadline=None if deadline is None else deadline.timestamp(),
            queue_timeout=self.queue_timeout,
            cancels=self.cancel_on_kill,
            accepted=True,
        )
        connect = InvocationHook(self.conn_id).connect
        return InvocationLifecycle(
            self.conn_id, connect, waiting, self.log, action=self.action, stream_logs=self.stream_logs
        )

    async def _submit(
        self, lifecycle: InvocationLifecycle, key: TaskInvocationKey, provenance: DagRunProvenance
    ) -> InvocationRecord:
        """Return the invocation of this try, after storing its id and links."""
        tries = provenance.try_number
        label = f"DAG {provenance.dag_id!r}, task {provenance.task_id!r}"
        record = await lifecycle.submit(
            InvocationSubmission.of(self, label, provenance, key, key.incarnation + 1, self.log.warning)
        )
        may_have_shown = lifecycle.shows_log and self.wait and not started_by_earlier_try(record, tries)
        if may_have_shown and await pull_xcom(self, INVOCATION_ID_KEY) == record.invocation_id:
            self.log.info(SHOWN_AGAIN)
        for name, value in lifecycle.xcoms(tries).items():
            await push_xcom(self, name, value)
        self.log.info("%s", invoked_line(self.action, record, tries, lifecycle.url))
        return record

    def _needs_worker(self, error: InvocationError) -> bool:
        return has_retries(self) and isinstance(error, AirflowFailException)

    async def _before_failure(self) -> None:
        if has_retries(self):
            await push_xcom(self, RETRY_KEY, self._numbers)

    @property
    def _numbers(self) -> dict[str, int]:
        instance: Any = self.task_instance
        return {"try_number": instance.try_number, "incarnation": self._key.incarnation}

    def _warn(self, text: str) -> None:
        self.log.warning("Invocation %s: %s", self._invocation_id, text)

    async def _own_ids(self) -> list[str]:
        if self._submission is not None:
            with contextlib.suppress(InvocationError):
                return [(await self._submission).invocation_id]
        return []

    @property
    def _invocation_id(self) -> str | None:
        return self._lifecycle.invocation_id or None if self._lifecycle else None

    @property
    def _named(self) -> str | None:
        return self._invocation_id
