"""Completion criteria of a sensor: check them once, or wait until a check may have another result."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

from ..exceptions import (
    InvocationFailedError,
    RequestRejectedError,
    exception_class_for,
    platform_task_error,
    raise_unless_completed,
    task_error,
)
from ..models import MAX_PAGE_SIZE, InvocationStatus
from ..models.text import counted
from ..platforms import (
    InvalidRequestError,
    PermanentError,
    TransientError,
    UnauthorizedError,
    UnsupportedError,
)
from ..platforms.retry import OUTAGE_LIMIT, retry_transient
from ..waiters import (
    AbandonReason,
    Connect,
    GroupOutcome,
    WaitAbandoned,
    WaitOptions,
    client_of,
    fetch_record,
    group_outcome,
    number_wanted,
    retry_rejections,
    wait_each,
    wait_until_terminal,
)
from .validation import read_arguments

if TYPE_CHECKING:
    from ..models import InvocationRecord

T = TypeVar("T")

_DISTANT_PAST = datetime.datetime.min.replace(tzinfo=datetime.UTC)

#: The largest number of invocations that a message names.
_NAMED = 5


@dataclass(frozen=True, slots=True)
class CompletionCriteria:
    """Which invocations must complete: some of `ids`, or the newest of `action` created since `since`."""

    ids: tuple[str, ...] = ()
    #: How many of them must complete.
    required: int = 1
    action: str | None = None
    since: datetime.datetime = _DISTANT_PAST
    #: Seconds between two requests where the platform doesn't push.
    poll_interval: float = 5.0
    #: Seconds for which the platform may be unavailable.
    outage_limit: float = OUTAGE_LIMIT
    #: Whether the platform has accepted the credentials before; a rejection may then be an outage.
    accepted: bool = False

    def __str__(self) -> str:
        """Return what the sensor waits for, in words for the task's log."""
        if self.action is not None:
            since = f" created since {self.since.astimezone(datetime.UTC):%Y-%m-%d %H:%M:%S} UTC"
            return f"the newest invocation of {self.action!r}{since}"
        if len(self.ids) == 1:
            return f"invocation {self.ids[0]}"
        return f"{self.required} of {counted(len(self.ids), 'invocation')}: {format_ids(self.ids)}"

    def wait_options(self, invocation_id: str, outage_limit: float | None = None) -> WaitOptions:
        """Return the options of a wait for one invocation, which a kill or a timeout doesn't cancel."""
        return WaitOptions(
            invocation_id,
            poll_interval=self.poll_interval,
            outage_limit=self.outage_limit if outage_limit is None else outage_limit,
            lines=None,
            cancels=False,
            accepted=self.accepted,
        )


def criteria_of(
    label: str, arguments: Mapping[str, object], poll_interval: float, dag_run: Any
) -> CompletionCriteria:
    """Return the criteria that a sensor's rendered arguments describe.

    :param label: the task, for messages.
    :param dag_run: its run; without `since`, the newest invocation counts from its data interval's start.
    :raises RequestRejectedError: names every problem.
    """
    given = {name: value for name, value in arguments.items() if value is not None}
    values, problems = read_arguments(given)
    ids: list[str] = []
    required = 1
    if "invocation_id" in values:
        ids = [values["invocation_id"]]
    elif "invocation_ids" in values:
        ids = values["invocation_ids"]
        try:
            required = number_wanted(values.get("wait_for", "all"), len(ids))
        except ValueError as error:
            problems.append(f"argument 'wait_for': {error}")
    if problems:
        raise RequestRejectedError(f"{label}: {'; '.join(problems)}")
    return CompletionCriteria(
        ids=tuple(ids),
        required=required,
        action=values.get("action"),
        since=values.get("since") or dag_run.data_interval_start or dag_run.run_after,
        poll_interval=poll_interval,
        outage_limit=values.get("outage_limit", OUTAGE_LIMIT),
    )


@dataclass(slots=True)
class Snapshot:
    """What one check found: each invocation's status (None: lost), and the records that it fetched."""

    statuses: dict[str, InvocationStatus | None] = field(default_factory=dict)
    records: dict[str, InvocationRecord] = field(default_factory=dict)

    def add(self, record: InvocationRecord) -> None:
        """Add an invocation's record and its status."""
        self.statuses[record.invocation_id] = record.current.status
        self.records[record.invocation_id] = record

    @property
    def failed(self) -> list[str]:
        """The ids of lost invocations and of those that ended without success."""
        return [
            invocation_id
            for invocation_id, status in self.statuses.items()
            if status is None or (status.is_terminal and status is not InvocationStatus.Completed)
        ]


async def check(
    connect: Connect, criteria: CompletionCriteria, outage_limit: float = 0.0
) -> list[str] | None:
    """Return the ids of the completed invocations if the criteria are met; None if they may still be met.

    :param outage_limit: seconds to retry while the platform is unavailable.
    :raises InvocationError: the criteria can't be met any more; the subclass says why.
    :raises WaitAbandoned: the platform was unavailable for too long, or rejects the request.
    """
    snapshot = await _take_snapshot(connect, criteria, outage_limit)
    if criteria.action is not None and not snapshot.statuses:
        return None
    known = {name: InvocationStatus.Failed if one is None else one for name, one in snapshot.statuses.items()}
    match group_outcome(known.values(), criteria.required):
        case GroupOutcome.Pending:
            return None
        case GroupOutcome.Met:
            return [name for name, status in known.items() if status is InvocationStatus.Completed]
    await _raise_failure(connect, criteria, snapshot)
    return None


async def wait_for_change(connection: str, connect: Connect, criteria: CompletionCriteria) -> None:
    """Return when a check may have a result: the criteria are met, can't be met, or a newest one has ended.

    :param connection: the connection's id; its waits share one watcher.
    :raises WaitAbandoned: the platform was unavailable for too long, or rejects the request.
    """
    if criteria.action is not None:
        await _wait_for_newest(connection, connect, criteria)
        return
    statuses: dict[str, InvocationStatus] = dict.fromkeys(criteria.ids, InvocationStatus.Queued)
    waits = [criteria.wait_options(one) for one in criteria.ids]
    async for ending in wait_each(connection, connect, waits):
        if ending.abandoned is not None and ending.abandoned.reason is not AbandonReason.Lost:
            raise ending.abandoned
        record = ending.record
        statuses[ending.invocation_id] = record.current.status if record else InvocationStatus.Failed
        if group_outcome(statuses.values(), criteria.required) is not GroupOutcome.Pending:
            return


async def _wait_for_newest(connection: str, connect: Connect, criteria: CompletionCriteria) -> None:
    while (record := await _newest(connect, criteria, criteria.outage_limit)) is None:
        criteria = replace(criteria, accepted=True)
        await asyncio.sleep(criteria.poll_interval)
    if not record.current.status.is_terminal:
        options = replace(criteria, accepted=True).wait_options(record.invocation_id)
        async for _ in wait_until_terminal(connection, connect, options):
            pass


async def _take_snapshot(connect: Connect, criteria: CompletionCriteria, outage_limit: float) -> Snapshot:
    snapshot = Snapshot()
    if criteria.action is not None:
        newest = await _newest(connect, criteria, outage_limit)
        if newest is not None:
            snapshot.add(newest)
    elif len(criteria.ids) == 1:
        snapshot.add(await fetch_record(connect, criteria.wait_options(criteria.ids[0], outage_limit)))
    else:
        snapshot.statuses = dict.fromkeys(criteria.ids)
        snapshot.statuses |= await _statuses(connect, criteria, outage_limit)
        for missing in [name for name, status in snapshot.statuses.items() if status is None]:
            try:
                snapshot.add(await fetch_record(connect, criteria.wait_options(missing, outage_limit)))
            except WaitAbandoned as abandoned:
                if abandoned.reason is not AbandonReason.Lost:
                    raise
    return snapshot


async def _newest(
    connect: Connect, criteria: CompletionCriteria, outage_limit: float
) -> InvocationRecord | None:
    async def fetch() -> InvocationRecord | None:
        async with await client_of(connect) as platform:
            return await platform.newest(str(criteria.action), criteria.since)

    what = f"the newest invocation of action {criteria.action!r} could not be fetched"
    return await _fetched(what, fetch, criteria, outage_limit)


async def _statuses(
    connect: Connect, criteria: CompletionCriteria, outage_limit: float
) -> dict[str, InvocationStatus]:
    async def fetch() -> dict[str, InvocationStatus]:
        found: dict[str, InvocationStatus] = {}
        async with await client_of(connect) as platform:
            for start in range(0, len(criteria.ids), MAX_PAGE_SIZE):
                for one in await platform.statuses(criteria.ids[start : start + MAX_PAGE_SIZE]):
                    found[one.invocation_id] = one.status
        return found

    return await _fetched("statuses could not be fetched", fetch, criteria, outage_limit)


async def _fetched(
    what: str, fetch: Callable[[], Awaitable[T]], criteria: CompletionCriteria, outage_limit: float
) -> T:
    """Return what `fetch` returns, retrying outages and rejected credentials.

    :param what: what failed, for a message.
    :raises RequestRejectedError: the request is invalid, or the platform doesn't support it.
    :raises WaitAbandoned: for any other error.
    """
    try:
        return await retry_rejections(
            lambda: retry_transient(fetch, outage_limit), accepted=criteria.accepted
        )
    except (InvalidRequestError, UnsupportedError) as error:
        raise platform_task_error(error, what, action=criteria.action) from error
    except TransientError as error:
        raise WaitAbandoned(AbandonReason.Unreachable, f"the platform is unavailable: {error}") from error
    except PermanentError as error:
        was_accepted = criteria.accepted and isinstance(error, UnauthorizedError)
        reason = AbandonReason.AccessLost if was_accepted else AbandonReason.Rejected
        raise WaitAbandoned(reason, str(error)) from error


async def _raise_failure(connect: Connect, criteria: CompletionCriteria, snapshot: Snapshot) -> None:
    """Raise the error of the first failed invocation; its message names the others."""
    failed = snapshot.failed
    first = failed[0]
    async with await connect() as platform:
        url = platform.url(first)
    if snapshot.statuses[first] is None:
        lost = WaitAbandoned(AbandonReason.Lost, "the platform doesn't know it")
        raise task_error(lost, criteria.action, first, url)
    record = snapshot.records.get(first) or await fetch_record(connect, criteria.wait_options(first))
    if len(snapshot.statuses) == 1:
        raise_unless_completed(record, url, [])
    named = format_ids(f"{name} {snapshot.statuses[name] or 'Lost'}" for name in failed)
    kind = exception_class_for(record) or InvocationFailedError
    raise kind.of(
        record,
        url,
        [],
        why=f"{len(failed)} of {counted(len(snapshot.statuses), 'invocation')} failed, but "
        f"{criteria.required} must complete: {named}; "
        f"first failure: {record.current.detail or record.current.status}",
    )


def format_ids(ids: Iterable[str]) -> str:
    """Return a few of the ids and the number of the others, for a message."""
    named = list(ids)
    return ", ".join(named[:_NAMED]) + (f" and {len(named) - _NAMED} more" if len(named) > _NAMED else "")
