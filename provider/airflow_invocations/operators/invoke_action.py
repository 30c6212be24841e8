"""The operator that invokes an action and waits for its end."""

from __future__ import annotations

import contextvars
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from airflow.sdk import BaseOperator
from airflow.sdk.bases.operator import TRIGGER_FAIL_REPR, TriggerFailureReason

from ..action_log import NOTHING_SHOWN, ActionLog, ShownLog
from ..exceptions import (
    InvocationTimedOutError,
    error_from_event,
    outputs_task_error,
    raise_unless_completed,
    task_error,
)
from ..links import InvocationLink, InvocationLogsLink
from ..links.invocation import links_of
from ..models import InvocationStatus
from ..platforms import CannotStopError, PlatformError, UnsupportedError
from ..platforms.registry import DEFAULT_CONN_ID
from ..platforms.retry import OUTAGE_LIMIT, retry_transient
from ..tasks.idempotency import was_cancelled_by_clear
from ..tasks.provenance import identity_of, loop_position_of, provenance_of
from ..tasks.result import INVOCATION_ID_KEY, TRY_KEY, invoked_line, result_of
from ..tasks.submission import SUBMIT_PATIENCE, InvocationSubmission, submission_task_error, submit
from ..tasks.validation import REQUEST_ARGUMENTS, destination_of, task_label
from ..tasks.xcom import push_xcom
from ..version_compat import SHORTEST_DEFERRAL, conf, starts_tasks_in_triggerer
from ..waiters import AbandonReason, LogQueue, WaitAbandoned, WaitOptions, cancel_and_confirm
from ._base import BaseInvocationOperator
from ._start_from_trigger import check_start_from_trigger, is_unmapped, start_arguments
from ._wait_in_worker import completes_within, end_at_deadline, show_end_within, wait_for_end
from .cancel_invocation import cancelled_on_failure

if TYPE_CHECKING:
    from airflow.providers.openlineage.extractors import OperatorLineage
    from airflow.sdk import Context, XComArg

    from ..hooks import InvocationHook
    from ..models import (
        ComputeRequirements,
        ContainerParameters,
        DagRunProvenance,
        InvocationInput,
        InvocationRecord,
        UploadDestination,
    )
    from ..platforms import Platform

T = TypeVar("T")

#: Seconds that a worker which is being killed waits to be told whether a later try has taken over.
_TAKEOVER_PATIENCE = 1.0

#: Seconds that a worker which is being killed waits for its invocation's id, where that is still on its way,
#: and tries to have it cancelled. Airflow sends SIGKILL after 5 s; a platform that has taken the request for
#: a cancel goes on with it by itself.
_ID_PATIENCE = 3.0
_KILL_PATIENCE = 30.0

#: Seconds after its deadline at which a deferral that hasn't come to an end by itself is ended by Airflow.
_BACKSTOP = 120.0


class InvokeActionOperator(BaseInvocationOperator, BaseOperator):
    """Invoke an action and wait until it has ended; the task succeeds if, and only if, it is Completed.

    The result (XCom `return_value`) is a dict: invocation_id, action, digest, status, created, started,
    ended (ISO 8601, UTC; None: never), duration (seconds from started to ended), queued (seconds from created
    to started), outputs (what it returned, where the platform keeps that), url, provenance. `started` is when
    the last attempt began to run. The invocation's id is in the XCom `invocation_id` as soon as there is one.

    One try of a task invokes once, however often its worker is killed: a retry goes on with the invocation
    that runs or has completed, and starts a new one only after that has failed, or the task was cleared.
    `execution_timeout` counts from the task's start, deferred or not. A task that is killed, or whose time
    is over, cancels its invocation.

    An outlet `dataset_asset(conn_id, upload_destination)` has the invocation in its events' extra
    (invocation_id, url, action, digest); so has an AssetAlias, which becomes that asset.

    :param action: the action's name. (templated)
    :param parameters: values for the action's parameters, JSON types. (templated)
    :param input_data: path patterns in the dataset `data_source_id`, or an InvocationInput. (templated)
    :param data_source_id: the dataset that the input comes from. (templated)
    :param upload_destination: where outputs go: a dataset id, or an UploadDestination. (templated)
    :param compute_requirements: vCPU, memory (MiB), storage (GiB) instead of the action's own. (templated)
    :param container_parameters: command, entry_point, env_vars, workdir instead of the action's own;
        env_vars are added to the action's. (templated)
    :param timeout: minutes after which the platform ends the invocation; None: as the action says.
        (templated)
    :param conn_id: the Airflow connection; it decides the platform. (templated)
    :param wait: wait for the end; False: the task succeeds as soon as the invocation is accepted.
    :param deferrable: wait in the triggerer, without a worker. Default: `[operators] default_deferrable`.
    :param poll_interval: seconds between two looks at the invocation, where the platform doesn't push.
    :param stream_logs: show the action's log lines in the task's log as they come.
    :param volatile_parameters: names of parameters whose values may change from one try to the next, such as
        a template with `ti.try_number`. A retry continues with an earlier try's invocation only if the
        request is the same. These parameters aren't compared; neither are env_vars, the timeout, the compute
        requirements and the version of the action.
    :param durable: retries go on with the invocation of the try before. False: each try invokes anew.
    :param cancel_on_kill: cancel the invocation when the task is killed, or its time is over.
    :param outage_limit: seconds for which the platform may be out of reach before the task fails.
    :param queue_timeout: seconds for which the invocation may be Queued before it is cancelled and the task
        fails; None: for ever.
    :param defer_after: seconds that the worker waits before it defers: short actions end in it.
    :param start_from_trigger: do it all in the triggerer: invoke, wait, show the log, end the task; no worker
        has anything to do with it, unless the trigger breaks, or an error that must not be retried meets a
        task that has retries. Not for mapped tasks, nor for those that need a worker: it is refused when the
        DAG is parsed. There the provenance knows neither the user nor the asset events that started the
        run: Airflow doesn't tell a triggerer.
    :raises ValueError: when the DAG is parsed, for an argument that can't be right; it names the task.
    :raises InvocationError: one of the tree in `airflow_invocations.exceptions`, by what has happened.
    """

    template_fields: Sequence[str] = (
        "action",
        "parameters",
        "input_data",
        "data_source_id",
        "upload_destination",
        "compute_requirements",
        "container_parameters",
        "timeout",
        "conn_id",
    )
    template_fields_renderers = {
        "parameters": "json",
        "input_data": "json",
        "compute_requirements": "json",
        "container_parameters": "json",
    }
    operator_extra_links = (InvocationLink(), InvocationLogsLink())
    ui_color = "#e3f1ee"

    _checked = (
        *REQUEST_ARGUMENTS,
        "conn_id",
        "poll_interval",
        "outage_limit",
        "queue_timeout",
        "defer_after",
        "volatile_parameters",
    )

    def __init__(
        self,
        *,
        action: str,
        parameters: Mapping[str, Any] | XComArg | None = None,
        input_data: list[str] | InvocationInput | Mapping[str, Any] | XComArg | None = None,
        data_source_id: str | XComArg | None = None,
        upload_destination: str | UploadDestination | Mapping[str, Any] | XComArg | None = None,
        compute_requirements: ComputeRequirements | Mapping[str, Any] | None = None,
        container_parameters: ContainerParameters | Mapping[str, Any] | None = None,
        timeout: int | str | None = None,
        conn_id: str = DEFAULT_CONN_ID,
        wait: bool = True,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        poll_interval: float = 5.0,
        stream_logs: bool = True,
        durable: bool = True,
        volatile_parameters: Sequence[str] = (),
        cancel_on_kill: bool = True,
        outage_limit: float = OUTAGE_LIMIT,
        queue_timeout: float | None = None,
        defer_after: float = 2.0,
        start_from_trigger: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.action = action
        self.parameters = parameters
        self.input_data = input_data
        self.data_source_id = data_source_id
        self.upload_destination = upload_destination
        self.compute_requirements = compute_requirements
        self.container_parameters = container_parameters
        self.timeout = timeout
        self.conn_id = conn_id
        self.wait = wait
        self.deferrable = deferrable
        self.poll_interval = poll_interval
        self.stream_logs = stream_logs
        self.durable = durable
        self.volatile_parameters = volatile_parameters
        self.cancel_on_kill = cancel_on_kill
        self.outage_limit = outage_limit
        self.queue_timeout = queue_timeout
        self.defer_after = defer_after
        self.invocation_url: str | None = None
        self.logs_url: str | None = None
        self._invoking: _Invoking | None = None
        self._was_killed = False
        self._invoked_at: float | None = None
        self._ended: InvocationRecord | None = None
        self._check()
        if self.outlets:  # most tasks have none, and a DAG file shouldn't pay for them
            from ._outlets import check_outlets

            check_outlets(task_label(self), self.outlets, conn_id, upload_destination)
        if start_from_trigger and not is_unmapped(self):
            self._start_from_trigger()

    def execute(self, context: Context) -> dict[str, Any]:
        """Invoke the action; wait here, or have the triggerer wait."""
        hook = self._hook()
        provenance = provenance_of(context)
        record = self._invoke(hook, context, provenance)
        self._name(hook, record.invocation_id)
        with cancelled_on_failure(self, context, hook, [record.invocation_id], is_adopted=self.durable):
            push_xcom(context["ti"], INVOCATION_ID_KEY, record.invocation_id)
            push_xcom(context["ti"], TRY_KEY, provenance.try_number)
            for key, link in links_of(self).items():
                push_xcom(context["ti"], key, link)
        url = hook.url(record.invocation_id)
        self.log.info("%s", invoked_line(self.action, record, provenance.try_number, url))
        if not self.wait:
            return result_of(record, url, provenance)
        if self.deferrable and not self._ends_soon(hook, record):
            self._defer(hook, context, record)
        return self._finish(hook, context, record.invocation_id)

    def execute_complete(self, context: Context, event: dict[str, Any] | None = None) -> dict[str, Any]:
        """Resume after the deferral: read the rest of the log and the status from the platform.

        Without an event, start over; this finds the same invocation. Airflow resumes a task without an event
        if the task was cleared while it was deferring, or was missing from its DAG for a while.
        """
        if event is None:
            self.log.warning("Resumed without the trigger's event; looking for the invocation again")
            return self.execute(context)
        hook, invocation_id = self._hook(), event["invocation_id"]
        if invocation_id is not None:
            self._name(hook, invocation_id)
        if event.get("error") is not None:
            raise error_from_event(event["error"])
        shown = ShownLog.from_event(event)
        if event["given_up"] is not None:
            given_up = WaitAbandoned(
                AbandonReason(event["given_up"]), event["detail"], is_cancelled=event.get("cancelled", False)
            )
            return self._give_up(hook, context, invocation_id, given_up, shown)
        return self._finish(hook, context, invocation_id, shown)

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Resume, also after a trigger that timed out (cancel) or broke (wait here instead)."""
        if next_method != TRIGGER_FAIL_REPR:
            return super().resume_execution(next_method, next_kwargs, context)
        is_late = (next_kwargs or {}).get("error") == TriggerFailureReason.TRIGGER_TIMEOUT
        if self.start_from_trigger:
            return self._end_late(context) if is_late else self._take_over(context, next_kwargs)
        invocation_id = context["ti"].xcom_pull(
            task_ids=self.task_id, key=INVOCATION_ID_KEY, map_indexes=context["ti"].map_index
        )
        if invocation_id is None:
            return super().resume_execution(next_method, next_kwargs, context)
        hook = self._hook()
        self._name(hook, invocation_id)
        if is_late:
            return self._finish_late(hook, context, invocation_id)
        self.log.warning("the trigger broke, invocation %s did not: waiting for it here", invocation_id)
        return self._finish(hook, context, invocation_id)

    def on_kill(self) -> None:
        """Cancel the invocation. Airflow calls this from a signal handler; the task goes on to its end."""
        self._was_killed = True
        if self.cancel_on_kill and self._invoking is not None:
            if self._invoking.was_taken_over():
                self.log.info("a later try of this task sees to the invocation: it isn't cancelled")
            elif self._invoking.is_known.wait(_ID_PATIENCE):
                self._cancel(self._invoking)
            else:
                self.log.warning("the task is being killed before the platform has answered")

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> OperatorLineage[Any, Any]:
        """Which datasets the action has read and written, and which invocation it was."""
        return self._lineage(wrote=True)

    def get_openlineage_facets_on_failure(self, task_instance: Any) -> OperatorLineage[Any, Any]:
        """The same; what an action has written that failed isn't claimed."""
        return self._lineage(wrote=False)

    def _lineage(self, *, wrote: bool) -> OperatorLineage[Any, Any]:
        from ..tasks.lineage import lineage_of

        destination = destination_of(task_label(self), self.upload_destination)
        written = [destination.destination_id] if wrote and destination and destination.destination_id else []
        read = [str(self.data_source_id)] if self.data_source_id else []
        return lineage_of(self.conn_id, read, written, self._ended, self._hook().get_conn().where)

    @property
    def _arguments(self) -> dict[str, object]:
        return {name: getattr(self, name) for name in REQUEST_ARGUMENTS}

    def _name(self, hook: InvocationHook, invocation_id: str) -> None:
        """Know the invocation's places, which Airflow asks the links for each time the task has run."""
        self.invocation_url, self.logs_url = hook.url(invocation_id), hook.logs_url(invocation_id)

    def _start_from_trigger(self) -> None:
        check_start_from_trigger(self, {**self._arguments, "conn_id": self.conn_id})
        if not starts_tasks_in_triggerer():
            self.deferrable = True
            return
        self.start_from_trigger = True
        self.start_trigger_args = start_arguments(
            "InvokeActionTrigger",
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
                "push_result": bool(self.do_xcom_push),
                "multiple_outputs": self.multiple_outputs,
            },
        )

    def _take_over(self, context: Context, next_kwargs: dict[str, Any] | None) -> dict[str, Any]:
        """Go on in a worker after a trigger that was to do everything broke; it may have invoked already.

        The same identity is derived here, so the invocation that there is comes back. The XCom of the id
        doesn't help: Airflow leaves those of earlier tries where no worker begins.
        """
        broke = "".join((next_kwargs or {}).get("traceback") or []).strip().rpartition("\n")[2]
        self.log.warning("the trigger broke, a worker goes on: %s", broke or "it didn't say why")
        return self.execute(context)

    def _end_late(self, context: Context) -> NoReturn:
        """Cancel what the trigger has invoked, and didn't end in time."""
        hook = self._hook()
        ids = self._idempotency_ids(context, provenance_of(context).try_number)

        async def cancel(platform: Platform) -> list[str]:
            under_way = [one.invocation_id for one in await platform.active(ids)]
            for invocation_id in under_way:
                await cancel_and_confirm(platform, invocation_id, _KILL_PATIENCE)
            return under_way

        cancelled: list[str] = []
        if self.cancel_on_kill:
            try:
                cancelled = hook.ask(cancel)
            except (TimeoutError, PlatformError) as error:
                self.log.error("its invocation could not be cancelled: %s", error or "no answer")
        what = f"invocation {', '.join(cancelled)} cancelled" if cancelled else "no invocation was active"
        timed_out = WaitOptions("", poll_interval=0.0, execution_timeout=self._execution_seconds).timed_out
        raise InvocationTimedOutError(
            f"action {self.action!r}: {timed_out}, and no triggerer handled it; {what}",
            action=self.action,
            invocation_id=cancelled[0] if cancelled else None,
        )

    def _idempotency_ids(self, context: Context, tries: int) -> list[str]:
        if tries == 0:
            # `airflow tasks test` must not adopt the invocation of a real try, which a kill would cancel.
            return [f"airflow-test-{uuid.uuid4()}"]
        identity = identity_of(context)
        return identity.idempotency_ids(tries) if self.durable else [str(context["ti"].id)]

    def _invoke(
        self, hook: InvocationHook, context: Context, provenance: DagRunProvenance
    ) -> InvocationRecord:
        """Find this try's invocation, or start it. Raises an InvocationError; it says whether it is known."""
        where = f"connection {self.conn_id!r}, {hook.get_conn().where}"
        tries = provenance.try_number
        sees_to_earlier = self.wait and self.durable and self.cancel_on_kill and tries > 0
        submission = InvocationSubmission(
            place=task_label(self),
            arguments=self._arguments,
            provenance=provenance,
            idempotency_ids=self._idempotency_ids(context, tries),
            earlier_ids=identity_of(context).earlier_ids(tries) if sees_to_earlier else (),
            volatile_parameters=self.volatile_parameters,
            patience=min(SUBMIT_PATIENCE, self.outage_limit),
            warn=self.log.warning,
        )
        invoking = self._invoking = _Invoking(hook, context)
        try:
            record = hook.ask(lambda platform: submit(platform, submission, invoking.know))
        except PlatformError as error:
            raise submission_task_error(error, self.action, where) from error
        self._invoked_at = time.time()
        if self._was_killed and self.cancel_on_kill:
            self._cancel(invoking)
        return record

    def _cancel(self, invoking: _Invoking, patience: float = _KILL_PATIENCE) -> InvocationRecord | None:
        """The record of an invocation that has ended now; None: it isn't known, or can't be stopped."""
        self.log.warning("cancelling invocation %s", invoking.invocation_id)
        try:
            record = invoking.hook.ask(
                lambda platform: cancel_and_confirm(platform, invoking.invocation_id, patience)
            )
        except CannotStopError as error:
            self.log.warning("%s", error)
            return None
        self.log.info(
            "invocation %s: %s",
            invoking.invocation_id,
            record.current.status if record else "not known (any more)",
        )
        return record

    def _ends_soon(self, hook: InvocationHook, record: InvocationRecord) -> bool:
        """Whether an invocation has ended, or does so while a worker may wait for it."""
        if record.current.status.is_terminal:
            return True
        waiting = self._waiting(hook, record.invocation_id)
        return self.defer_after > 0 and hook.run(lambda: completes_within(hook, waiting, self.defer_after))

    def _defer(self, hook: InvocationHook, context: Context, record: InvocationRecord) -> NoReturn:
        from ..triggers import InvocationTrigger

        present = time.time()
        deadline, timeout = None, None
        if self.execution_timeout is not None:
            deadline = context["ti"].start_date.timestamp() + self.execution_timeout.total_seconds()
            timeout = timedelta(seconds=max(0.0, deadline - present) + _BACKSTOP)
        self.defer(
            trigger=InvocationTrigger(
                conn_id=self.conn_id,
                invocation_id=record.invocation_id,
                poll_interval=self.poll_interval,
                stream_logs=self._shows_log(hook),
                not_before=present + SHORTEST_DEFERRAL,
                deferred_at=present,
                cancel_on_kill=self.cancel_on_kill,
                outage_limit=self.outage_limit,
                deadline=deadline,
                queue_deadline=self._queue_deadline,
                execution_timeout=self._execution_seconds,
                queue_timeout=self.queue_timeout,
                logs_url=self.logs_url or "",
                in_loop=loop_position_of(context) is not None,
            ),
            method_name="execute_complete",
            timeout=timeout,
        )

    def _finish(
        self,
        hook: InvocationHook,
        context: Context,
        invocation_id: str,
        shown: ShownLog = NOTHING_SHOWN,
    ) -> dict[str, Any]:
        """Wait for the end, which may be there already, and take the verdict: every path ends here."""
        self._invoking = _Invoking(hook, context, invocation_id)
        log = ActionLog(self.logs_url or "", shown)
        waiting = self._waiting(hook, invocation_id)
        try:
            record = hook.run(lambda: wait_for_end(hook, waiting, log, self.log.warning))
        except WaitAbandoned as given_up:
            return self._give_up(hook, context, invocation_id, given_up, log.shown(log.position))
        self._invoking = None
        return self._conclude(hook, context, record, log.last)

    def _finish_late(self, hook: InvocationHook, context: Context, invocation_id: str) -> dict[str, Any]:
        """Handle a deferral that Airflow ended at its timeout, with the same result as the trigger.

        Airflow ends it before the trigger does if the triggerer is down or busy, or if Airflow itself applies
        `execution_timeout` to deferrals (https://github.com/apache/airflow/issues/69679).
        """
        waiting = self._waiting(hook, invocation_id)
        try:
            hook.run(lambda: end_at_deadline(hook, waiting))
        except WaitAbandoned as given_up:
            return self._give_up(hook, context, invocation_id, given_up)
        return self._finish(hook, context, invocation_id)

    def _give_up(
        self,
        hook: InvocationHook,
        context: Context,
        invocation_id: str,
        given_up: WaitAbandoned,
        shown: ShownLog | None = None,
    ) -> dict[str, Any]:
        """End a task whose wait was abandoned; cancel the invocation if it may still run.

        An invocation that is known to be cancelled isn't cancelled again. If the platform became unavailable,
        the task would wait for it until Airflow ends the task with a less precise error.

        :param shown: how much of the log has been shown; None: not known.
        """
        is_late = given_up.reason in (AbandonReason.TimedOut, AbandonReason.QueuedTooLong)
        if self.cancel_on_kill and is_late and not given_up.is_cancelled:
            try:
                record = self._cancel(_Invoking(hook, context, invocation_id), self._cancel_patience)
            except (TimeoutError, PlatformError) as error:
                self.log.error(
                    "invocation %s could not be cancelled: %s", invocation_id, error or "no answer"
                )
            else:
                if record is not None and record.current.status is InvocationStatus.Completed:
                    return self._conclude(hook, context, record, [])
        if is_late and shown is not None and self._shows_log(hook):
            log = ActionLog(self.logs_url or "", shown)
            seconds = self._cancel_patience / 2
            hook.run(lambda: show_end_within(seconds, hook, invocation_id, log, self.log.warning))
        raise task_error(given_up, self.action, invocation_id, hook.url(invocation_id))

    @property
    def _cancel_patience(self) -> float:
        """Seconds for a cancel after a timeout, short enough that Airflow doesn't time out this process."""
        if self.execution_timeout is None:
            return _KILL_PATIENCE
        return min(_KILL_PATIENCE, self.execution_timeout.total_seconds() / 2)

    def _conclude(
        self,
        hook: InvocationHook,
        context: Context,
        record: InvocationRecord,
        log_tail: list[str],
    ) -> dict[str, Any]:
        """The verdict on an invocation that has ended, as a result or an exception."""
        self._ended = record
        url = hook.url(record.invocation_id)
        provenance = provenance_of(context)
        status = record.current.status
        if was_cancelled_by_clear(record, provenance.try_number, provenance.clear_number):
            self.log.info("invocation %s was cancelled when its task was cleared", record.invocation_id)
            return self.execute(context)
        raise_unless_completed(record, url, log_tail)
        if self.outlets:
            from ._outlets import tell_outlets

            tell_outlets(context, self.outlets, self.conn_id, record, url)
        self.log.info("Invocation %s: %s", record.invocation_id, status)
        return result_of(record, url, provenance, self._outputs(hook, record.invocation_id))

    def _outputs(self, hook: InvocationHook, invocation_id: str) -> Any:
        if not hook.get_conn().capabilities.outputs:
            return None
        try:
            return hook.ask(
                lambda platform: retry_transient(lambda: platform.outputs(invocation_id), self.outage_limit)
            )
        except UnsupportedError as error:
            self.log.warning("the result has no outputs: %s", error)
            return None
        except PlatformError as error:
            raise outputs_task_error(error, self.action, invocation_id, hook.url(invocation_id)) from error

    def _shows_log(self, hook: InvocationHook) -> bool:
        return self.stream_logs and hook.get_conn().capabilities.logs

    def _waiting(self, hook: InvocationHook, invocation_id: str) -> WaitOptions:
        return WaitOptions(
            invocation_id,
            poll_interval=self.poll_interval,
            outage_limit=self.outage_limit,
            lines=LogQueue() if self._shows_log(hook) else None,
            queue_deadline=self._queue_deadline,
            execution_timeout=self._execution_seconds,
            queue_timeout=self.queue_timeout,
            cancels=self.cancel_on_kill,
            accepted=True,
        )

    @property
    def _execution_seconds(self) -> float | None:
        return None if self.execution_timeout is None else self.execution_timeout.total_seconds()

    @property
    def _queue_deadline(self) -> float | None:
        """Counted from when this worker had it from the platform; a resumed one counts anew."""
        began = time.time() if self._invoked_at is None else self._invoked_at
        return None if self.queue_timeout is None else began + self.queue_timeout


class _Invoking:
    """The invocation that a task works for; its id comes once the platform has answered."""

    def __init__(self, hook: InvocationHook, context: Context, invocation_id: str = "") -> None:
        self.hook = hook
        self._instance = context["ti"]
        self.invocation_id = invocation_id
        #: Set when the id is known; a signal handler waits for it.
        self.is_known = threading.Event()
        if invocation_id:
            self.is_known.set()

    def know(self, invocation_id: str) -> None:
        """The platform has answered."""
        self.invocation_id = invocation_id
        self.is_known.set()

    def was_taken_over(self) -> bool:
        """Whether a later try of the task has an invocation: this one, or it has seen to this one's end.

        Airflow starts a retry when a worker hasn't been heard of, and tells the worker to die when it is
        heard of again. It is asked in a thread, as this one may be in the midst of asking Airflow something;
        no answer is a no.
        """
        return _within(_TAKEOVER_PATIENCE, self._later_try, default=False)

    def _later_try(self) -> bool:
        instance = self._instance
        latest = instance.xcom_pull(task_ids=instance.task_id, key=TRY_KEY, map_indexes=instance.map_index)
        return latest is not None and int(latest) > instance.try_number


def _within(seconds: float, ask: Callable[[], T], default: T) -> T:
    """What `ask` answers, in a thread of its own; the default if that takes too long, or goes wrong."""
    thread = ThreadPoolExecutor(1, thread_name_prefix="invocations-ask")
    try:
        return thread.submit(contextvars.copy_context().run, ask).result(seconds)
    except Exception:
        return default
    finally:
        thread.shutdown(wait=False)
