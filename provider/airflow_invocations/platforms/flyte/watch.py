"""A watch over runs: Flyte's streams report changes at once, and lists make it complete."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping
from contextlib import aclosing, suppress
from typing import Any, ParamSpec, Protocol

from ...models import (
    CaughtUp,
    InvocationStatus,
    LogPage,
    NewLines,
    StatusSnapshot,
    UnreadableLog,
    WatchMessage,
)
from ..errors import (
    NotFoundError,
    PermanentError,
    PlatformError,
    TransientError,
    UnauthorizedError,
    UnsupportedError,
)
from ..overdue import Overdue
from ..retry import backoff
from .client import RUNS, ConnectClient, SilentError
from .ids import ProjectDomain, RunId
from .logs import Batch, Cursor, behind_the_log, follow, pod_events
from .records import snapshots_of
from .shapes import objects_at

#: Seconds between two lists of all runs: a stream may lose a change and stay open.
LIST_INTERVAL = 10.0

#: Seconds of silence after which a stream is reopened; it has no heartbeat.
STREAM_SILENCE = 60.0
LOG_SILENCE = 300.0

#: Projects and domains that are watched at the same time; each needs a connection.
MAX_SCOPES = 50

#: Logs that are followed at the same time; each needs a connection. If there are more, they take turns of
#: TURN seconds.
MAX_LOGS = 64
TURN = 20.0

#: Longest pause, in seconds, between two attempts to read a log that doesn't exist yet.
LOG_PAUSE = 10.0

#: Seconds until a log whose stream broke is reopened.
BROKEN_LOG_PAUSE = 1.0

#: Seconds for which the last lines of a run may delay its terminal status.
LAST_LINES = 5.0

#: Runs whose pod's events are read after each list.
MAX_PODS = 20

#: Messages that may wait for the reader.
_AHEAD = 1000

_log = logging.getLogger(__name__)

P = ParamSpec("P")
_Task = asyncio.Task[None]


class Runs(Protocol):
    """The requests that a watch makes besides its streams."""

    async def statuses(self, invocation_ids: Collection[str]) -> list[StatusSnapshot]:
        """Return the present statuses of these runs."""

    async def details(self, run: RunId) -> dict[str, Any]:
        """Return a run's RunDetails."""

    async def enqueue_if_unscheduled(self, invocation_id: str) -> bool:
        """Enqueue a run that was accepted and never enqueued; return whether it was such a run."""


class FlyteWatch:
    """The status changes and logs of some runs, from a stream for each project and domain, and from lists.

    It has no cursor; every watch begins with the present statuses.

    :param runs: sends the requests besides the streams.
    """

    cursor: int | None = None

    def __init__(
        self,
        runs: Runs,
        connect: ConnectClient,
        org: str | None,
        invocation_ids: Collection[str],
        logs: Mapping[str, str | None],
    ) -> None:
        self._connect = connect
        self._org = org
        self._runs = runs
        #: The last reported status of each watched run; None: none yet.
        self._last: dict[str, InvocationStatus | None] = dict.fromkeys(invocation_ids)
        self._overdue = Overdue()
        #: Runs to list before the next list of all.
        self._fresh: set[str] = set()
        self._is_fresh = asyncio.Event()
        self._messages: asyncio.Queue[WatchMessage | Exception] = asyncio.Queue(_AHEAD)
        self._tasks: set[_Task] = set()
        self._streams: dict[ProjectDomain, _Task] = {}
        self._tails: dict[str, _Tail] = {}
        self._log_turns = asyncio.Semaphore(MAX_LOGS)
        self._follow_streams()
        self._follow_logs(logs)
        self._start(self._list)

    async def __aiter__(self) -> AsyncIterator[WatchMessage]:
        """Yield messages in order. Raises PlatformError when the watch fails."""
        while True:
            message = await self._messages.get()
            if isinstance(message, Exception):
                raise message
            yield message

    async def change(
        self, add: Collection[str], remove: Collection[str], logs: Mapping[str, str | None]
    ) -> None:
        """Add and remove runs. Raises UnsupportedError if they are in too many projects."""
        for invocation_id in remove:
            self._last.pop(invocation_id, None)
            if tail := self._tails.pop(invocation_id, None):
                tail.task.cancel()
        self._last.update(dict.fromkeys(set(add) - self._last.keys()))
        self._follow_streams()
        self._follow_logs(logs)
        self._list_soon([*add, *logs])

    async def close(self) -> None:
        """Close the streams."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # -- statuses ------------------------------------------------------------------------------------

    async def _list(self) -> None:
        """List all runs every few seconds, and in between those that were added or may have changed."""
        due, is_caught_up = 0.0, False
        while True:
            is_due = time.monotonic() >= due
            if is_due:
                ids = set(self._last)
                due = time.monotonic() + LIST_INTERVAL * random.uniform(0.9, 1.1)  # noqa: S311
            else:
                ids = self._fresh & self._last.keys()
            self._fresh -= ids
            self._is_fresh.clear()
            if ids:
                for snapshot in await self._runs.statuses(ids):
                    await self._report(snapshot)
            if is_due:
                await self._check_queued()
                await self._report_pods()
            if not is_caught_up:
                is_caught_up = True
                await self._messages.put(CaughtUp(0))
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, due - time.monotonic())):
                    await self._is_fresh.wait()

    async def _check_queued(self) -> None:
        """Enqueue runs that Flyte accepted a minute or longer ago and has not enqueued."""
        queued = {one for one, status in self._last.items() if status is InvocationStatus.Queued}
        for invocation_id in self._overdue.due(self._last, queued):
            try:
                await self._runs.enqueue_if_unscheduled(invocation_id)
            except UnauthorizedError:
                raise
            except PlatformError as error:
                _log.info("Could not check whether Flyte has enqueued %s: %s", invocation_id, error)

    async def _report_pods(self) -> None:
        """Report what the pods of runs wait for, as log lines, while the runs have no log yet."""
        waiting = [one for one, tail in self._tails.items() if not tail.begun.is_set()]
        for invocation_id in random.sample(waiting, min(len(waiting), MAX_PODS)):
            run, tail = _run_of(invocation_id), self._tails[invocation_id]
            if run is None:
                continue
            try:
                batch = pod_events(await self._runs.details(run), tail.cursor)
            except UnauthorizedError:
                raise
            except PlatformError as error:
                _log.debug("Could not read what %s is waiting for: %s", run, error)
                continue
            if not tail.begun.is_set():
                await self._report_lines(run, tail, batch)

    def _list_soon(self, invocation_ids: Iterable[str]) -> None:
        self._fresh |= set(invocation_ids)
        self._is_fresh.set()

    def _follow_streams(self) -> None:
        """Open a stream for each project and domain of the runs, and close the others."""
        scopes = {run.scope for run in map(_run_of, self._last) if run is not None}
        if len(scopes) > MAX_SCOPES:
            raise UnsupportedError(
                f"{len(scopes)} projects and domains can't be watched at the same time; allowed: {MAX_SCOPES}"
            )
        for scope in self._streams.keys() - scopes:
            self._streams.pop(scope).cancel()
        for scope in scopes - self._streams.keys():
            self._streams[scope] = self._start(self._stream, scope)

    async def _stream(self, scope: ProjectDomain) -> None:
        """Report what a stream of runs yields; if it can't be opened, the lists continue."""
        message = {"projectId": scope.wire(self._org)}
        failures, is_first = 0, True
        while True:
            try:
                async with self._connect.stream(f"{RUNS}/WatchRuns", message, STREAM_SILENCE) as answers:
                    async for answer in answers:
                        failures = 0
                        if not is_first:
                            # The new stream need not report what happened while there was none.
                            self._list_soon(one for one in self._last if _is_in(one, scope))
                            is_first = True
                        for snapshot in snapshots_of(objects_at(answer, "runs")):
                            await self._report(snapshot)
                # Flyte doesn't end streams; whatever does may end the next one at once.
                failures += 1
            except UnauthorizedError:
                raise
            except PermanentError as error:
                _log.info("Flyte has no stream of runs; listing them every %g s: %s", LIST_INTERVAL, error)
                return
            except SilentError:
                failures = 0
            except TransientError as error:
                _log.debug("Reopening the stream of %s: %s", scope, error)
                failures += 1
            is_first = False
            if failures:
                await asyncio.sleep(0.1 + backoff(failures, base=0.5, cap=15.0))

    async def _report(self, snapshot: StatusSnapshot) -> None:
        """Report a status that differs from the last one; a terminal one after the last log lines."""
        invocation_id = snapshot.invocation_id
        if invocation_id not in self._last:
            return
        last = self._last[invocation_id]
        # A list may have been requested before the stream reported the end, and answered after it.
        if last == snapshot.status or (last is not None and last.is_terminal):
            return
        self._last[invocation_id] = snapshot.status
        tail = self._tails.get(invocation_id)
        if tail is None:
            await self._messages.put(snapshot)
            return
        if snapshot.status.is_running or snapshot.status.is_terminal:
            tail.begun.set()
        if snapshot.status.is_terminal:
            tail.ended.set()
            self._start(self._report_end, snapshot, tail)
        else:
            await self._messages.put(snapshot)

    async def _report_end(self, snapshot: StatusSnapshot, tail: _Tail) -> None:
        await asyncio.wait({tail.task}, timeout=LAST_LINES)
        tail.task.cancel()
        if self._last.get(snapshot.invocation_id) == snapshot.status:
            await self._messages.put(snapshot)

    # -- logs ----------------------------------------------------------------------------------------

    def _follow_logs(self, logs: Mapping[str, str | None]) -> None:
        for invocation_id, cursor in logs.items():
            run = _run_of(invocation_id)
            if run is None or invocation_id not in self._last or invocation_id in self._tails:
                continue
            tail = _Tail()
            tail.task = self._start(self._tail, run, cursor, tail)
            self._tails[invocation_id] = tail
            self._last[invocation_id] = None

    async def _tail(self, run: RunId, cursor_text: str | None, tail: _Tail) -> None:
        """Report a run's lines as they come, attempt after attempt, until it has ended."""
        try:
            tail.cursor, tail.reported = Cursor.of(cursor_text), cursor_text
            await tail.begun.wait()
            pauses = 0
            while True:
                is_last, before = tail.ended.is_set(), tail.cursor
                try:
                    async with self._log_turns:
                        await self._turn(run, tail)
                except TransientError as error:
                    _log.debug("Reopening the log of %s: %s", run, error)
                    await asyncio.sleep(BROKEN_LOG_PAUSE)
                    continue
                if tail.cursor.attempt > before.attempt:
                    continue
                if is_last:
                    return
                pauses = 0 if tail.cursor != before else pauses + 1
                await tail.pause(0.2 + backoff(pauses, base=1.0, cap=LOG_PAUSE))
        except UnauthorizedError:
            raise
        except PermanentError as error:
            await self._messages.put(UnreadableLog(str(run), str(error)))

    async def _turn(self, run: RunId, tail: _Tail) -> None:
        """Follow an attempt's log until it ends or the turn is over."""
        is_crowded = len(self._tails) > MAX_LOGS
        try:
            async with (
                asyncio.timeout(TURN if is_crowded else None),
                aclosing(follow(self._connect, run, self._org, tail.cursor, LOG_SILENCE)) as batches,
            ):
                async for batch in batches:
                    await self._report_lines(run, tail, batch)
        except TimeoutError:
            return
        except NotFoundError:
            pass
        await self._report_lines(run, tail, behind_the_log(await self._runs.details(run), tail.cursor))

    async def _report_lines(self, run: RunId, tail: _Tail, batch: Batch) -> None:
        if batch.records:
            page = LogPage(items=batch.records, has_next=False, last_read=str(batch.cursor))
            await self._messages.put(NewLines(str(run), page, tail.reported))
            tail.reported = page.last_read
        # These lines have been delivered, even if the stream fails now.
        tail.cursor = batch.cursor

    # -- tasks ---------------------------------------------------------------------------------------

    def _start(self, operation: Callable[P, Awaitable[None]], *args: P.args, **named: P.kwargs) -> _Task:
        """Run an operation in the background; its error ends the watch."""

        async def run() -> None:
            try:
                await operation(*args, **named)
            except Exception as error:
                if not isinstance(error, PlatformError):
                    _log.exception("The watch failed")
                await self._messages.put(error)

        task = asyncio.create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


class _Tail:
    """One log that is followed."""

    task: _Task

    def __init__(self) -> None:
        self.cursor = Cursor()
        #: The cursor after the last lines that were delivered.
        self.reported: str | None = None
        #: The run has a status, so there may be a log; the run has ended, so there are no more lines.
        self.begun = asyncio.Event()
        self.ended = asyncio.Event()

    async def pause(self, seconds: float) -> None:
        """Wait for a number of seconds, or until the run ends."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.ended.wait()


def _run_of(invocation_id: str) -> RunId | None:
    try:
        return RunId.of(invocation_id)
    except NotFoundError:
        return None


def _is_in(invocation_id: str, scope: ProjectDomain) -> bool:
    run = _run_of(invocation_id)
    return run is not None and run.scope == scope
