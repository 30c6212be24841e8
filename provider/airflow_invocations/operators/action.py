"""The operator that invokes an action and waits for its end."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn

from airflow.sdk import BaseOperator
from airflow.sdk.bases.operator import TRIGGER_FAIL_REPR, TriggerFailureReason
from airflow.sdk.configuration import conf

from ..exceptions import (
    AccessRefusedError,
    PlatformUnavailableError,
    RequestRefusedError,
    error_of,
    raise_unless_completed,
    verdict_on,
)
from ..links import InvocationLink
from ..links.invocation import URL_KEY
from ..model import (
    MAX_PAGE_SIZE,
    ActionRecord,
    ComputeRequirements,
    ContainerParameters,
    DagRunProvenance,
    InvocationInput,
    InvocationRecord,
    InvocationStatus,
    UploadDestination,
)
from ..platform import ConflictError, PermanentError, PlatformError, TransientError, UnauthorizedError
from ..platform.roboto import invocation_url
from ..task_log import ActionLog
from ..waiting import (
    OUTAGE_LIMIT,
    GivenUp,
    Reason,
    Waiting,
    cancel_and_confirm,
    find_or_create,
    outlast,
    started_by_earlier_try,
    was_cancelled_by_clear,
)
from .arguments import check_arguments, request_of
from .context import identity_of, provenance_of
from .in_worker import ends_within, wait_for_end

if TYPE_CHECKING:
    from airflow.sdk import Context

    from ..hooks import RobotoHook
    from ..platform.roboto import RobotoPlatform

#: The XCom that holds the invocation's id from the moment it exists.
INVOCATION_ID_KEY = "invocation_id"

#: Seconds that a deferral lasts at least. After a task has deferred, the executor may report up to about
#: 6 s later that its process ended; if the task is queued again by then, the scheduler takes that for a
#: crash of the second run and fails the task (facts/airflow.md, trap T1; apache/airflow #71580, #72716).
SHORTEST_DEFERRAL = 8.0

#: Seconds for which a request that invokes is repeated while the platform is out of reach. After that the
#: task fails, and its retry sends the same request.
SUBMIT_PATIENCE = 120.0

#: Seconds that a worker which is being killed waits for its invocation's id, where that is still on its way,
#: and tries to have it cancelled. Airflow sends SIGKILL after 5 s; a platform that has taken the request for
#: a cancel goes on with it by itself.
_ID_PATIENCE = 3.0
_KILL_PATIENCE = 30.0

#: Seconds that a cleared task waits for the end of what it had invoked before.
_EARLIER_PATIENCE = 15.0

#: Seconds after its deadline at which a deferral that hasn't come to an end by itself is ended by Airflow.
_BACKSTOP = 120.0


class InvokeActionOperator(BaseOperator):
    """Invoke an action and wait until it has ended; the task succeeds if, and only if, it is Completed.

    The result (XCom `return_value`) is a dict: invocation_id, action, digest, status, created, started,
    ended (ISO 8601, UTC; None: never), duration (seconds), url, provenance. The invocation's id is in the
    XCom `invocation_id` as soon as there is one.

    One try of a task invokes once, however often its worker is killed: a retry goes on with the invocation
    that runs or has completed, and starts a new one only after that has failed, or the task was cleared.
    `execution_timeout` counts from the task's start, deferred or not. A task that is killed, or whose time
    is over, cancels its invocation.

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
    :param durable: retries go on with the invocation of the try before. False: each try invokes anew.
    :param cancel_on_kill: cancel the invocation when the task is killed, or its time is over.
    :param outage_limit: seconds for which the platform may be out of reach before the task fails.
    :param queue_timeout: seconds for which the invocation may be Queued before it is cancelled and the task
        fails; None: for ever.
    :param defer_after: seconds that the worker waits before it defers: short actions end in it.
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
    operator_extra_links = (InvocationLink(),)
    ui_color = "#e3f1ee"

    def __init__(
        self,
        *,
        action: str,
        parameters: Mapping[str, Any] | None = None,
        input_data: list[str] | InvocationInput | Mapping[str, Any] | None = None,
        data_source_id: str | None = None,
        upload_destination: str | UploadDestination | Mapping[str, Any] | None = None,
        compute_requirements: ComputeRequirements | Mapping[str, Any] | None = None,
        container_parameters: ContainerParameters | Mapping[str, Any] | None = None,
        timeout: int | str | None = None,
        conn_id: str = "roboto_default",
        wait: bool = True,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        poll_interval: float = 5.0,
        stream_logs: bool = True,
        durable: bool = True,
        cancel_on_kill: bool = True,
        outage_limit: float = OUTAGE_LIMIT,
        queue_timeout: float | None = None,
        defer_after: float = 2.0,
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
        self.cancel_on_kill = cancel_on_kill
        self.outage_limit = outage_limit
        self.queue_timeout = queue_timeout
        self.defer_after = defer_after
        self.invocation_url: str | None = None
        self._invoking: _Invoking | None = None
        self._was_killed = False
        self._invoked_at: float | None = None
        check_arguments(
            self.task_id,
            {
                **self._arguments,
                "conn_id": conn_id,
                "poll_interval": poll_interval,
                "outage_limit": outage_limit,
                "queue_timeout": queue_timeout,
                "defer_after": defer_after,
            },
        )

    def execute(self, context: Context) -> dict[str, Any]:
        """Invoke the action; wait here, or have the triggerer wait."""
        hook = self._hook()
        provenance = provenance_of(context)
        record = self._invoke(hook, context, provenance)
        self.invocation_url = url = invocation_url(hook.settings, record.invocation_id)
        context["ti"].xcom_push(key=INVOCATION_ID_KEY, value=record.invocation_id)
        context["ti"].xcom_push(key=URL_KEY, value=url)
        what = (
            "an earlier try invoked" if started_by_earlier_try(record, provenance.try_number) else "invoked"
        )
        self.log.info("%s action %s: invocation %s, %s", what, self.action, record.invocation_id, url)
        if not self.wait:
            return _result(record, url, provenance)
        if self.deferrable and not self._ends_soon(hook, record):
            self._defer(context, record)
        return self._finish(hook, context, record.invocation_id)

    def execute_complete(self, context: Context, event: dict[str, Any]) -> dict[str, Any]:
        """Go on after the deferral: read the rest of the log and the verdict from the platform itself."""
        hook, invocation_id = self._hook(), event["invocation_id"]
        if event["given_up"] is not None:
            return self._give_up(
                hook, context, invocation_id, GivenUp(Reason(event["given_up"]), event["detail"])
            )
        return self._finish(hook, context, invocation_id, event["cursor"], event["log_tail"])

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Resume, also after a trigger that timed out (cancel) or broke (wait here instead)."""
        if next_method != TRIGGER_FAIL_REPR:
            return super().resume_execution(next_method, next_kwargs, context)
        invocation_id = context["ti"].xcom_pull(
            task_ids=self.task_id, key=INVOCATION_ID_KEY, map_indexes=context["ti"].map_index
        )
        if invocation_id is None:
            return super().resume_execution(next_method, next_kwargs, context)
        hook = self._hook()
        if (next_kwargs or {}).get("error") == TriggerFailureReason.TRIGGER_TIMEOUT:
            late = GivenUp(Reason.TimedOut, "its time is over, and no triggerer saw to it")
            return self._give_up(hook, context, invocation_id, late)
        self.log.warning("the trigger broke, invocation %s did not: waiting for it here", invocation_id)
        return self._finish(hook, context, invocation_id)

    def on_kill(self) -> None:
        """Cancel the invocation. Airflow calls this from a signal handler; the task goes on to its end."""
        self._was_killed = True
        if self.cancel_on_kill and self._invoking is not None:
            if self._invoking.is_known.wait(_ID_PATIENCE):
                self._cancel(self._invoking)
            else:
                self.log.warning("the task is being killed before the platform has answered")

    @property
    def _arguments(self) -> dict[str, object]:
        return {
            "action": self.action,
            "parameters": self.parameters,
            "data_source_id": self.data_source_id,
            "input_data": self.input_data,
            "upload_destination": self.upload_destination,
            "compute_requirements": self.compute_requirements,
            "container_parameters": self.container_parameters,
            "timeout": self.timeout,
        }

    def _hook(self) -> RobotoHook:
        from ..hooks import RobotoHook

        return RobotoHook(self.conn_id)

    def _invoke(self, hook: RobotoHook, context: Context, provenance: DagRunProvenance) -> InvocationRecord:
        """Find this try's invocation, or start it. Raises an InvocationError; it says whether it is known."""
        try:
            request = request_of(self.task_id, self._arguments, provenance)
            where = f"connection {self.conn_id!r}, {hook.settings.endpoint}"
        except ValueError as error:
            raise RequestRefusedError(str(error), action=self.action) from None
        tries = provenance.try_number
        identity = identity_of(context)
        ids = identity.idempotency_ids(tries) if self.durable else [str(context["ti"].id)]
        patience = min(SUBMIT_PATIENCE, self.outage_limit)
        invoking = self._invoking = _Invoking(hook)

        async def check_and_invoke(platform: RobotoPlatform) -> InvocationRecord:
            action = await outlast(lambda: platform.get_action(self.action), patience)
            _check_parameters(action, self.parameters or {})
            await self._cancel_earlier(platform, identity.earlier_ids(tries))
            record = await outlast(
                lambda: find_or_create(platform, self.action, request, ids, tries), patience
            )
            invoking.know(record.invocation_id)
            return record

        refused = f"action {self.action!r} was not invoked"
        try:
            record = hook.call(check_and_invoke)
        except UnauthorizedError as error:
            raise AccessRefusedError(f"{refused}: {error} ({where})", action=self.action) from error
        except ConflictError as error:
            why = "an earlier try invoked another action; clear the task to begin anew"
            raise RequestRefusedError(f"{refused}: {why}: {error} ({where})", action=self.action) from error
        except PermanentError as error:
            raise RequestRefusedError(f"{refused}: {error} ({where})", action=self.action) from error
        except TransientError as error:
            unknown = f"action {self.action!r}: the platform doesn't answer; a retry asks again"
            raise PlatformUnavailableError(f"{unknown}: {error} ({where})", action=self.action) from error
        self._invoked_at = time.time()
        if self._was_killed and self.cancel_on_kill:
            self._cancel(invoking)
        return record

    async def _cancel_earlier(self, platform: RobotoPlatform, idempotency_ids: list[str]) -> None:
        """Cancel what this task had invoked before it was cleared, if that still goes on.

        The trigger that waited for it can't be relied on for that: Airflow drops one that no triggerer has
        begun, and runs the cleared task before it tells the old trigger.
        """
        if not (idempotency_ids and self.wait and self.durable and self.cancel_on_kill):
            return
        try:
            for earlier in await platform.unended(idempotency_ids[-MAX_PAGE_SIZE:]):
                self.log.warning("the task was cleared, cancelling invocation %s", earlier.invocation_id)
                await cancel_and_confirm(platform, earlier.invocation_id, _EARLIER_PATIENCE)
        except (PlatformError, TimeoutError) as error:
            self.log.warning(
                "an earlier invocation may still go on: %s", error or "its cancel isn't confirmed"
            )

    def _cancel(self, invoking: _Invoking) -> InvocationRecord | None:
        self.log.warning("cancelling invocation %s", invoking.invocation_id)
        record = invoking.hook.cancel(invoking.invocation_id, patience=_KILL_PATIENCE)
        self.log.info(
            "invocation %s: %s",
            invoking.invocation_id,
            record.current.status if record else "not known (any more)",
        )
        return record

    def _ends_soon(self, hook: RobotoHook, record: InvocationRecord) -> bool:
        """Whether an invocation has ended, or does so while a worker may wait for it."""
        if record.current.status.is_terminal:
            return True
        waiting = self._waiting(record.invocation_id)
        return self.defer_after > 0 and hook.run(lambda: ends_within(hook, waiting, self.defer_after))

    def _defer(self, context: Context, record: InvocationRecord) -> NoReturn:
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
                stream_logs=self.stream_logs,
                not_before=present + SHORTEST_DEFERRAL,
                cancel_on_kill=self.cancel_on_kill,
                outage_limit=self.outage_limit,
                deadline=deadline,
                queue_deadline=self._queue_deadline,
            ),
            method_name="execute_complete",
            timeout=timeout,
        )

    def _finish(
        self,
        hook: RobotoHook,
        context: Context,
        invocation_id: str,
        cursor: str | None = None,
        log_tail: Sequence[str] = (),
    ) -> dict[str, Any]:
        """Wait for the end, which may be there already, and take the verdict: every path ends here."""
        self._invoking = _Invoking(hook, invocation_id)
        log = ActionLog(log_tail)
        waiting = self._waiting(invocation_id, cursor)
        try:
            record = hook.run(lambda: wait_for_end(hook, waiting, log, self.log.warning))
        except GivenUp as given_up:
            return self._give_up(hook, context, invocation_id, given_up)
        self._invoking = None
        return self._conclude(hook, context, record, log.last, shown=not log_tail)

    def _give_up(
        self, hook: RobotoHook, context: Context, invocation_id: str, given_up: GivenUp
    ) -> dict[str, Any]:
        """End a task whose wait is over before its invocation's end is known; see to it that it ends."""
        if self.cancel_on_kill and given_up.reason in (Reason.TimedOut, Reason.QueuedTooLong):
            try:
                record = self._cancel(_Invoking(hook, invocation_id))
            except (TimeoutError, PlatformError) as error:
                self.log.error(
                    "invocation %s could not be cancelled: %s", invocation_id, error or "no answer"
                )
            else:
                if record is not None and record.current.status is InvocationStatus.Completed:
                    return self._conclude(hook, context, record, [], shown=True)
        raise error_of(given_up, self.action, invocation_id, invocation_url(hook.settings, invocation_id))

    def _conclude(
        self,
        hook: RobotoHook,
        context: Context,
        record: InvocationRecord,
        log_tail: list[str],
        *,
        shown: bool,
    ) -> dict[str, Any]:
        """The verdict on an invocation that has ended, as a result or an exception."""
        self.invocation_url = url = invocation_url(hook.settings, record.invocation_id)
        provenance = provenance_of(context)
        status = record.current.status
        if was_cancelled_by_clear(record, provenance.try_number, provenance.clear_number):
            self.log.info("invocation %s was cancelled when its task was cleared", record.invocation_id)
            return self.execute(context)
        if not shown and verdict_on(status) is not None and log_tail:
            self.log.error("the action's last lines:\n%s", "\n".join(log_tail))
        raise_unless_completed(record, url, log_tail)
        self.log.info("Invocation %s: %s", record.invocation_id, status)
        return _result(record, url, provenance)

    def _waiting(self, invocation_id: str, cursor: str | None = None) -> Waiting:
        return Waiting(
            invocation_id,
            poll_interval=self.poll_interval,
            outage_limit=self.outage_limit,
            cursor=cursor,
            lines=() if self.stream_logs else None,
            queue_deadline=self._queue_deadline,
            cancels=self.cancel_on_kill,
        )

    @property
    def _queue_deadline(self) -> float | None:
        """Counted from when this worker had it from the platform; a resumed one counts anew."""
        began = time.time() if self._invoked_at is None else self._invoked_at
        return None if self.queue_timeout is None else began + self.queue_timeout


class _Invoking:
    """The invocation that a task works for; its id comes once the platform has answered."""

    def __init__(self, hook: RobotoHook, invocation_id: str = "") -> None:
        self.hook = hook
        self.invocation_id = invocation_id
        #: Set when the id is known; a signal handler waits for it.
        self.is_known = threading.Event()
        if invocation_id:
            self.is_known.set()

    def know(self, invocation_id: str) -> None:
        """The platform has answered."""
        self.invocation_id = invocation_id
        self.is_known.set()


def _check_parameters(action: ActionRecord, given: Mapping[str, Any]) -> None:
    """Refuse what the action's declaration already rules out. Raises RequestRefusedError."""
    if missing := action.missing_parameters(given):
        lacking = ", ".join(map(repr, missing))
        raise RequestRefusedError(
            f"action {action.name!r} was not invoked: argument 'parameters' lacks {lacking}; "
            f"the action declares: {action.declared_parameters}"
        )


def _result(record: InvocationRecord, url: str, provenance: DagRunProvenance) -> dict[str, Any]:
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
        "url": url,
        "provenance": provenance.model_dump(mode="json", exclude_none=True),
    }
