"""What a sensor waits for, looked at once or waited for: the same verdict in a worker and in a triggerer."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeVar

from ..exceptions import (
    InvocationFailedError,
    RequestRefusedError,
    exception_class_for,
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
    Outlook,
    WaitAbandoned,
    WaitOptions,
    client_of,
    endings,
    follow,
    outlook,
    record_of,
    retry_refusals,
)

if TYPE_CHECKING:
    from ..models import InvocationRecord

T = TypeVar("T")

_EVER = datetime.datetime.min.replace(tzinfo=datetime.UTC)

#: Failed invocations that a message names.
_NAMED = 5


@dataclass(frozen=True, slots=True)
class Wish:
    """These invocations, so many of them Completed; or the newest of an action that is created since then."""

    ids: tuple[str, ...] = ()
    wanted: int = 1
    action: str | None = None
    since: datetime.datetime = _EVER
    #: Seconds between two looks, where the platform doesn't push, and for which it may be out of reach.
    poll_interval: float = 5.0
    outage_limit: float = OUTAGE_LIMIT
    #: Whether the platform has answered a look before, so that a refusal of credentials may be an outage.
    accepted: bool = False

    def __str__(self) -> str:
        """Return what the sensor waits for, in words for the task's log."""
        if self.action is not None:
            since = f" created since {self.since.astimezone(datetime.UTC):%Y-%m-%d %H:%M:%S} UTC"
            return f"the newest invocation of {self.action!r}{since}"
        if len(self.ids) == 1:
            return f"invocation {self.ids[0]}"
        return f"{self.wanted} of {counted(len(self.ids), 'invocation')}: {ids_named(self.ids)}"

    def waiting(self, invocation_id: str, outage_limit: float | None = None) -> WaitOptions:
        """The wait for one of them; killing the task, or its time, doesn't cancel it."""
        limit = self.outage_limit if outage_limit is None else outage_limit
        return WaitOptions(
            invocation_id,
            poll_interval=self.poll_interval,
            outage_limit=limit,
            lines=None,
            cancels=False,
            accepted=self.accepted,
        )


@dataclass(slots=True)
class Looked:
    """What one look has found: each invocation's status (None: lost), and the records that it met."""

    statuses: dict[str, InvocationStatus | None] = field(default_factory=dict)
    records: dict[str, InvocationRecord] = field(default_factory=dict)


async def is_granted(connect: Connect, wish: Wish, outage_limit: float = 0.0) -> list[str] | None:
    """Look once: the ids of those that are Completed, if these are enough; None: not yet.

    Raises:
        InvocationError: it can't be any more; by what has happened.
        WaitAbandoned: the platform can't be asked: out of reach for `outage_limit` seconds, or it refuses.
    """
    looked = await _look(connect, wish, outage_limit)
    if wish.action is not None and not looked.statuses:
        return None
    known = {name: InvocationStatus.Failed if one is None else one for name, one in looked.statuses.items()}
    match outlook(known.values(), wish.wanted):
        case Outlook.Open:
            return None
        case Outlook.Enough:
            return [name for name, status in known.items() if status is InvocationStatus.Completed]
    await _raise_hopeless(connect, wish, looked)
    return None


async def wait_until_it_may_be_granted(connection: str, connect: Connect, wish: Wish) -> None:
    """Return when a look is worth while: enough have completed, too many have failed, or a newest has ended.

    Raises:
        WaitAbandoned: the platform was out of reach for too long, or refuses.
    """
    if wish.action is not None:
        await _wait_for_newest(connection, connect, wish)
        return
    statuses: dict[str, InvocationStatus] = dict.fromkeys(wish.ids, InvocationStatus.Queued)
    async for ending in endings(connection, connect, [wish.waiting(one) for one in wish.ids]):
        if ending.given_up is not None and ending.given_up.reason is not AbandonReason.Lost:
            raise ending.given_up
        record = ending.record
        statuses[ending.invocation_id] = record.current.status if record else InvocationStatus.Failed
        if outlook(statuses.values(), wish.wanted) is not Outlook.Open:
            return


async def _wait_for_newest(connection: str, connect: Connect, wish: Wish) -> None:
    while (record := await _newest(connect, wish, wish.outage_limit)) is None:
        wish = replace(wish, accepted=True)
        await asyncio.sleep(wish.poll_interval)
    if not record.current.status.is_terminal:
        waiting = replace(wish, accepted=True).waiting(record.invocation_id)
        async for _ in follow(connection, connect, waiting):
            pass


async def _look(connect: Connect, wish: Wish, outage_limit: float) -> Looked:
    looked = Looked()
    if wish.action is not None:
        newest = await _newest(connect, wish, outage_limit)
        if newest is not None:
            _take(looked, newest)
    elif len(wish.ids) == 1:
        _take(looked, await record_of(connect, wish.waiting(wish.ids[0], outage_limit)))
    else:
        looked.statuses = dict.fromkeys(wish.ids)
        looked.statuses |= await _statuses(connect, wish, outage_limit)
        for missing in [name for name, status in looked.statuses.items() if status is None]:
            try:
                _take(looked, await record_of(connect, wish.waiting(missing, outage_limit)))
            except WaitAbandoned as given_up:
                if given_up.reason is not AbandonReason.Lost:
                    raise
    return looked


def _take(looked: Looked, record: InvocationRecord) -> None:
    looked.statuses[record.invocation_id] = record.current.status
    looked.records[record.invocation_id] = record


async def _newest(connect: Connect, wish: Wish, outage_limit: float) -> InvocationRecord | None:
    async def ask() -> InvocationRecord | None:
        async with await client_of(connect) as platform:
            return await platform.newest(str(wish.action), wish.since)

    return await _asked(lambda: retry_transient(ask, outage_limit), wish)


async def _statuses(connect: Connect, wish: Wish, outage_limit: float) -> dict[str, InvocationStatus]:
    async def ask() -> dict[str, InvocationStatus]:
        found: dict[str, InvocationStatus] = {}
        async with await client_of(connect) as platform:
            for start in range(0, len(wish.ids), MAX_PAGE_SIZE):
                for one in await platform.statuses(wish.ids[start : start + MAX_PAGE_SIZE]):
                    found[one.invocation_id] = one.status
        return found

    return await _asked(lambda: retry_transient(ask, outage_limit), wish)


async def _asked(ask: Callable[[], Awaitable[T]], wish: Wish) -> T:
    """Return what the platform answers, asking again where it refuses credentials. Raises WaitAbandoned."""
    try:
        return await retry_refusals(ask, accepted=wish.accepted)
    except TransientError as error:
        raise WaitAbandoned(AbandonReason.Unreachable, f"the platform is out of reach: {error}") from error
    except (InvalidRequestError, UnsupportedError) as error:
        raise RequestRefusedError(str(error)) from error
    except UnauthorizedError as error:
        raise WaitAbandoned(
            AbandonReason.AccessLost if wish.accepted else AbandonReason.Refused, str(error)
        ) from error
    except PermanentError as error:
        raise WaitAbandoned(AbandonReason.Refused, str(error)) from error


async def _raise_hopeless(connect: Connect, wish: Wish, looked: Looked) -> None:
    """Say which of them have failed, and how the first of these did. Raises InvocationError."""
    failed = [
        name
        for name, status in looked.statuses.items()
        if status is None or (status.is_terminal and status is not InvocationStatus.Completed)
    ]
    first = failed[0]
    async with await connect() as platform:
        url = platform.url(first)
    if looked.statuses[first] is None:
        raise task_error(
            WaitAbandoned(AbandonReason.Lost, "the platform doesn't know it"), wish.action, first, url
        )
    record = looked.records.get(first) or await record_of(connect, wish.waiting(first))
    if len(looked.statuses) == 1:
        raise_unless_completed(record, url, [])
    named = ", ".join(f"{name} {looked.statuses[name] or 'Lost'}" for name in failed[:_NAMED])
    more = f" and {len(failed) - _NAMED} more" if len(failed) > _NAMED else ""
    kind = exception_class_for(record) or InvocationFailedError
    raise kind.of(
        record,
        url,
        [],
        why=f"{len(failed)} of {counted(len(looked.statuses), 'invocation')} can't complete any more, "
        f"{wish.wanted} should: {named}{more}; the first: {record.current.detail or record.current.status}",
    )


def ids_named(ids: Iterable[str]) -> str:
    """Ids for a message: a few of them, and how many more there are."""
    named = list(ids)
    return ", ".join(named[:_NAMED]) + (f" and {len(named) - _NAMED} more" if len(named) > _NAMED else "")
