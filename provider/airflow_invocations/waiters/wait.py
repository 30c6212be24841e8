"""Wait for one invocation: yield its log lines until it ends, or say why the wait was abandoned."""

from __future__ import annotations

import asyncio
import datetime
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from ..models import InvocationStatus, NewLines, StatusSnapshot
from ..platforms.errors import NotFoundError, PlatformError, TransientError, UnauthorizedError
from ..platforms.retry import OUTAGE_LIMIT, retry_transient
from .cancellation import cancel_and_confirm
from .log_relay import LogQueue
from .rejection import Connect, client_of, retry_rejections
from .wait_handle import (
    LOST_AFTER,
    LOST_PAUSE,
    Behind,
    Crashed,
    Gone,
    Notice,
    Rejected,
    Unreachable,
    WaitHandle,
    WaitMessage,
)

if TYPE_CHECKING:
    from ..models import InvocationRecord

#: How often a watcher may fail during one wait, and the pause before the next one is joined, in seconds.
CRASHES = 5
CRASH_PAUSE = 1.0

#: After a wait's deadline: seconds to fetch the status once more, and to cancel the invocation.
LAST_FETCH_TIMEOUT = 5.0
CANCEL_TIMEOUT = 60.0


class AbandonReason(StrEnum):
    """Why a wait ended before the invocation did."""

    #: The task's deadline has passed; the invocation is cancelled.
    TimedOut = "timed_out"
    #: The invocation was Queued for too long; it is cancelled.
    QueuedTooLong = "queued_too_long"
    #: The platform was unavailable for too long; the invocation may still be running.
    Unreachable = "unreachable"
    #: The platform rejects the credentials; the invocation may still be running.
    Rejected = "rejected"
    #: The platform rejects credentials that it had accepted before; a retry may succeed.
    AccessLost = "access_lost"
    #: The platform does not know the invocation any more.
    Lost = "lost"


class WaitAbandoned(Exception):
    """The wait has ended, and the invocation's end is not known.

    Attributes:
        reason: why the wait ended.
        detail: the reason as text.
        is_cancelled: whether the platform has confirmed that the invocation is cancelled.
    """

    def __init__(self, reason: AbandonReason, detail: str, *, is_cancelled: bool = False) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail
        self.is_cancelled = is_cancelled


@dataclass(frozen=True, slots=True)
class WaitOptions:
    """The invocation to wait for, and the limits of the wait.

    :param poll_interval: seconds between two polls, where the platform doesn't push.
    :param outage_limit: seconds for which the platform may be unavailable.
    :param cursor: where to resume reading the log; None: the beginning.
    :param lines: the queue for log lines, which limits how many are read; None: don't read the log.
    :param deadline: when the wait ends, in seconds since 1970; None: never.
    :param queue_deadline: when the wait ends if the invocation is still Queued, in seconds since 1970.
    :param execution_timeout: the timeout behind `deadline` in seconds, for messages; None: not known.
    :param queue_timeout: the timeout behind `queue_deadline` in seconds, for messages; None: not known.
    :param cancels: whether to cancel the invocation at a deadline.
    :param accepted: whether the platform has accepted the credentials before, for example to invoke.
    """

    invocation_id: str
    poll_interval: float
    outage_limit: float = OUTAGE_LIMIT
    cursor: str | None = None
    lines: LogQueue | None = None
    deadline: float | None = None
    queue_deadline: float | None = None
    execution_timeout: float | None = None
    queue_timeout: float | None = None
    cancels: bool = True
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


async def wait_until_terminal(
    connection: str, connect: Connect, options: WaitOptions
) -> AsyncIterator[NewLines | Notice | Behind]:
    """Yield an invocation's new log lines and notices until it has a terminal status.

    All waits of one `connection` in this event loop share one watcher. A failed poll is never a verdict, and
    an unreadable log never ends the wait. Lines for which there was no room remain unread at the end: resume
    from the last cursor.

    :param connect: opens a client, reading the connection each time.
    :raises WaitAbandoned: a deadline has passed, or the platform can't be asked any more.
    :raises Exception: the watcher failed `CRASHES` times during this wait; this is its last error.
    """
    from .watcher import WatcherRegistry  # DAG files import this module, and wait for nothing

    cursor = options.cursor
    deadlines = _Deadlines(connect, options)
    for crash in range(CRASHES):
        wait = WaitHandle(
            options.invocation_id,
            poll_interval=options.poll_interval,
            outage_limit=options.outage_limit,
            cursor=cursor,
            lines=options.lines,
            accepted=options.accepted,
        )
        watcher = WatcherRegistry.current().join(connection, connect, wait)
        try:
            failure: Exception | None = None
            while failure is None:
                for message in await deadlines.messages(wait):
                    match message:
                        case NewLines():
                            cursor = message.cursor
                            yield message
                        case Notice() | Behind():
                            yield message
                        case StatusSnapshot():
                            return
                        case Crashed(error):
                            failure = error
                        case Unreachable() | Rejected() | Gone():
                            raise _abandoned(message, options)
        finally:
            watcher.leave(wait)
        if crash == CRASHES - 1:
            raise failure
        await asyncio.sleep(CRASH_PAUSE * 2**crash)


async def fetch_record(connect: Connect, options: WaitOptions) -> InvocationRecord:
    """Return an invocation's record, on which every verdict is based.

    :raises WaitAbandoned: the platform was unavailable for too long, rejects the credentials, or does not
        know the invocation.
    """
    began = time.time()
    unknown = 0

    async def get() -> InvocationRecord:
        async with await client_of(connect) as platform:
            return await platform.get(options.invocation_id)

    async def get_with_retries() -> InvocationRecord:
        return await retry_transient(get, options.outage_limit)

    while True:
        try:
            return await retry_rejections(get_with_retries, accepted=options.accepted)
        except TransientError as error:
            raise _abandoned(Unreachable(began, str(error)), options) from error
        except NotFoundError as error:
            unknown += 1
            if unknown == LOST_AFTER:
                raise _abandoned(Gone(), options) from error
            await asyncio.sleep(LOST_PAUSE)
        except UnauthorizedError as error:
            raise _abandoned(Rejected(str(error), options.accepted), options) from error


class _Deadlines:
    """Pass on a wait's messages until a deadline, then cancel the invocation."""

    def __init__(self, connect: Connect, options: WaitOptions) -> None:
        self._connect = connect
        self._options = options
        self._queue_deadline = options.queue_deadline

    async def messages(self, wait: WaitHandle) -> list[WaitMessage]:
        """Return the next messages of a wait, or how the invocation ended if a deadline passes first."""
        try:
            async with asyncio.timeout(self._remaining()):
                return await wait.messages()
        except TimeoutError:
            return await self._on_deadline()

    def _remaining(self) -> float | None:
        deadlines = [one for one in (self._options.deadline, self._queue_deadline) if one is not None]
        return max(0.0, min(deadlines) - time.time()) if deadlines else None

    async def _on_deadline(self) -> list[WaitMessage]:
        """Fetch the status once more; cancel the invocation unless it has ended."""
        status = await self._last_status()
        if status is not None and status.is_terminal:
            return [StatusSnapshot(self._options.invocation_id, status)]
        reason = AbandonReason.TimedOut
        if self._options.deadline is None or time.time() < self._options.deadline:
            if status is not InvocationStatus.Queued:
                # It left the queue in time, or its status can't be fetched and the outage limit decides.
                self._queue_deadline = None if status is not None else time.time() + LAST_FETCH_TIMEOUT
                return []
            reason = AbandonReason.QueuedTooLong
        what = self._options.timed_out if reason is AbandonReason.TimedOut else self._options.queued_too_long
        invocation = f"invocation {self._options.invocation_id}"
        if not self._options.cancels:
            raise WaitAbandoned(reason, what)
        try:
            async with await self._connect() as platform:
                record = await cancel_and_confirm(platform, self._options.invocation_id, CANCEL_TIMEOUT)
        except Exception as error:
            why = error or "no answer"
            raise WaitAbandoned(reason, f"{what}; {invocation} could not be cancelled: {why}") from error
        if record is not None and record.current.status is InvocationStatus.Completed:
            return [StatusSnapshot(record.invocation_id, record.current.status)]
        raise WaitAbandoned(reason, f"{what}; {invocation} cancelled", is_cancelled=True)

    async def _last_status(self) -> InvocationStatus | None:
        try:
            async with asyncio.timeout(LAST_FETCH_TIMEOUT), await client_of(self._connect) as platform:
                return (await platform.get(self._options.invocation_id)).current.status
        except (PlatformError, TimeoutError):
            return None


def _abandoned(message: Unreachable | Rejected | Gone, options: WaitOptions) -> WaitAbandoned:
    match message:
        case Unreachable(since, error):
            began = datetime.datetime.fromtimestamp(since, datetime.UTC)
            return WaitAbandoned(
                AbandonReason.Unreachable,
                f"the platform has been unavailable since {began:%Y-%m-%d %H:%M:%S} UTC, longer than "
                f"{options.outage_limit:g} s: {error}",
            )
        case Rejected(error, were_accepted):
            return WaitAbandoned(AbandonReason.AccessLost if were_accepted else AbandonReason.Rejected, error)
        case Gone():
            return WaitAbandoned(AbandonReason.Lost, "the platform doesn't know the invocation any more")
