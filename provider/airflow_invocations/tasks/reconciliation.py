"""Compare the active invocations of a platform with Airflow, and cancel those that nothing waits for."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from .. import models
from ..platforms import Platform, PlatformError
from ..waiters import cancel_and_confirm
from .cancellation import TERMINAL_STATES

if TYPE_CHECKING:
    from ..models import InvocationRecord, TaskInstanceReference

#: States of a task instance whose present try has begun.
_BEGUN_STATES = frozenset({"running", "deferred", "up_for_reschedule", "awaiting_input"})

#: The other states of a task instance that has not ended; "none" has no state yet, as after a clear.
_PENDING_STATES = frozenset({"none", "scheduled", "queued", "restarting", "up_for_retry"})

#: The DAG, run, task and map index of a task instance.
TaskKey: TypeAlias = tuple[str, str, str, int]

#: Runs an operation on an open client of the platform, as `InvocationHook.ask` does.
Ask: TypeAlias = Callable[[Callable[[Platform], Awaitable[Any]]], Any]


class Verdict(StrEnum):
    """What reconciliation decides about an active invocation."""

    #: A task instance waits for it, or will; or it goes on without its task.
    Wanted = "wanted"
    #: Its task was cleared, or waits for a later invocation.
    Superseded = "superseded"
    #: Its task instance has ended, or doesn't exist any more.
    Orphaned = "orphaned"
    #: Nothing certain can be said. It is left alone.
    Unknown = "unknown"
    #: It belongs to another Airflow. It is left alone.
    Foreign = "foreign"


#: The verdicts that lead to a cancel.
UNWANTED = frozenset({Verdict.Superseded, Verdict.Orphaned})


@dataclass(frozen=True, slots=True)
class TaskSnapshot:
    """What Airflow says about a task instance.

    :param state: "none" for a task instance without a state.
    :param try_number: None: not known, as for `max_tries` and `instance_id`.
    """

    state: str
    try_number: int | None = None
    max_tries: int | None = None
    instance_id: str | None = None


class TaskStates(Protocol):
    """Read task instances through a public interface of Airflow."""

    def read(self, references: Collection[TaskInstanceReference]) -> Mapping[TaskKey, TaskSnapshot]:
        """Return the task instances that exist; one that is left out certainly does not.

        :raises AirflowUnreadableError: Airflow doesn't answer, or not to this user.
        """

    def awaited(self, reference: TaskInstanceReference) -> str | None:
        """Return the id of the invocation that a task instance waits for; None: it has none.

        :raises AirflowUnreadableError: Airflow doesn't answer, or not to this user.
        """


class AirflowUnreadableError(Exception):
    """Airflow's task instances can't be read, so nothing may be cancelled."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one reconciliation of a connection.

    :param invocations: active invocations to look at.
    :param cancels: invocations to cancel; the next reconciliation continues.
    :param cancel_timeout: seconds to wait for the confirmation of each cancel.
    :param concurrency: cancels at the same time.
    :param pause: seconds between the starts of two cancels.
    """

    invocations: int = 10_000
    cancels: int = 500
    cancel_timeout: float = 60.0
    concurrency: int = 4
    pause: float = 0.1


@dataclass(frozen=True, slots=True)
class Finding:
    """An active invocation and what was decided about it.

    :param outcome: what became of the cancel; empty: nothing was cancelled.
    """

    invocation_id: str
    action: str
    source_id: str
    verdict: Verdict
    reason: str
    reference: TaskInstanceReference | None = None
    outcome: str = ""

    @property
    def is_left(self) -> bool:
        """Whether it is unwanted and was not cancelled."""
        return self.verdict in UNWANTED and self.outcome not in ("", CANCELLED, ENDED)


#: Outcomes of a cancel; others are the text of an error.
CANCELLED = "cancelled"
ENDED = "had ended"
NEXT_TIME = "left for the next reconciliation"


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """The result for one connection.

    :param is_complete: whether all active invocations were looked at, and all unwanted ones cancelled.
    """

    findings: Sequence[Finding]
    is_complete: bool

    def counts(self) -> dict[str, int]:
        """Return the number of findings by verdict, and of cancels that succeeded and failed."""
        verdicts = Counter(one.verdict.value for one in self.findings)
        return {
            **{verdict.value: verdicts[verdict.value] for verdict in Verdict},
            "cancelled": sum(one.outcome in (CANCELLED, ENDED) for one in self.findings),
            "failed": sum(one.is_left and one.outcome != NEXT_TIME for one in self.findings),
        }


def key_of(reference: TaskInstanceReference) -> TaskKey:
    """Return the key of the task instance that a reference names."""
    return (reference.dag_id, reference.run_id, reference.task_id, reference.map_index)


def decide(
    reference: TaskInstanceReference | None,
    deployment: str,
    task: TaskSnapshot | None,
    *,
    is_replaced: bool = False,
) -> tuple[Verdict, str]:
    """Decide about an active invocation; return the verdict and its reason.

    :param reference: the task instance and try that started it; None: its source is no such thing.
    :param deployment: which Airflow reconciles (`models.deployment_id`).
    :param task: None: the task instance doesn't exist.
    :param is_replaced: whether the task instance waits for an invocation that a later try has started.
    """
    if reference is None:
        return Verdict.Unknown, "its source can't be read"
    if reference.deployment is None:
        return Verdict.Unknown, "its source names no Airflow"
    if reference.deployment != deployment:
        return Verdict.Foreign, "another Airflow started it"
    if reference.is_detached:
        return Verdict.Wanted, "it goes on without its task"
    if task is None:
        return Verdict.Orphaned, "its task instance doesn't exist"
    if reference.region_id is not None:
        # Airflow's states are those of one iteration, which may be another one.
        return Verdict.Unknown, "its task is in a loop"
    if task.state in TERMINAL_STATES:
        return Verdict.Orphaned, f"its task is {task.state}"
    if task.state not in _BEGUN_STATES | _PENDING_STATES:
        return Verdict.Unknown, f"its task has the state {task.state!r}"
    return _decide_active(reference, task, is_replaced=is_replaced)


def _decide_active(
    reference: TaskInstanceReference, task: TaskSnapshot, *, is_replaced: bool
) -> tuple[Verdict, str]:
    """Decide about an invocation whose task instance has not ended."""
    if reference.instance_id is not None and reference.instance_id == task.instance_id:
        return Verdict.Wanted, f"its task is {task.state}"
    knows_both = None not in (reference.max_tries, task.max_tries)
    if knows_both and reference.max_tries != task.max_tries:
        return Verdict.Superseded, "its task was cleared"
    if is_replaced:
        return Verdict.Superseded, "its task waits for a later invocation"
    if task.try_number is None:
        return Verdict.Wanted, f"its task is {task.state}"
    if reference.try_number > task.try_number:
        return Verdict.Unknown, "Airflow knows no such try of its task"
    is_other = None not in (reference.instance_id, task.instance_id)
    if is_other and reference.try_number == task.try_number and task.state in _BEGUN_STATES:
        return Verdict.Superseded, "its DAG run was deleted and created again"
    return Verdict.Wanted, f"its task is {task.state}"


def reconcile(
    ask: Ask, base_url: str, states: TaskStates, *, dry_run: bool = False, limits: Limits = Limits()
) -> Reconciliation:
    """Cancel a connection's active invocations that no task of this Airflow waits for.

    Reads the platform first and Airflow afterwards, so that a task that has just begun is seen. Before it
    cancels, it reads Airflow again and drops what is not unwanted any more. It can run twice at the same
    time: a cancel of an invocation that has ended changes nothing.

    :param ask: runs an operation on the platform.
    :param base_url: `[api] base_url` of this Airflow, by which its invocations are recognised.
    :param states: reads this Airflow's task instances.
    :param dry_run: decide, and cancel nothing.
    :raises AirflowUnreadableError: nothing was cancelled.
    :raises UnsupportedError: the platform can't find invocations by provenance.
    :raises PlatformError: the platform can't be read; nothing was cancelled.
    :raises ValueError: `base_url` is empty.
    """
    deployment = models.deployment_id(base_url)
    if deployment is None:
        raise ValueError(
            "[api] base_url isn't set; invocations name the Airflow that started them by its base URL"
        )
    records: list[InvocationRecord] = ask(lambda platform: platform.find_active(limits.invocations))
    findings = _decide_all([_finding(record) for record in records], deployment, states)
    is_complete = len(records) < limits.invocations
    affected = {key_of(one.reference) for one in findings if one.reference and one.verdict in UNWANTED}
    if dry_run or not affected:
        return Reconciliation(findings, is_complete)
    again = [one for one in findings if one.reference and key_of(one.reference) in affected]
    confirmed = {one.invocation_id: one for one in _decide_all(again, deployment, states)}
    findings = [confirmed.get(one.invocation_id, one) for one in findings]
    unwanted = [one for one in findings if one.verdict in UNWANTED]
    due, later = unwanted[: limits.cancels], unwanted[limits.cancels :]
    ended: list[Finding] = ask(lambda platform: _cancel_all(platform, due, limits))
    ended += [replace(one, outcome=NEXT_TIME) for one in later]
    by_id = {one.invocation_id: one for one in ended}
    return Reconciliation([by_id.get(one.invocation_id, one) for one in findings], is_complete and not later)


def _finding(record: InvocationRecord) -> Finding:
    source_id = record.provenance.source.source_id
    return Finding(
        record.invocation_id,
        record.provenance.action.name,
        source_id,
        Verdict.Unknown,
        "",
        models.task_instance_of(source_id),
    )


def _decide_all(findings: Sequence[Finding], deployment: str, states: TaskStates) -> list[Finding]:
    """Return the findings with the verdicts of now. Reads each task instance once, and no foreign one."""
    own = [one.reference for one in findings if one.reference and one.reference.deployment == deployment]
    waiting = [one for one in own if not one.is_detached]
    tasks = states.read(waiting) if waiting else {}
    replaced = _replaced(findings, deployment, tasks, states)
    decided: list[Finding] = []
    for one in findings:
        task = tasks.get(key_of(one.reference)) if one.reference else None
        verdict, reason = decide(one.reference, deployment, task, is_replaced=one.invocation_id in replaced)
        decided.append(replace(one, verdict=verdict, reason=reason))
    return decided


def _replaced(
    findings: Sequence[Finding],
    deployment: str,
    tasks: Mapping[TaskKey, TaskSnapshot],
    states: TaskStates,
) -> set[str]:
    """Return the invocations whose task instance waits for one that a later try has started.

    Only task instances with several active invocations are asked which one they wait for.
    """
    by_task: dict[TaskKey, list[tuple[int, Finding]]] = {}
    for one in findings:
        reference = one.reference
        if reference and reference.deployment == deployment and not reference.is_detached:
            by_task.setdefault(key_of(reference), []).append((reference.try_number, one))
    replaced: set[str] = set()
    for key, several in by_task.items():
        if len(several) < 2 or key not in tasks or tasks[key].state in TERMINAL_STATES:
            continue
        reference = several[0][1].reference
        awaited = states.awaited(reference) if reference else None
        tries = [number for number, one in several if one.invocation_id == awaited]
        replaced |= {one.invocation_id for number, one in several if tries and number < tries[0]}
    return replaced


async def _cancel_all(platform: Platform, findings: Sequence[Finding], limits: Limits) -> list[Finding]:
    """Cancel invocations and wait until the platform confirms; an error with one keeps none of the others."""
    slots = asyncio.Semaphore(limits.concurrency)

    async def cancel(position: int, finding: Finding) -> Finding:
        await asyncio.sleep(position * limits.pause)
        async with slots:
            return replace(finding, outcome=await _cancel(platform, finding.invocation_id, limits))

    return list(await asyncio.gather(*(cancel(*each) for each in enumerate(findings))))


async def _cancel(platform: Platform, invocation_id: str, limits: Limits) -> str:
    try:
        record = await cancel_and_confirm(platform, invocation_id, limits.cancel_timeout)
    except PlatformError as error:
        return str(error)
    except TimeoutError:
        return f"the platform did not confirm the cancel within {limits.cancel_timeout:g} s"
    is_cancelled = record is not None and record.current.status is models.InvocationStatus.Cancelled
    return CANCELLED if is_cancelled else ENDED
