"""Validate a task's arguments, report all problems in one error, then submit the invocation idempotently."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from .. import models
from ..exceptions import InvocationError, RequestRejectedError, platform_task_error
from ..models import MAX_PAGE_SIZE
from ..platforms import (
    ConflictError,
    PermanentError,
    Platform,
    PlatformError,
    RequestConflictError,
    TransientError,
)
from ..platforms.retry import retry_transient
from ..waiters import cancel_and_confirm
from .idempotency import TaskInvocationKey, invoke_idempotent
from .validation import REQUEST_ARGUMENTS, read_arguments, request_of

if TYPE_CHECKING:
    from ..models import DagRunProvenance, InvocationRecord, InvocationRequest

#: Seconds to repeat the request that invokes while the platform is unavailable. After that the task fails,
#: and its retry sends the same request.
_SUBMIT_TIMEOUT = 120.0

#: Seconds that a cleared task waits for the cancel of its earlier invocation.
_EARLIER_TIMEOUT = 15.0


class InvokingTask(Protocol):
    """An operator or trigger that invokes; its attributes are documented in `InvokeActionOperator`.

    It also has an attribute for each of `REQUEST_ARGUMENTS`.
    """

    action: str
    wait: bool
    durable: bool
    cancel_on_kill: bool
    outage_limit: float
    volatile_parameters: Sequence[str]


@dataclass(frozen=True, slots=True)
class InvocationSubmission:
    """The request of one try of a task, and the ids that make it idempotent.

    :param task_label: the task, for messages.
    :param arguments: the operator's arguments that make up the request, rendered.
    :param idempotency_ids: the ids that this try's invocation may have, in order (`invoke_idempotent`).
    :param earlier_ids: the ids of invocations from before the task was cleared; active ones are cancelled.
    :param volatile_parameters: names of parameters that may change from one try to the next.
    :param outage_limit: seconds for which the platform may be unavailable.
    :param warn: writes a warning into the task's log.
    """

    task_label: str
    arguments: Mapping[str, object]
    provenance: DagRunProvenance
    idempotency_ids: Sequence[str]
    earlier_ids: Sequence[str]
    volatile_parameters: Collection[str]
    outage_limit: float
    warn: Callable[[str], object]

    @classmethod
    def of(
        cls,
        task: InvokingTask,
        task_label: str,
        provenance: DagRunProvenance,
        key: TaskInvocationKey,
        instance_id: object,
        warn: Callable[[str], object],
    ) -> InvocationSubmission:
        """Return the submission of a task's try.

        :param key: identifies the task instance over its retries.
        :param instance_id: Airflow's id of this try.
        """
        tries = provenance.try_number
        cancels_earlier = task.wait and task.durable and task.cancel_on_kill and tries > 0
        return cls(
            task_label=task_label,
            arguments={name: getattr(task, name) for name in REQUEST_ARGUMENTS},
            provenance=provenance,
            idempotency_ids=idempotency_ids(key, tries, instance_id, is_durable=task.durable),
            earlier_ids=key.earlier_ids(tries) if cancels_earlier else (),
            volatile_parameters=task.volatile_parameters,
            outage_limit=min(_SUBMIT_TIMEOUT, task.outage_limit),
            warn=warn,
        )

    @property
    def action(self) -> str | None:
        """The action's name, for messages; None if it is not a string."""
        action = self.arguments.get("action")
        return action if isinstance(action, str) else None


def idempotency_ids(
    key: TaskInvocationKey, try_number: int, instance_id: object, *, is_durable: bool
) -> list[str]:
    """Return the ids that the invocation of a task's try may have, in order.

    :param try_number: 0 for `airflow tasks test`, which must not adopt, and then cancel, the invocation of a
        real try.
    :param is_durable: whether retries continue with the invocation of the previous try.
    """
    if try_number == 0:
        return [f"airflow-test-{uuid.uuid4()}"]
    return key.idempotency_ids(try_number) if is_durable else [str(instance_id)]


async def submit(platform: Platform, submission: InvocationSubmission) -> InvocationRecord:
    """Return this try's invocation; start it if there is none.

    :raises RequestRejectedError: the arguments are invalid; the message has all problems. Nothing was sent.
    :raises PlatformError: as the platform's methods do.
    """
    request = await _checked_request(platform, submission)
    await _cancel_earlier(platform, submission)
    return await retry_transient(
        lambda: invoke_idempotent(
            platform,
            str(submission.action),
            request,
            submission.idempotency_ids,
            submission.provenance.try_number,
            submission.volatile_parameters,
        ),
        submission.outage_limit,
    )


async def _checked_request(platform: Platform, submission: InvocationSubmission) -> InvocationRequest:
    """Return the request, with the parameters as the action declares them. Raises as `submit` does."""
    values, problems = read_arguments(submission.arguments)
    problems += run_id_problems(submission.provenance.run_id)
    if name := values.get("action"):
        try:
            action = await retry_transient(lambda: platform.get_action(name), submission.outage_limit)
        except PlatformError as error:
            if not problems:
                raise
            if isinstance(error, PermanentError):
                problems.append(str(error))
        else:
            given = values.get("parameters") or {}
            coerced, signature_errors = models.coerce_parameters(action, given, platform.secret_prefix)
            if signature_errors:
                declared = f"the action declares: {action.declared_parameters}"
                problems.append(f"argument 'parameters': {'; '.join([*signature_errors, declared])}")
            elif coerced:
                values["parameters"] = coerced
    if problems:
        what = f"action {submission.arguments.get('action')!r} was not invoked"
        raise RequestRejectedError(
            f"{what}: {submission.task_label}: {'; '.join(problems)}", action=submission.action
        )
    return request_of(values, submission.provenance)


def run_id_problems(run_id: str) -> list[str]:
    """Return why Airflow can't store XComs of a run; such a task must not invoke.

    Airflow's client puts the run id into a URL without escaping it, so Airflow answers the push with 404.
    """
    wrong = sorted(set(run_id) & set("?#/"))
    if not wrong:
        return []
    named = " or ".join(wrong)
    return [f"run id {run_id!r}: Airflow can't store XComs of a run with {named} in its id; use another id"]


def submission_task_error(error: PlatformError, action: str, where: str) -> InvocationError:
    """Return the exception for an action that could not be invoked.

    :param where: the connection and the platform's address, for the message.
    """
    what, hints = f"action {action!r} was not invoked", [where]
    match error:
        case RequestConflictError():
            what += ": an earlier try of this task started a different request"
            hints.insert(
                0,
                "clear the task to invoke the action with the new request, undo the change, or name "
                "parameters that change with each try in volatile_parameters",
            )
        case ConflictError():
            hints.insert(0, "clear the task to start over")
        case TransientError():
            # It may have been invoked all the same.
            what = f"action {action!r}: the platform doesn't answer; a retry sends the request again"
    return platform_task_error(error, what, action=action, hint="; ".join(hints))


async def _cancel_earlier(platform: Platform, submission: InvocationSubmission) -> None:
    """Cancel the active invocations of this task from before it was cleared.

    Their triggers may not do so: Airflow deletes a trigger that no triggerer has started, and runs the
    cleared task before it notifies the old trigger.
    """
    if not submission.earlier_ids:
        return
    try:
        for earlier in await platform.active(submission.earlier_ids[-MAX_PAGE_SIZE:]):
            submission.warn(f"The task was cleared; cancelling invocation {earlier.invocation_id}")
            await cancel_and_confirm(platform, earlier.invocation_id, _EARLIER_TIMEOUT)
    except (PlatformError, TimeoutError) as error:
        why = str(error) or "the platform did not confirm its cancel"
        submission.warn(f"An earlier invocation may still be running: {why}")
