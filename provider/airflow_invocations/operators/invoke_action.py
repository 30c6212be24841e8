"""The operator that invokes an action and waits until the invocation has ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn

from airflow.sdk import BaseOperator
from airflow.sdk.bases.operator import TRIGGER_FAIL_REPR, TriggerFailureReason

from ..action_log import NOTHING_SHOWN, ShownLog
from ..exceptions import InvocationTimedOutError, error_from_event
from ..links import InvocationLink, InvocationLogsLink
from ..platforms import PlatformError
from ..platforms.registry import DEFAULT_CONN_ID
from ..platforms.retry import OUTAGE_LIMIT
from ..tasks.cancellation import cancel_active
from ..tasks.lifecycle import CancelledByClear, InvocationLifecycle, WorkerLog
from ..tasks.provenance import first_try_of, identity_of, loop_position_of, provenance_of
from ..tasks.result import INCARNATION_KEY, INVOCATION_ID_KEY, invoked_line, result_of
from ..tasks.submission import InvocationSubmission, idempotency_ids
from ..tasks.validation import REQUEST_ARGUMENTS, task_label
from ..tasks.xcom import push_xcom
from ..version_compat import SHORTEST_DEFERRAL, conf, starts_tasks_in_triggerer
from ..waiters import AbandonReason, WaitAbandoned, WaitOptions
from ._base import GuardedOperator
from ._start_from_trigger import check_start_from_trigger, is_unmapped, start_arguments

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
    from ..tasks.guard import InvocationGuard
    from ..tasks.idempotency import TaskInvocationKey

#: Seconds after its deadline at which Airflow ends a deferral that hasn't ended by itself.
_BACKSTOP = 120.0

#: The operator's arguments that a trigger which starts the task has too, besides those of the request.
_TRIGGER_ARGUMENTS = (
    "conn_id", "poll_interval", "stream_logs", "cancel_on_kill", "outage_limit", "queue_timeout", "wait",
    "durable", "volatile_parameters", "multiple_outputs",
)  # fmt: skip


class InvokeActionOperator(GuardedOperator, BaseOperator):
    """Invoke an action and wait for its end; the task succeeds only if the status is Completed.

    The result (XCom `return_value`) is a dict: invocation_id, action, digest, status, created, started,
    ended, duration, queued, outputs, url, provenance. Times are in ISO 8601 and UTC. `started` is when the
    last attempt began to run, `duration` is ended minus started, and `queued` is started minus created, in
    seconds. The XCom `invocation_id` is pushed as soon as the invocation exists.

    A try of a task invokes once, also if its worker is killed: a retry continues with the invocation that is
    running or has completed, and starts a new one only if that has failed or the task was cleared.
    `execution_timeout` counts from the task's start, also while it is deferred. A task that is killed or
    times out cancels its invocation.

    The events of an outlet `dataset_asset(conn_id, upload_destination)` have the invocation in their extra
    (invocation_id, url, action, digest). So have those of an AssetAlias, which becomes that asset.

    :param action: the action's name. (templated)
    :param parameters: values for the action's parameters, JSON types. (templated)
    :param input_data: path patterns in the dataset `data_source_id`, or an InvocationInput. (templated)
    :param data_source_id: the dataset that the input comes from. (templated)
    :param upload_destination: where outputs go: a dataset id, or an UploadDestination. (templated)
    :param compute_requirements: vCPU, memory (MiB), storage (GiB) instead of the action's. (templated)
    :param container_parameters: command, entry_point, env_vars, workdir instead of the action's; env_vars are
        added to the action's. (templated)
    :param timeout: minutes until the platform ends the invocation; None: the action's limit. (templated)
    :param conn_id: the Airflow connection; it decides the platform. (templated)
    :param wait: wait until the invocation has ended. False: succeed when the platform has accepted it.
    :param deferrable: wait in the triggerer, without a worker. Default: `[operators] default_deferrable`.
    :param poll_interval: seconds between two status queries, where the platform doesn't push.
    :param stream_logs: write the action's log lines to the task's log while the action runs.
    :param volatile_parameters: names of parameters whose values may change from one try to the next, such as
        a template with `ti.try_number`. A retry continues with an earlier try's invocation only if the
        request is the same. These parameters aren't compared; neither are env_vars, the timeout, the compute
        requirements and the version of the action.
    :param durable: retries continue with the invocation of the previous try. False: each try starts a new
        one.
    :param cancel_on_kill: cancel the invocation when the task is killed or times out.
    :param outage_limit: seconds for which the platform may be unavailable before the task fails.
    :param queue_timeout: seconds for which the invocation may be Queued before it is cancelled and the task
        fails; None: without limit.
    :param defer_after: seconds that the worker waits before it defers, so that short actions end in it.
    :param end_from_trigger: defer, and end a successful task in the triggerer, without a second worker. A
        worker resumes the task if it fails and has retries, a `retry_policy` or failure callbacks. Also for
        mapped tasks. Rejected when the DAG is parsed for a task with outlets, `on_success_callback` or
        `post_execute`, which Airflow ignores there. Needs Airflow 3.3; before, a worker ends the task.
    :param start_from_trigger: run the task in the triggerer: invoke, wait, show the log, end the task. A
        worker is used only if the trigger fails, or for an error that must not be retried of a task with
        retries. Not for mapped tasks, nor for tasks that need a worker; they are rejected when the DAG is
        parsed. The provenance then has neither the user nor the asset events that started the run, because a
        triggerer doesn't know them. Needs Airflow 3.3; before, a worker starts the task and defers it.
    :raises ValueError: when the DAG is parsed, for an invalid argument; the message names the task.
    :raises InvocationError: the subclass says why the task failed; see `airflow_invocations.exceptions`.
    """

    template_fields: Sequence[str] = (
        "action", "parameters", "input_data", "data_source_id", "upload_destination", "compute_requirements",
        "container_parameters", "timeout", "conn_id",
    )  # fmt: skip
    template_fields_renderers = dict.fromkeys(
        ("parameters", "input_data", "compute_requirements", "container_parameters"), "json"
    )
    operator_extra_links = (InvocationLink(), InvocationLogsLink())
    ui_color = "#e3f1ee"

    _kept_hook: InvocationHook
    _checked = (
        *REQUEST_ARGUMENTS, "conn_id", "poll_interval", "outage_limit", "queue_timeout", "defer_after",
        "volatile_parameters",
    )  # fmt: skip

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
        end_from_trigger: bool = False,
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
        self.deferrable = deferrable or end_from_trigger
        self.end_from_trigger = end_from_trigger
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
        self._lifecycle: InvocationLifecycle | None = None
        self._check()
        if self.outlets:  # imported only where it is needed, because DAG files are parsed often
            from ._outlets import check_outlets

            check_outlets(task_label(self), self.outlets, conn_id, upload_destination)
        if not is_unmapped(self):
            if end_from_trigger:
                from ._end_from_trigger import check_end_from_trigger, ignored_arguments

                check_end_from_trigger(task_label(self), ignored_arguments(self))
            if start_from_trigger:
                self._start_from_trigger()

    def _start_from_trigger(self) -> None:
        arguments = {name: getattr(self, name) for name in REQUEST_ARGUMENTS}
        check_start_from_trigger(self, {**arguments, "conn_id": self.conn_id})
        if not starts_tasks_in_triggerer():
            self.deferrable = True
            return
        arguments |= {name: getattr(self, name) for name in _TRIGGER_ARGUMENTS}
        self.start_from_trigger = True
        self.start_trigger_args = start_arguments(
            "InvokeActionTrigger", {**arguments, "push_result": bool(self.do_xcom_push)}
        )

    def execute(self, context: Context) -> dict[str, Any]:
        """Invoke the action; wait in the worker or in the triggerer."""
        with self._guarded(context) as guard:
            guard.forget()
            hook = self._hook()
            provenance = provenance_of(context)
            lifecycle, record = self._submit(hook, context, provenance)
            guard.guard(lifecycle, hook.ask)
            for key, value in lifecycle.xcoms(provenance.try_number).items():
                push_xcom(context["ti"], key, value)
            self.log.info("%s", invoked_line(self.action, record, provenance.try_number, lifecycle.url))
            if not self.wait:
                return result_of(record, lifecycle.url, provenance)
            if self.deferrable and not self._ends_soon(lifecycle, record):
                self._defer(lifecycle, context, provenance)
            return self._finish(lifecycle, context)

    def execute_complete(self, context: Context, event: dict[str, Any] | None = None) -> dict[str, Any]:
        """Resume after the deferral: show the rest of the log, read the status from the platform.

        Without an event, start over; this finds the same invocation. Airflow resumes a task without an event
        if the task was cleared while it was deferring, or was missing from its DAG for a while.
        """
        with self._guarded(context) as guard:
            if event is None:
                self.log.warning("Resumed without the trigger's event; looking for the invocation again")
                return self.execute(context)
            return self._complete(guard, context, event)

    def _complete(self, guard: InvocationGuard, context: Context, event: dict[str, Any]) -> dict[str, Any]:
        lifecycle = self._resume(guard, event["invocation_id"])
        if event.get("error") is not None:
            raise error_from_event(event["error"])
        shown = ShownLog.from_event(event)
        if event["given_up"] is None:
            return self._finish(lifecycle, context, shown)
        abandoned = WaitAbandoned(
            AbandonReason(event["given_up"]), event["detail"], is_cancelled=event.get("cancelled", False)
        )
        log = WorkerLog(lifecycle.logs_url, self.log.warning, shown)
        provenance = provenance_of(context)
        return self._conclude(lifecycle, context, lambda: lifecycle.give_up(abandoned, log, provenance))

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Resume, also after a trigger that timed out (cancel the invocation) or failed (wait here)."""
        with self._guarded(context) as guard:
            if next_method != TRIGGER_FAIL_REPR:
                return super().resume_execution(next_method, next_kwargs, context)
            is_late = (next_kwargs or {}).get("error") == TriggerFailureReason.TRIGGER_TIMEOUT
            if self.start_from_trigger:
                return self._cancel_late(context) if is_late else self._start_over(context, next_kwargs)
            invocation_id = context["ti"].xcom_pull(
                task_ids=self.task_id, key=INVOCATION_ID_KEY, map_indexes=context["ti"].map_index
            )
            if invocation_id is None:
                return super().resume_execution(next_method, next_kwargs, context)
            lifecycle = self._resume(guard, invocation_id)
            if is_late:
                return self._finish_late(lifecycle, context)
            self.log.warning(
                "The trigger failed; invocation %s is still running. Waiting for it in the worker.",
                invocation_id,
            )
            return self._finish(lifecycle, context)

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> OperatorLineage[Any, Any]:
        """Return the datasets that the action has read and written, and its invocation."""
        return self._lineage(wrote=True)

    def get_openlineage_facets_on_failure(self, task_instance: Any) -> OperatorLineage[Any, Any]:
        """Return the datasets that the action has read; what a failed action has written isn't claimed."""
        return self._lineage(wrote=False)

    def _lineage(self, *, wrote: bool) -> OperatorLineage[Any, Any]:
        from ._outlets import lineage_of_datasets

        upload = self.upload_destination if wrote else None
        record = self._lifecycle.ended if self._lifecycle else None
        return lineage_of_datasets(self, self.data_source_id, upload, record, self._hook())

    def _submit(
        self, hook: InvocationHook, context: Context, provenance: DagRunProvenance
    ) -> tuple[InvocationLifecycle, InvocationRecord]:
        """Return this try's invocation; start it if there is none. Raises an InvocationError."""
        from ._earlier_connection import leave_earlier_connection

        lifecycle = self._new_lifecycle(hook)
        submission = InvocationSubmission.of(
            self, task_label(self), provenance, self._key(context), first_try_of(context), self.log.warning
        )
        leave_earlier_connection(self, context, submission, self.conn_id)
        record = hook.run(lambda: lifecycle.submit(submission))
        self.invocation_url, self.logs_url = lifecycle.url, lifecycle.logs_url
        return lifecycle, record

    def _key(self, context: Context) -> TaskInvocationKey:
        """Return the key of this task's invocations, which is the trigger's if one has begun this try."""
        if not self.start_from_trigger:
            return identity_of(context)
        instance = context["ti"]
        stored = instance.xcom_pull(
            task_ids=self.task_id, key=INCARNATION_KEY, map_indexes=instance.map_index
        )
        is_of_this_try = isinstance(stored, Mapping) and stored.get("try_number") == instance.try_number
        if is_of_this_try:
            return identity_of(context, int(stored["incarnation"]))
        return identity_of(context, 0 if instance.try_number == 1 else None)

    def _resume(self, guard: InvocationGuard, invocation_id: str | None) -> InvocationLifecycle:
        """Return the lifecycle of an invocation that was submitted before this worker started."""
        hook = self._hook()
        lifecycle = self._new_lifecycle(hook)
        if invocation_id is not None:
            lifecycle.attach(hook.get_conn(), invocation_id)
            self.invocation_url, self.logs_url = lifecycle.url, lifecycle.logs_url
            guard.guard(lifecycle, hook.ask)
        return lifecycle

    def _new_lifecycle(self, hook: InvocationHook) -> InvocationLifecycle:
        waiting = WaitOptions(
            "",
            poll_interval=self.poll_interval,
            outage_limit=self.outage_limit,
            execution_timeout=self._execution_seconds,
            queue_timeout=self.queue_timeout,
            cancels=self.cancel_on_kill,
            accepted=True,
        )
        self._kept_hook = hook
        self._lifecycle = InvocationLifecycle(
            self.conn_id, hook.connect, waiting, self.log, action=self.action, stream_logs=self.stream_logs
        )
        return self._lifecycle

    def _start_over(self, context: Context, next_kwargs: dict[str, Any] | None) -> dict[str, Any]:
        """Continue in a worker after a trigger that started the task failed; it may have invoked already.

        The worker derives the same idempotency ids, so it finds that invocation. The XCom with the id may be
        of an earlier try, because Airflow deletes XComs only where a worker starts a try.
        """
        cause = "".join((next_kwargs or {}).get("traceback") or []).strip().rpartition("\n")[2]
        self.log.warning("The trigger failed; a worker continues: %s", cause or "unknown error")
        return self.execute(context)

    def _ends_soon(self, lifecycle: InvocationLifecycle, record: InvocationRecord) -> bool:
        """Return whether an invocation has ended, or ends while the worker may wait for it."""
        if record.current.status.is_terminal:
            return True
        seconds = self.defer_after
        return seconds > 0 and self._kept_hook.run(lambda: lifecycle.completes_within(seconds))

    def _defer(
        self, lifecycle: InvocationLifecycle, context: Context, provenance: DagRunProvenance
    ) -> NoReturn:
        from ..triggers import InvocationTrigger

        present, deadline, timeout = time.time(), None, None
        if self.execution_timeout is not None:
            deadline = context["ti"].start_date.timestamp() + self.execution_timeout.total_seconds()
            timeout = timedelta(seconds=max(0.0, deadline - present) + _BACKSTOP)
        ending: dict[str, Any] = {}
        if self.end_from_trigger:
            from ._end_from_trigger import ending_arguments

            ending = ending_arguments(self, context["ti"], provenance)
        self.defer(
            trigger=InvocationTrigger(
                conn_id=self.conn_id,
                invocation_id=lifecycle.invocation_id,
                poll_interval=self.poll_interval,
                stream_logs=lifecycle.shows_log,
                not_before=present + SHORTEST_DEFERRAL,
                deferred_at=present,
                cancel_on_kill=self.cancel_on_kill,
                outage_limit=self.outage_limit,
                deadline=deadline,
                queue_deadline=lifecycle.waiting.queue_deadline,
                execution_timeout=self._execution_seconds,
                queue_timeout=self.queue_timeout,
                url=lifecycle.url,
                logs_url=lifecycle.logs_url,
                in_loop=loop_position_of(context) is not None,
                **ending,
            ),
            method_name="execute_complete",
            timeout=timeout,
        )

    def _finish(
        self, lifecycle: InvocationLifecycle, context: Context, shown: ShownLog = NOTHING_SHOWN
    ) -> dict[str, Any]:
        """Follow the invocation to its end, which may be reached already, and conclude."""
        log = WorkerLog(lifecycle.logs_url, self.log.warning, shown)
        provenance = provenance_of(context)
        return self._conclude(
            lifecycle, context, lambda: lifecycle.finish(log, provenance, may_have_ended=True)
        )

    def _finish_late(self, lifecycle: InvocationLifecycle, context: Context) -> dict[str, Any]:
        """Handle a deferral that Airflow ended at its timeout, with the same result as the trigger.

        Airflow ends it before the trigger does if the triggerer is down or busy, or if Airflow itself applies
        `execution_timeout` to deferrals (https://github.com/apache/airflow/issues/69679).
        """
        log = WorkerLog(lifecycle.logs_url, self.log.warning)
        provenance = provenance_of(context)
        return self._conclude(lifecycle, context, lambda: lifecycle.finish_late(log, provenance))

    def _conclude(
        self,
        lifecycle: InvocationLifecycle,
        context: Context,
        steps: Callable[[], Coroutine[Any, Any, dict[str, Any]]],
    ) -> dict[str, Any]:
        """Run the last steps of the lifecycle; return the task's result. Every path of a worker ends here."""
        try:
            result = self._kept_hook.run(steps)
        except CancelledByClear:
            return self.execute(context)
        if self.outlets and lifecycle.ended is not None:
            from ._outlets import notify_outlets

            notify_outlets(context, self.outlets, self.conn_id, lifecycle.ended, lifecycle.url)
        return result

    def _cancel_late(self, context: Context) -> NoReturn:
        """Cancel what a trigger that started the task has invoked, after it did not end the task in time."""
        hook = self._hook()
        ids = idempotency_ids(
            self._key(context), context["ti"].try_number, context["ti"].id, is_durable=self.durable
        )
        cancelled: list[str] = []
        if self.cancel_on_kill:
            try:
                cancelled = hook.ask(lambda platform: cancel_active(platform, ids, self.log))
            except (TimeoutError, PlatformError) as error:
                self.log.error("Could not cancel the invocation: %s", error or "no answer")
        what = f"invocation {', '.join(cancelled)} cancelled" if cancelled else "no invocation was active"
        timed_out = WaitOptions("", poll_interval=0.0, execution_timeout=self._execution_seconds).timed_out
        raise InvocationTimedOutError(
            f"action {self.action!r}: {timed_out}, and no triggerer handled it; {what}",
            action=self.action,
            invocation_id=cancelled[0] if cancelled else None,
        )

    @property
    def _execution_seconds(self) -> float | None:
        return None if self.execution_timeout is None else self.execution_timeout.total_seconds()
