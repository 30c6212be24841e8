"""The operator that invokes an action and waits for its end."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from airflow.sdk import BaseOperator
from airflow.sdk.bases.operator import TRIGGER_FAIL_REPR, TriggerFailureReason
from airflow.sdk.configuration import conf

from ..exceptions import RequestRefusedError, raise_unless_completed
from ..links import InvocationLink
from ..links.invocation import URL_KEY
from ..model import (
    ActionRecord,
    ComputeRequirements,
    ContainerParameters,
    DagRunProvenance,
    InvocationInput,
    InvocationRecord,
    InvocationStatus,
    UploadDestination,
)
from ..platform import PermanentError
from ..platform.roboto import invocation_url
from ..task_log import write_lines
from ..waiting import End, follow
from .arguments import check_arguments, request_of
from .context import provenance_of

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

#: Seconds that a worker which is being killed tries to have its invocation cancelled.
_KILL_PATIENCE = 30.0


class InvokeActionOperator(BaseOperator):
    """Invoke an action and wait until it has ended; the task succeeds if, and only if, it is Completed.

    The result (XCom `return_value`) is a dict: invocation_id, action, digest, status, created, started,
    ended (ISO 8601, UTC; None: never), duration (seconds), url, provenance. The invocation's id is in the
    XCom `invocation_id` as soon as there is one. A task that is killed, in a worker or while deferred,
    cancels its invocation.

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
    :param poll_interval: seconds between two looks at the invocation.
    :param stream_logs: show the action's log lines in the task's log as they come.
    :raises ValueError: when the DAG is parsed, for an argument that can't be right; it names the task.
    :raises RequestRefusedError: the platform refuses; nothing was invoked; not retried.
    :raises InvocationFailedError: the invocation ended as Failed.
    :raises InvocationCancelledError: it was cancelled; not retried.
    :raises InvocationDeadlyError: the platform gave it up; not retried.
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
        self.invocation_url: str | None = None
        self._running: tuple[RobotoHook, str] | None = None
        check_arguments(self.task_id, {**self._arguments, "conn_id": conn_id, "poll_interval": poll_interval})

    def execute(self, context: Context) -> dict[str, Any]:
        """Invoke the action; wait here, or have the triggerer wait."""
        hook = self._hook()
        provenance = provenance_of(context)
        record = self._invoke(hook, provenance, idempotency_id=str(context["ti"].id))
        self._running = (hook, record.invocation_id)
        self.invocation_url = url = invocation_url(hook.settings, record.invocation_id)
        context["ti"].xcom_push(key=INVOCATION_ID_KEY, value=record.invocation_id)
        context["ti"].xcom_push(key=URL_KEY, value=url)
        self.log.info("Invoked action %s: invocation %s, %s", self.action, record.invocation_id, url)
        if not self.wait:
            return _result(record, url, provenance)
        if self.deferrable and not record.current.status.is_terminal:
            self._defer(record.invocation_id)
        return self._finish(hook, record.invocation_id, None, provenance)

    def execute_complete(self, context: Context, event: dict[str, Any]) -> dict[str, Any]:
        """Go on after the deferral: read the rest of the log and the verdict from the platform itself."""
        return self._finish(self._hook(), event["invocation_id"], event["cursor"], provenance_of(context))

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
            self.log.error("execution_timeout is over, cancelling invocation %s", invocation_id)
            hook.cancel(invocation_id)
            return super().resume_execution(next_method, next_kwargs, context)
        self.log.warning("the trigger broke, invocation %s did not: waiting for it here", invocation_id)
        return self._finish(hook, invocation_id, None, provenance_of(context))

    def on_kill(self) -> None:
        """Cancel the invocation. Airflow calls this from a signal handler; the task goes on to its end."""
        if self._running is None:
            return
        hook, invocation_id = self._running
        self.log.warning("the task is being killed, cancelling invocation %s", invocation_id)
        record = hook.cancel(invocation_id, patience=_KILL_PATIENCE)
        self.log.info(
            "invocation %s: %s", invocation_id, record.current.status if record else "not known (any more)"
        )

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

    def _invoke(
        self, hook: RobotoHook, provenance: DagRunProvenance, idempotency_id: str
    ) -> InvocationRecord:
        try:
            request = request_of(self.task_id, self._arguments, provenance, idempotency_id)
            settings = hook.settings
        except ValueError as error:
            raise RequestRefusedError(str(error)) from None

        async def check_and_invoke(platform: RobotoPlatform) -> InvocationRecord:
            _check_parameters(await platform.get_action(self.action), self.parameters or {})
            return await platform.invoke(self.action, request)

        try:
            return hook.call(check_and_invoke)
        except PermanentError as error:
            where = f"connection {self.conn_id!r}, {settings.endpoint}"
            raise RequestRefusedError(f"action {self.action!r} was not invoked: {error} ({where})") from error

    def _defer(self, invocation_id: str) -> NoReturn:
        from ..triggers import InvocationTrigger

        self.defer(
            trigger=InvocationTrigger(
                conn_id=self.conn_id,
                invocation_id=invocation_id,
                poll_interval=self.poll_interval,
                stream_logs=self.stream_logs,
                not_before=time.time() + SHORTEST_DEFERRAL,
            ),
            method_name="execute_complete",
            timeout=self.execution_timeout,
        )

    def _finish(
        self, hook: RobotoHook, invocation_id: str, cursor: str | None, provenance: DagRunProvenance
    ) -> dict[str, Any]:
        """Wait for the end, which may be there already, and take the verdict: every path ends here."""
        self._running = (hook, invocation_id)
        self.invocation_url = url = invocation_url(hook.settings, invocation_id)

        async def to_the_end(platform: RobotoPlatform) -> InvocationRecord:
            steps = follow(
                platform,
                invocation_id,
                poll_interval=self.poll_interval,
                stream_logs=self.stream_logs,
                cursor=cursor,
            )
            async for step in steps:
                if isinstance(step, End):
                    return step.record
                await write_lines(step.records)
            raise AssertionError("unreachable: following an invocation ends with its End")

        record = hook.call(to_the_end)
        self._running = None
        raise_unless_completed(record, url)
        self.log.info("Invocation %s: %s", invocation_id, record.current.status)
        return _result(record, url, provenance)


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
