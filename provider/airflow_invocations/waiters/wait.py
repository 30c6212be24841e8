"""Waits for one invocation: its log lines as they come, its end, or why the wait was given up."""

from __future__ import annotations

import asyncio
import datetime
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from ..models import InvocationStatus
from ..platforms.errors import (
    NotFoundError,
    PlatformError,
    TransientError,
    UnauthorizedError,
)
from ..platforms.retry import OUTAGE_LIMIT, retry_transient
from .cancellation import cancel_and_confirm
from .log_relay import LogQueue
from .refusal import Connect, client_of, retry_refusals
from .watcher import (
    LOST_AFTER,
    LOST_PAUSE,
    Behind,
    Crashed,
    Ended,
    Gone,
    Hub,
    Lines,
    Notice,
    Refused,
    Step,
    Unreachable,
    Wait,
)

if TYPE_CHECKING:
    from ..models import InvocationRecord

#: How often a watcher may break under one wait, and the pause before the next one is joined, in seconds.
CRASHES = 5
CRASH_PAUSE = 1.0

#: Seconds that a wait which has run out of time spends on a last look, and on the cancel.
LAST_LOOK = 5.0
CANCEL_PATIENCE = 60.0


class AbandonReason(StrEnum):
    """Why a wait ended before the invocation did."""

    #: The task's time is over; the invocation is cancelled.
    TimedOut = "timed_out"
    #: It stayed Queued for too long; it is cancelled.
    QueuedTooLong = "queued_too_long"
    #: The platform was out of reach for too long; the invocation may well go on.
    Unreachable = "unreachable"
    #: The platform doesn't accept the credentials; the invocation may well go on.
    Refused = "refused"
    #: The platform rejects credentials that it had accepted before; a retry may succeed.
    AccessLost = "access_lost"
    #: The platform doesn't know the invocation any more.
    Lost = "lost"


class WaitAbandoned(Exception):
    """The wait is over, and the invocation's end isn't known.

    Attributes:
        reason: why.
        detail: the same in words.
        is_cancelled: whether the platform has confirmed that the invocation is cancelled.
    """

    def __init__(self, reason: AbandonReason, detail: str, *, is_cancelled: bool = False) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail
        self.is_cancelled = is_cancelled


@dataclass(frozen=True, slots=True)
class WaitOptions:
    """What one wait is for, and how long it is to last."""

    invocation_id: str
    #: Seconds between two looks, where the platform doesn't push.
    poll_interval: float
    #: Seconds for which the platform may be out of reach.
    outage_limit: float = OUTAGE_LIMIT
    #: Where to read on in the log.
    cursor: str | None = None
    #: The queue for log lines, which limits how many are read; None: don't read the log.
    lines: LogQueue | None = None
    #: When the time is over, and when it must not be Queued any more (seconds since 1970); None: never.
    deadline: float | None = None
    queue_deadline: float | None = None
    #: The timeouts in seconds, for messages; None: not known.
    execution_timeout: float | None = None
    queue_timeout: float | None = None
    #: Whether the invocation is cancelled then.
    cancels: bool = True
    #: Whether the platform has accepted the credentials before; true if the task itself invoked.
    accepted: bool = False

    @property
    def timed_out(self) -> str:
        """Which timeout has passed, and how long it is, for messages."""
        return f"timed out{_after(self.execution_timeout)} (execution_timeout)"

    @property
    def queued_too_long(self) -> str:
        """The `queue_timeout` that has passed, for messages."""
        return f"still Queued{_after(self.queue_timeout)} (queue_timeout)"


def _after(seconds: float | None) -> str:
    return "" if seconds is None else f" after {seconds:g} s"


async def follow(
    connection: str, connect: Connect, waiting: WaitOptions
) -> AsyncIterator[Lines | Notice | Behind]:
    """Yield an invocation's new log lines, and what there is to be said, until it has ended.

    All waits of one `connection` in this event loop share one watcher. A failed poll is no verdict, and
    trouble with the logs never ends the wait. Lines for which there was no room are still unread at the end:
    read on from the last cursor.

    Raises:
        WaitAbandoned: time is over, or the platform can't be asked any more.
        Exception: the watcher broke `CRASHES` times under this wait; this is what broke it last.
    """
    cursor = waiting.cursor
    clock = _Clock(connect, waiting)
    for crash in range(CRASHES):
        wait = Wait(
            waiting.invocation_id,
            poll_interval=waiting.poll_interval,
            outage_limit=waiting.outage_limit,
            cursor=cursor,
            lines=waiting.lines,
            accepted=waiting.accepted,
        )
        watcher = Hub.here().join(connection, connect, wait)
        try:
            broken: Exception | None = None
            while broken is None:
                for step in await clock.steps_of(wait):
                    match step:
                        case Lines():
                            cursor = step.cursor
                            yield step
                        case Notice() | Behind():
                            yield step
                        case Ended():
                            return
                        case Crashed(error):
                            broken = error
                        case Unreachable() | Refused() | Gone():
                            raise _given_up(step, waiting)
        finally:
            watcher.leave(wait)
        if crash == CRASHES - 1:
            raise broken
        await asyncio.sleep(CRASH_PAUSE * 2**crash)


async def record_of(connect: Connect, waiting: WaitOptions) -> InvocationRecord:
    """An invocation's record, from which every verdict is taken.

    Raises:
        WaitAbandoned: the platform was out of reach for too long, refuses, or doesn't know the invocation.
    """
    began = time.time()
    unknown = 0

    async def get() -> InvocationRecord:
        async with await client_of(connect) as platform:
            return await platform.get(waiting.invocation_id)

    async def outlast_outage() -> InvocationRecord:
        return await retry_transient(get, waiting.outage_limit)

    while True:
        try:
            return await retry_refusals(outlast_outage, accepted=waiting.accepted)
        except TransientError as error:
            raise _given_up(Unreachable(began, str(error)), waiting) from error
        except NotFoundError as error:
            unknown += 1
            if unknown == LOST_AFTER:
                raise _given_up(Gone(), waiting) from error
            await asyncio.sleep(LOST_PAUSE)
        except UnauthorizedError as error:
            raise _given_up(Refused(str(error), waiting.accepted), waiting) from error


class _Clock:
    """Hands on a wait's steps until its time is over, and then sees to the invocation."""

    def __init__(self, connect: Connect, waiting: WaitOptions) -> None:
        self._connect = connect
        self._waiting = waiting
        self._queue_deadline = waiting.queue_deadline

    async def steps_of(self, wait: Wait) -> list[Step]:
        """What has happened; at the latest when a deadline has passed."""
        try:
            async with asyncio.timeout(self._remaining()):
                return await wait.steps()
        except TimeoutError:
            return await self._on_deadline()

    def _remaining(self) -> float | None:
        deadlines = [one for one in (self._waiting.deadline, self._queue_deadline) if one is not None]
        return max(0.0, min(deadlines) - time.time()) if deadlines else None

    async def _on_deadline(self) -> list[Step]:
        """Look once more before anything is declared over; then cancel, and look what came of that."""
        status = await self._last_look()
        if status is not None and status.is_terminal:
            return [Ended(status)]
        reason = AbandonReason.TimedOut
        if self._waiting.deadline is None or time.time() < self._waiting.deadline:
            if status is not InvocationStatus.Queued:
                # It left the queue in time, or can't be asked for; then the outage decides.
                self._queue_deadline = None if status is not None else time.time() + LAST_LOOK
                return []
            reason = AbandonReason.QueuedTooLong
        what = self._waiting.timed_out if reason is AbandonReason.TimedOut else self._waiting.queued_too_long
        invocation = f"invocation {self._waiting.invocation_id}"
        if not self._waiting.cancels:
            raise WaitAbandoned(reason, what)
        try:
            async with await self._connect() as platform:
                record = await cancel_and_confirm(platform, self._waiting.invocation_id, CANCEL_PATIENCE)
        except Exception as error:
            why = error or "no answer"
            raise WaitAbandoned(reason, f"{what}; {invocation} could not be cancelled: {why}") from error
        if record is not None and record.current.status is InvocationStatus.Completed:
            return [Ended(record.current.status)]
        raise WaitAbandoned(reason, f"{what}; {invocation} cancelled", is_cancelled=True)

    async def _last_look(self) -> InvocationStatus | None:
        try:
            async with asyncio.timeout(LAST_LOOK), await client_of(self._connect) as platform:
                return (await platform.get(self._waiting.invocation_id)).current.status
        except (PlatformError, TimeoutError):
            return None


def _given_up(step: Unreachable | Refused | Gone, waiting: WaitOptions) -> WaitAbandoned:
    match step:
        case Unreachable(since, error):
            began = datetime.datetime.fromtimestamp(since, datetime.UTC)
            return WaitAbandoned(
                AbandonReason.Unreachable,
                f"the platform has been out of reach since {began:%Y-%m-%d %H:%M:%S} UTC, longer than "
                f"{waiting.outage_limit:g} s: {error}",
            )
        case Refused(error, were_accepted):
            return WaitAbandoned(AbandonReason.AccessLost if were_accepted else AbandonReason.Refused, error)
        case Gone():
            return WaitAbandoned(AbandonReason.Lost, "the platform doesn't know it any more")
