"""Sends what a task asks for: first all that is wrong with it, at once; then once, whoever sends it again."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .. import models
from ..exceptions import InvocationError, RequestRefusedError, platform_task_error
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
from .idempotency import invoke_idempotent
from .validation import read_arguments, request_of

if TYPE_CHECKING:
    from ..models import DagRunProvenance, InvocationRecord

#: Seconds for which a request that invokes is repeated while the platform is out of reach. After that the
#: task fails, and its retry sends the same request.
SUBMIT_PATIENCE = 120.0

#: Seconds that a cleared task waits for the end of what it had invoked before.
_EARLIER_PATIENCE = 15.0


@dataclass(frozen=True, slots=True)
class InvocationSubmission:
    """What one try of a task asks for, and under which identity."""

    #: The task, for messages.
    place: str
    #: The operator's arguments about the request, rendered.
    arguments: Mapping[str, object]
    provenance: DagRunProvenance
    #: What this try's invocation may be known as, in order (`invoke_idempotent`).
    idempotency_ids: Sequence[str]
    #: What the task invoked before it was cleared is known as; what of it still goes on is cancelled.
    earlier_ids: Sequence[str] = ()
    #: Names of parameters that may change from one try to the next.
    volatile_parameters: Collection[str] = ()
    #: Seconds for which the platform may be out of reach.
    patience: float = SUBMIT_PATIENCE
    #: Hears what the task's log should say.
    warn: Callable[[str], object] = lambda _: None


async def submit(
    platform: Platform,
    submission: InvocationSubmission,
    tell: Callable[[str], object] = lambda _: None,
) -> InvocationRecord:
    """Find this try's invocation, or start it; `tell` hears its id at once.

    Raises:
        RequestRefusedError: all that is wrong with the arguments; nothing was sent.
        PlatformError: as the platform's methods do.
    """
    provenance, patience = submission.provenance, submission.patience
    values, problems = read_arguments(submission.arguments)
    problems += run_id_problems(provenance.run_id)
    if "action" in values:
        name = values["action"]
        try:
            action = await retry_transient(lambda: platform.get_action(name), patience)
        except PlatformError as error:
            if not problems:
                raise
            if isinstance(error, PermanentError):
                problems.append(str(error))
        else:
            fitted, signature_errors = models.coerce_parameters(action, values.get("parameters") or {})
            if signature_errors:
                declared = f"the action declares: {action.declared_parameters}"
                problems.append(f"argument 'parameters': {'; '.join([*signature_errors, declared])}")
            elif fitted:
                values["parameters"] = fitted
    if problems:
        shown = submission.arguments.get("action")
        raise RequestRefusedError(
            f"action {shown!r} was not invoked: {submission.place}: {'; '.join(problems)}",
            action=shown if isinstance(shown, str) else None,
        )
    request = request_of(values, provenance)
    await _cancel_earlier(platform, submission)
    record = await retry_transient(
        lambda: invoke_idempotent(
            platform,
            values["action"],
            request,
            submission.idempotency_ids,
            provenance.try_number,
            submission.volatile_parameters,
        ),
        patience,
    )
    tell(record.invocation_id)
    return record


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
    """Cancel what this task had invoked before it was cleared, if that still goes on.

    The trigger that waited for it can't be relied on for that: Airflow drops one that no triggerer has
    begun, and runs the cleared task before it tells the old trigger.
    """
    if not submission.earlier_ids:
        return
    try:
        for earlier in await platform.active(submission.earlier_ids[-MAX_PAGE_SIZE:]):
            submission.warn(f"the task was cleared, cancelling invocation {earlier.invocation_id}")
            await cancel_and_confirm(platform, earlier.invocation_id, _EARLIER_PATIENCE)
    except (PlatformError, TimeoutError) as error:
        why = str(error) or "its cancel isn't confirmed"
        submission.warn(f"an earlier invocation may still go on: {why}")
