"""Run one invocation for a task: submit it, follow it, conclude from its end, cancel it.

A worker and a triggerer host the same steps. A host differs in how it writes the action's log (`TaskLog`),
how it stores XComs, and how it ends the task.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from ..action_log import BEHIND, NOTHING_SHOWN, ActionLog, ShownLog
from ..exceptions import (
    RequestRejectedError,
    outputs_task_error,
    raise_unless_completed,
    task_error,
)
from ..models import InvocationStatus, NewLines
from ..platforms import Platform, PlatformError, UnsupportedError
from ..platforms.retry import retry_transient
from ..waiters import (
    LOG_SETTINGS,
    AbandonReason,
    Behind,
    Connect,
    LogQueue,
    WaitAbandoned,
    WaitOptions,
    client_of,
    fetch_record,
    log_pages,
    read_end,
    wait_until_terminal,
)
from .cancellation import CANCEL_TIMEOUT, cancel
from .idempotency import was_cancelled_by_clear
from .result import INVOCATION_ID_KEY, LOGS_URL_KEY, TRY_KEY, URL_KEY, result_of
from .submission import InvocationSubmission, submission_task_error, submit

if TYPE_CHECKING:
    from ..models import DagRunProvenance, InvocationRecord

#: Returns a client of the platform, to be opened with `async with`.
Connector = Callable[[], Awaitable[Platform]]

#: Why a wait was abandoned although the invocation may still run: a timeout, which cancels it.
_TIMEOUTS = (AbandonReason.TimedOut, AbandonReason.QueuedTooLong)


class CancelledByClear(Exception):
    """The invocation was cancelled because its task was cleared; this try has to submit a new one."""


class TaskLog(Protocol):
    """Write the lines of an action into the log of its task."""

    #: The queue for lines that were read and not yet written.
    queue: LogQueue

    @property
    def last(self) -> list[str]:
        """The last lines that were written."""

    async def follow(self, connection: str, connect: Connect, waiting: WaitOptions) -> None:
        """Wait as `wait_until_terminal` does, and write the lines and notices that it yields."""

    async def show_rest(self, platform: Platform, invocation_id: str) -> None:
        """Write the remaining lines of an invocation that has ended, or the first and last of them."""


class WorkerLog:
    """Write an action's lines into the log of a task that has a worker.

    :param logs_url: where the whole log can be read; empty: nowhere.
    :param warn: writes a warning into the task's log.
    :param shown: what a trigger has written before.
    """

    def __init__(self, logs_url: str, warn: Callable[[str], object], shown: ShownLog = NOTHING_SHOWN) -> None:
        self._log = ActionLog(logs_url, shown)
        self._warn = warn
        self.queue = LogQueue()

    @property
    def last(self) -> list[str]:
        """The last lines that were written."""
        return self._log.last

    async def follow(self, connection: str, connect: Connect, waiting: WaitOptions) -> None:
        """Wait as `wait_until_terminal` does, and write the lines and notices that it yields."""
        async for step in wait_until_terminal(
            connection, connect, replace(waiting, cursor=self._log.position.cursor)
        ):
            match step:
                case NewLines():
                    await self._log.show_page(step.records, step.cursor)
                case Behind():
                    self._warn(self._log.shaper.with_url(BEHIND))
                case _:
                    self._warn(step.text)

    async def show_rest(self, platform: Platform, invocation_id: str) -> None:
        """Write the remaining lines, or the first and last of them if there are too many."""
        position = self._log.position
        end = await read_end(
            log_pages(platform, invocation_id, position.cursor),
            position,
            shaper=self._log.shaper,
            limit=LOG_SETTINGS.worker_end,
            show=self._log.show,
        )
        if end.left_out:
            self._warn(end.left_out)
        for line in end.last:
            self._log.show(line)


class InvocationLifecycle:
    """The invocation of one try of a task.

    :param conn_id: the Airflow connection; all invocations that are followed over it share one watcher.
    :param connect: opens a client of the platform.
    :param waiting: how to wait: intervals, limits and deadlines. `lines` is replaced by those of a log.
    :param log: the task's logger.
    :param action: the action's name, for messages.
    :param stream_logs: whether to write the action's log.
    """

    def __init__(
        self,
        conn_id: str,
        connect: Connector,
        waiting: WaitOptions,
        log: Any,
        *,
        action: str | None = None,
        stream_logs: bool = True,
    ) -> None:
        self.conn_id = conn_id
        self.connect = connect
        self.waiting = waiting
        self.log = log
        self.action = action
        self.shows_log = stream_logs
        self.url = ""
        self.logs_url = ""
        #: Set when the invocation's id is known. A signal handler waits for it.
        self.is_known = threading.Event()
        #: The record of the invocation at its end.
        self.ended: InvocationRecord | None = None

    @property
    def invocation_id(self) -> str:
        """The invocation's id; empty before the platform has returned it."""
        return self.waiting.invocation_id

    def attach(self, platform: Platform, invocation_id: str) -> None:
        """Set which invocation this is, and its addresses. Makes no request.

        `queue_timeout` counts from here, unless `waiting` has a deadline for it.
        """
        waiting = self.waiting
        deadline = waiting.queue_deadline
        if deadline is None and waiting.queue_timeout is not None:
            deadline = time.time() + waiting.queue_timeout
        self.waiting = replace(waiting, invocation_id=invocation_id, queue_deadline=deadline)
        self.url = platform.url(invocation_id)
        self.logs_url = platform.logs_url(invocation_id)
        self.shows_log = self.shows_log and platform.capabilities.logs
        self.is_known.set()

    # -- Submit --------------------------------------------------------------------------------------------

    async def submit(self, submission: InvocationSubmission) -> InvocationRecord:
        """Return this try's invocation; start it if there is none.

        :raises InvocationError: the request is wrong or rejected, or the platform unavailable.
        """
        action = submission.action
        try:
            unopened = await self.connect()
        except ValueError as error:
            raise RequestRejectedError(f"{submission.task_label}: {error}", action=action) from None
        try:
            async with unopened as platform:
                record = await submit(platform, submission)
                self.attach(platform, record.invocation_id)
        except PlatformError as error:
            where = f"connection {self.conn_id!r}, {unopened.where}"
            raise submission_task_error(error, str(action), where) from error
        return record

    def xcoms(self, try_number: int) -> dict[str, Any]:
        """Return the XComs that a task has from the moment its invocation exists."""
        return {
            INVOCATION_ID_KEY: self.invocation_id,
            TRY_KEY: try_number,
            URL_KEY: self.url,
            LOGS_URL_KEY: self.logs_url,
        }

    # -- Follow --------------------------------------------------------------------------------------------

    async def follow(self, log: TaskLog | None, deadline: float | None = None) -> None:
        """Wait until the invocation has ended, and write its log meanwhile.

        :param log: None: write nothing.
        :param deadline: seconds since 1970, instead of the deadline in `waiting`.
        :raises WaitAbandoned: as `wait_until_terminal` does.
        """
        waiting = self.waiting if deadline is None else replace(self.waiting, deadline=deadline)
        if log is not None:
            lines = log.queue if self.shows_log else None
            await log.follow(self.conn_id, self.connect, replace(waiting, lines=lines))
            return
        async for _ in wait_until_terminal(self.conn_id, self.connect, waiting):
            pass

    async def completes_within(self, seconds: float) -> bool:
        """Return whether the invocation ends within a time; False also if it can't be followed."""
        try:
            async with asyncio.timeout(seconds):
                await self.follow(None)
        except (TimeoutError, WaitAbandoned):
            return False
        return True

    # -- Conclude ------------------------------------------------------------------------------------------

    async def finish(
        self, log: TaskLog, provenance: DagRunProvenance, *, may_have_ended: bool = False
    ) -> dict[str, Any]:
        """Follow the invocation to its end and return the task's result.

        :param may_have_ended: read the invocation before it is followed, for a task that resumes.
        :raises InvocationError: the invocation did not complete, or its end isn't known.
        :raises CancelledByClear: this try has to submit a new one.
        """
        try:
            record = await fetch_record(self.connect, self.waiting) if may_have_ended else None
            while record is None or not record.current.status.is_terminal:
                await self.follow(log)
                record = await fetch_record(self.connect, self.waiting)
        except WaitAbandoned as abandoned:
            record = await self._give_up(abandoned, log)
        else:
            await self._show_rest(log)
        return await self._conclude(record, provenance, log.last)

    async def finish_late(self, log: TaskLog, provenance: DagRunProvenance) -> dict[str, Any]:
        """Finish as `finish` does after the deadline has passed: cancel the invocation unless it has ended.

        How much of the log was written is not known. It is written only if the invocation has ended.
        """
        try:
            await self.follow(None, deadline=time.time())
        except WaitAbandoned as abandoned:
            return await self._conclude(await self._give_up(abandoned, None), provenance, [])
        return await self.finish(log, provenance, may_have_ended=True)

    async def give_up(
        self, abandoned: WaitAbandoned, log: TaskLog, provenance: DagRunProvenance
    ) -> dict[str, Any]:
        """Conclude from a wait that a trigger has abandoned. Raises as `finish` does."""
        return await self._conclude(await self._give_up(abandoned, log), provenance, log.last)

    async def _give_up(self, abandoned: WaitAbandoned, log: TaskLog | None) -> InvocationRecord:
        """Cancel an invocation whose wait timed out; return its record if it has completed instead.

        :raises InvocationError: why the wait was abandoned.
        """
        is_late = abandoned.reason in _TIMEOUTS
        if is_late and self.waiting.cancels and not abandoned.is_cancelled:
            record = await self._cancel_late()
            if record is not None and record.current.status is InvocationStatus.Completed:
                return record
        if is_late and log is not None:
            await self._show_rest_within(self._cancel_timeout / 2, log)
        raise task_error(abandoned, self.action, self.invocation_id, self.url) from abandoned

    async def _conclude(
        self, record: InvocationRecord, provenance: DagRunProvenance, log_tail: list[str]
    ) -> dict[str, Any]:
        self.ended = record
        if was_cancelled_by_clear(record, provenance.try_number, provenance.clear_number):
            self.log.info("Invocation %s was cancelled when its task was cleared", record.invocation_id)
            raise CancelledByClear
        raise_unless_completed(record, self.url, log_tail)
        self.log.info("Invocation %s: %s", record.invocation_id, record.current.status)
        return result_of(record, self.url, provenance, await self._outputs())

    async def _outputs(self) -> Any:
        """Return what the action returned; None if the platform keeps none."""
        try:
            async with await client_of(self.connect) as platform:
                if not platform.capabilities.outputs:
                    return None
                return await retry_transient(
                    lambda: platform.outputs(self.invocation_id), self.waiting.outage_limit
                )
        except UnsupportedError as error:
            self.log.warning("The result has no outputs: %s", error)
            return None
        except PlatformError as error:
            raise outputs_task_error(error, str(self.action), self.invocation_id, self.url) from error

    async def _show_rest(self, log: TaskLog) -> None:
        """Write the remaining lines; an error only logs a warning."""
        if not self.shows_log:
            return
        try:
            async with await client_of(self.connect) as platform:
                await log.show_rest(platform, self.invocation_id)
        except PlatformError as error:
            self.log.warning("Could not read the rest of the log: %s", error)

    async def _show_rest_within(self, seconds: float, log: TaskLog) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._show_rest(log)
        except TimeoutError:
            where = f"; the whole log: {self.logs_url}" if self.logs_url else ""
            self.log.warning("The rest of the log was not read within %g s%s", seconds, where)

    # -- Cancel --------------------------------------------------------------------------------------------

    async def _cancel_late(self) -> InvocationRecord | None:
        try:
            async with await client_of(self.connect) as platform:
                return await cancel(platform, self.invocation_id, self.log, self._cancel_timeout)
        except (TimeoutError, PlatformError) as error:
            self.log.error("Could not cancel invocation %s: %s", self.invocation_id, error or "no answer")
            return None

    @property
    def _cancel_timeout(self) -> float:
        """Seconds for a cancel after a timeout, short enough that Airflow doesn't time out this process."""
        limit = self.waiting.execution_timeout
        return CANCEL_TIMEOUT if limit is None else min(CANCEL_TIMEOUT, limit / 2)
