"""Does in the triggerer all that a task with an action does: invokes, waits, shows the log, ends."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from airflow.triggers.base import TaskFailedEvent, TaskSuccessEvent, TriggerEvent

from ..action_log import SHOWN_AGAIN, LiveLog
from ..exceptions import (
    InvocationError,
    RequestRefusedError,
    outputs_task_error,
    raise_unless_completed,
    task_error,
)
from ..hooks import InvocationHook
from ..links.invocation import LOGS_URL_KEY, URL_KEY
from ..models import DagRunProvenance, InvocationRecord
from ..platforms import Platform, PlatformError, UnsupportedError
from ..platforms.retry import OUTAGE_LIMIT, retry_transient
from ..tasks.idempotency import TaskInvocationKey, started_by_earlier_try
from ..tasks.provenance import identity_of, provenance_of
from ..tasks.result import INVOCATION_ID_KEY, TRY_KEY, invoked_line, result_of
from ..tasks.submission import SUBMIT_PATIENCE, InvocationSubmission, submission_task_error, submit
from ..tasks.validation import REQUEST_ARGUMENTS
from ..tasks.xcom import trigger_event
from ..version_compat import AirflowFailException
from ..waiters import AbandonReason, WaitAbandoned, WaitOptions, fetch_record
from ._base import BaseInvocationTrigger
from ._task_instance import flush_task_log, has_retries, pull_xcom, push_xcom

#: The XCom that tells a try that the one before it has failed, and will be retried by Airflow: it then goes
#: on with the same incarnation, which a worker would know from numbers that a triggerer isn't told.
RETRY_KEY = "invocation_retry"


class InvokeActionTrigger(BaseInvocationTrigger):
    """An `InvokeActionOperator` without a worker: the same request, identity, log, verdict, XComs and cancel.

    It ends its task itself. Only an error that must not be retried, of a task that has retries, is left to a
    worker: Airflow retries whatever fails in a triggerer. One that is moved to another triggerer derives the
    same identity there and so goes on with the same invocation.

    Its arguments are those of the operator under the same names, rendered in the triggerer; `durable`,
    `wait` and the others mean the same. They are stored in Airflow's database.

    :param push_result: push the result, as `do_xcom_push` of the task says.
    :param multiple_outputs: push each part of the result as an XCom of its own, too.
    """

    def __init__(
        self,
        *,
        conn_id: str,
        action: str,
        parameters: Mapping[str, Any] | None = None,
        data_source_id: str | None = None,
        input_data: Any = None,
        upload_destination: Any = None,
        compute_requirements: Mapping[str, Any] | None = None,
        container_parameters: Mapping[str, Any] | None = None,
        timeout: int | str | None = None,
        poll_interval: float = 5.0,
        stream_logs: bool = True,
        cancel_on_kill: bool = True,
        outage_limit: float = OUTAGE_LIMIT,
        queue_timeout: float | None = None,
        wait: bool = True,
        durable: bool = True,
        volatile_parameters: Sequence[str] = (),
        push_result: bool = True,
        multiple_outputs: bool = False,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.conn_id = conn_id
        self.action = action
        self.parameters = parameters
        self.data_source_id = data_source_id
        self.input_data = input_data
        self.upload_destination = upload_destination
        self.compute_requirements = compute_requirements
        self.container_parameters = container_parameters
        self.timeout = timeout
        self.poll_interval = poll_interval
        self.stream_logs = stream_logs
        self.cancel_on_kill = cancel_on_kill
        self.outage_limit = outage_limit
        self.queue_timeout = queue_timeout
        self.wait = wait
        self.durable = durable
        self.volatile_parameters = volatile_parameters
        self.push_result = push_result
        self.multiple_outputs = multiple_outputs
        self._submitting: asyncio.Task[InvocationRecord] | None = None
        self._url = ""
        self._logs_url = ""
        self._shows_log = stream_logs
        self._invocation_id: str | None = None

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """The class and the arguments that make this trigger anew."""
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {
                **self._arguments,
                "conn_id": self.conn_id,
                "poll_interval": self.poll_interval,
                "stream_logs": self.stream_logs,
                "cancel_on_kill": self.cancel_on_kill,
                "outage_limit": self.outage_limit,
                "queue_timeout": self.queue_timeout,
                "wait": self.wait,
                "durable": self.durable,
                "volatile_parameters": list(self.volatile_parameters),
                "push_result": self.push_result,
                "multiple_outputs": self.multiple_outputs,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Invoke, wait, show the log, end the task."""
        instance: Any = self.task_instance
        context = instance.get_template_context()
        provenance = provenance_of(context)
        identity = identity_of(context, await self._incarnation(provenance.try_number))
        self.in_loop = identity.region is not None
        try:
            result = await self._carry_out(identity, provenance)
        except InvocationError as error:
            event = await self._failure(error, identity, provenance)
        else:
            if self.push_result:
                for key, part in result.items() if self.multiple_outputs else ():
                    await push_xcom(self, key, part)
                await push_xcom(self, "return_value", result)
            event = TaskSuccessEvent()
        await flush_task_log()
        self._has_fired = True
        yield event

    @property
    def _arguments(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in REQUEST_ARGUMENTS}

    async def _incarnation(self, try_number: int) -> int:
        """The task's incarnation: how many tries it had before it was created, or cleared.

        It is `max_tries - retries`, which a triggerer isn't told. So a try that fails and is to be retried
        leaves word for the next one; a try that finds none is the first of its incarnation.
        """
        if try_number > 1:
            told = await pull_xcom(self, RETRY_KEY)
            if isinstance(told, Mapping) and told.get("try_number") == try_number - 1:
                return int(told["incarnation"])
        return try_number - 1

    async def _carry_out(self, identity: TaskInvocationKey, provenance: DagRunProvenance) -> dict[str, Any]:
        """The task's result. Raises InvocationError, as the operator does."""
        hook = InvocationHook(self.conn_id)
        self._submitting = asyncio.create_task(self._submit(hook, identity, provenance))
        # Shielded: who is killed before the answer has come cancels what it says.
        record = await asyncio.shield(self._submitting)
        if not self.wait:
            return result_of(record, self._url, provenance)
        log = LiveLog(self._logs_url, self._warn)
        waiting = self._waiting(record, log)
        try:
            await log.follow(self.conn_id, hook.connect, waiting)
            record = await fetch_record(hook.connect, waiting)
        except WaitAbandoned as given_up:
            if given_up.reason in (AbandonReason.TimedOut, AbandonReason.QueuedTooLong):
                await self._show_rest(hook, log)
            raise task_error(given_up, self.action, record.invocation_id, self._url) from given_up
        await self._show_rest(hook, log)
        outputs = None
        try:
            async with await hook.connect() as platform:
                raise_unless_completed(record, self._url, log.last)
                if platform.capabilities.outputs:
                    outputs = await self._outputs(platform, record.invocation_id)
        except PlatformError as error:
            raise_unless_completed(record, self._url, log.last)
            raise outputs_task_error(error, self.action, record.invocation_id, self._url) from error
        self.log.info("Invocation %s: %s", record.invocation_id, record.current.status)
        return result_of(record, self._url, provenance, outputs)

    async def _outputs(self, platform: Platform, invocation_id: str) -> Any:
        try:
            return await retry_transient(lambda: platform.outputs(invocation_id), self.outage_limit)
        except UnsupportedError as error:
            self.log.warning("the result has no outputs: %s", error)
            return None

    async def _submit(
        self, hook: InvocationHook, identity: TaskInvocationKey, provenance: DagRunProvenance
    ) -> InvocationRecord:
        tries = provenance.try_number
        instance: Any = self.task_instance
        sees_to_earlier = self.wait and self.durable and self.cancel_on_kill
        submission = InvocationSubmission(
            place=f"DAG {provenance.dag_id!r}, task {provenance.task_id!r}",
            arguments=self._arguments,
            provenance=provenance,
            idempotency_ids=identity.idempotency_ids(tries) if self.durable else [str(instance.id)],
            earlier_ids=identity.earlier_ids(tries) if sees_to_earlier else (),
            volatile_parameters=self.volatile_parameters,
            patience=min(SUBMIT_PATIENCE, self.outage_limit),
            warn=self.log.warning,
        )
        try:
            unopened = await hook.connect()
        except ValueError as error:
            raise RequestRefusedError(str(error), action=self.action) from None
        try:
            async with unopened as platform:
                record = await submit(platform, submission)
        except PlatformError as error:
            where = f"connection {self.conn_id!r}, {unopened.where}"
            raise submission_task_error(error, self.action, where) from error
        self._invocation_id = record.invocation_id
        self._url = unopened.url(record.invocation_id)
        self._shows_log = self.stream_logs and unopened.capabilities.logs
        may_have_shown = self._shows_log and self.wait and not started_by_earlier_try(record, tries)
        if may_have_shown and await pull_xcom(self, INVOCATION_ID_KEY) == record.invocation_id:
            self.log.info(SHOWN_AGAIN)
        await push_xcom(self, INVOCATION_ID_KEY, record.invocation_id)
        await push_xcom(self, TRY_KEY, tries)
        await push_xcom(self, URL_KEY, self._url)
        self._logs_url = unopened.logs_url(record.invocation_id)
        await push_xcom(self, LOGS_URL_KEY, self._logs_url)
        self.log.info("%s", invoked_line(self.action, record, tries, self._url))
        return record

    def _waiting(self, record: InvocationRecord, log: LiveLog) -> WaitOptions:
        deadline: datetime.datetime | None = getattr(self, "timeout_after", None)
        return WaitOptions(
            record.invocation_id,
            poll_interval=self.poll_interval,
            outage_limit=self.outage_limit,
            lines=log.queue if self._shows_log else None,
            deadline=None if deadline is None else deadline.timestamp(),
            queue_deadline=None if self.queue_timeout is None else time.time() + self.queue_timeout,
            queue_timeout=self.queue_timeout,
            cancels=self.cancel_on_kill,
            accepted=True,
        )

    def _warn(self, text: str) -> None:
        self.log.warning("invocation %s: %s", self._invocation_id, text)

    async def _show_rest(self, hook: InvocationHook, log: LiveLog) -> None:
        """Show the remaining lines; an error only logs a warning."""
        if not self._shows_log or self._invocation_id is None:
            return
        try:
            async with await hook.connect() as platform:
                await log.show_rest(platform, self._invocation_id)
        except PlatformError as error:
            self._warn(f"the rest of the log can't be read: {error}")

    async def _failure(
        self, error: InvocationError, identity: TaskInvocationKey, provenance: DagRunProvenance
    ) -> TriggerEvent:
        """How the task ends that can't succeed: here, unless only a worker can keep it from being retried."""
        self.log.error("%s", error)
        if has_retries(self):
            if isinstance(error, AirflowFailException):
                return trigger_event({"invocation_id": self._invocation_id, "error": error.as_event()})
            word = {"try_number": provenance.try_number, "incarnation": identity.incarnation}
            await push_xcom(self, RETRY_KEY, word)
        return TaskFailedEvent()

    async def _own_ids(self) -> list[str]:
        if self._submitting is not None:
            with contextlib.suppress(InvocationError):
                return [(await self._submitting).invocation_id]
        return []

    @property
    def _named(self) -> str | None:
        return self._invocation_id
