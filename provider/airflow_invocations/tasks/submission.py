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
    CannotStopError,
    ConflictError,
    PermanentError,
    Platform,
    PlatformError,
    RequestConflictError,
    TransientError,
    UnavailableError,
    UnsupportedError,
)
from ..platforms.retry import retry_transient
from ..waiters import cancel_and_confirm
from .idempotency import TaskInvocationKey, has_failed, invoke_idempotent
from .incarnation import Origin, origin_of
from .validation import REQUEST_ARGUMENTS, read_arguments, request_of

if TYPE_CHECKING:
    from ..models import DagRunProvenance, InvocationRecord, InvocationRequest

#: Seconds to repeat the request that invokes while the platform is unavailable. After that the task fails,
#: and its retry sends the same request.
_SUBMIT_TIMEOUT = 120.0

#: Ids beyond those that failed invocations of earlier tries may have, for invocations from before a clear.
_SPARE_IDS = 8

#: The number of invocations of one task instance that are looked at, newest first.
_MOST_EARLIER = 200


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
    :param earlier_ids: the ids of invocations from before the task was cleared, for platforms that can't
        search by provenance.
    :param first_try: the try with which this incarnation is assumed to begin (`origin_of`).
    :param cancels_earlier: whether to cancel active invocations of earlier tries that nothing continues with.
    :param is_durable: whether retries continue with the invocation of the previous try.
    :param volatile_parameters: names of parameters that may change from one try to the next.
    :param outage_limit: seconds for which the platform may be unavailable.
    :param warn: writes a warning into the task's log.
    """

    task_label: str
    arguments: Mapping[str, object]
    provenance: DagRunProvenance
    idempotency_ids: Sequence[str]
    earlier_ids: Sequence[str]
    first_try: int
    cancels_earlier: bool
    is_durable: bool
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
        first_try: int,
        warn: Callable[[str], object],
    ) -> InvocationSubmission:
        """Return the submission of a task's try.

        :param key: identifies the task instance over its retries.
        :param first_try: the try with which this incarnation is assumed to begin.
        """
        tries = provenance.try_number
        cancels = task.wait and task.cancel_on_kill
        return cls(
            task_label=task_label,
            arguments={name: getattr(task, name) for name in REQUEST_ARGUMENTS},
            provenance=provenance.model_copy(update={"is_detached": not cancels}),
            idempotency_ids=idempotency_ids(
                key, tries, provenance.instance_id, is_durable=task.durable, spare=_SPARE_IDS
            ),
            earlier_ids=key.earlier_ids(tries),
            first_try=first_try,
            cancels_earlier=cancels,
            is_durable=task.durable,
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
    key: TaskInvocationKey, try_number: int, instance_id: object, *, is_durable: bool, spare: int = 0
) -> list[str]:
    """Return the ids that the invocation of a task's try may have, in order.

    :param try_number: 0 for `airflow tasks test`, which must not adopt, and then cancel, the invocation of a
        real try.
    :param instance_id: Airflow's id of this try.
    :param is_durable: whether retries continue with the invocation of the previous try.
    :param spare: ids to add to those that failed invocations of earlier tries may have.
    """
    if try_number == 0:
        return [f"airflow-test-{uuid.uuid4()}"]
    return key.idempotency_ids(max(1, try_number) + spare) if is_durable else [str(instance_id)]


async def submit(platform: Platform, submission: InvocationSubmission) -> InvocationRecord:
    """Return this try's invocation; start it if there is none.

    Before the arguments are checked, the active invocations from before a clear are cancelled: this try may
    be the only process that knows of them.

    :raises RequestRejectedError: the arguments are invalid; the message has all problems. Nothing was sent.
    :raises UnavailableError: an invocation from before a clear could not be cancelled; nothing was invoked.
    :raises PlatformError: as the platform's methods do.
    """
    ids = [*await end_earlier(platform, submission), *submission.idempotency_ids]
    request = await _checked_request(platform, submission)

    async def reject_stale(record: InvocationRecord) -> bool:
        if _origin(record, submission) is not Origin.Earlier:
            return False
        if submission.cancels_earlier and not record.current.status.is_terminal:
            await _end(platform, record.invocation_id, submission)
        return True

    return await retry_transient(
        lambda: invoke_idempotent(
            platform,
            str(submission.action),
            request,
            dict.fromkeys(ids),
            submission.provenance.try_number,
            submission.volatile_parameters,
            reject_stale,
        ),
        submission.outage_limit,
    )


async def end_earlier(
    platform: Platform, submission: InvocationSubmission, *, is_left: bool = False
) -> list[str]:
    """Cancel this task's active invocations that no try continues with, and wait until they have ended.

    Their triggers may not do so: Airflow deletes a trigger that no triggerer has started, and runs the
    cleared task before it notifies the old trigger.

    :param is_left: this try uses another platform, so it continues with no invocation of this one.
    :return: the idempotency id of the invocation that this try continues with, if there is one.
    :raises UnavailableError: one of them is still active.
    :raises PlatformError: as the platform's methods do.
    """
    if submission.provenance.try_number <= 1:
        return []
    try:
        records = await retry_transient(lambda: _records(platform, submission), submission.outage_limit)
    except UnsupportedError:
        await _end_by_ids(platform, submission)
        return []
    continues = submission.is_durable and not is_left
    own = [one for one in records if _origin(one, submission) is Origin.Own]
    if submission.cancels_earlier:
        for record in records:
            origin = _origin(record, submission)
            is_unwanted = origin is Origin.Earlier or (
                origin is Origin.Own and not continues and not _is_by_this_try(record, submission)
            )
            if is_unwanted and not record.current.status.is_terminal:
                await _end(platform, record.invocation_id, submission)
    if not continues or not own or own[0].idempotency_id is None:
        return []
    goes_on = _is_by_this_try(own[0], submission) or not has_failed(own[0])
    return [own[0].idempotency_id] if goes_on else []


async def _records(platform: Platform, submission: InvocationSubmission) -> list[InvocationRecord]:
    """Return the invocations of all tries of this task instance, newest first."""
    mine = submission.provenance
    return await platform.find(
        mine.dag_id, mine.run_id, mine.task_id, mine.map_index, _MOST_EARLIER, mine.iteration
    )


def _origin(record: InvocationRecord, submission: InvocationSubmission) -> Origin:
    return origin_of(record.provenance.source.source_id, submission.provenance, submission.first_try)


def _is_by_this_try(record: InvocationRecord, submission: InvocationSubmission) -> bool:
    started_by = models.task_instance_of(record.provenance.source.source_id)
    return started_by is not None and started_by.instance_id == submission.provenance.instance_id


async def _end_by_ids(platform: Platform, submission: InvocationSubmission) -> None:
    """Cancel the active invocations of the ids of earlier incarnations, without a search by provenance."""
    if not submission.cancels_earlier or not submission.earlier_ids:
        return
    ids = submission.earlier_ids[-MAX_PAGE_SIZE:]
    for earlier in await retry_transient(lambda: platform.active(ids), submission.outage_limit):
        await _end(platform, earlier.invocation_id, submission)


async def _end(platform: Platform, invocation_id: str, submission: InvocationSubmission) -> None:
    submission.warn(f"No try continues with invocation {invocation_id}, which is active; cancelling it")
    try:
        await cancel_and_confirm(platform, invocation_id, submission.outage_limit)
    except CannotStopError as error:
        submission.warn(f"An earlier invocation goes on: {error}")
    except TimeoutError:
        raise UnavailableError(
            f"the platform did not confirm the cancel of invocation {invocation_id}, which an earlier try "
            "of this task started"
        ) from None


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
            what = f"action {action!r}: the platform doesn't respond; a retry sends the request again"
    return platform_task_error(error, what, action=action, hint="; ".join(hints))
