"""A watch over runs: Flyte's streams say at once what lists say for certain."""

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
from .client import RUNS, Connect, SilentError
from .ids import Place, RunId
from .logs import Batch, Cursor, behind_the_log, follow, pod_events
from .records import snapshots_of
from .shapes import objects_at

#: Seconds between two looks at all runs: a stream may lose what it should tell, and stay open.
LOOK_INTERVAL = 10.0

#: Seconds of silence after which a stream is opened anew: there is no heartbeat on it.
STREAM_SILENCE = 60.0
LOG_SILENCE = 300.0

#: Projects' domains that are watched at once; each costs a connection.
MAX_PLACES = 50

#: Logs that are followed at once; each costs a connection. Where more are wanted, each has its turn of so
#: many seconds.
MAX_LOGS = 64
TURN = 20.0

#: Longest pause, in seconds, between two tries at a log that isn't there yet.
LOG_PAUSE = 10.0

#: Seconds until a log whose stream broke is opened anew.
BROKEN_LOG_PAUSE = 1.0

#: Seconds that the last lines of a run have to arrive before its end is told.
LAST_LINES = 5.0

#: Runs of which one look asks what their pod waits for.
MAX_PODS = 20

#: What may be told before somebody takes it.
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
    """What happens to some runs: a stream for each project's domain, lists beside them, and their logs.

    There is no cursor to resume from; every watch begins with the present statuses.

    :param runs: what is asked besides streams.
    """

    cursor: int | None = None

    def __init__(
        self,
        runs: Runs,
        connect: Connect,
        org: str | None,
        invocation_ids: Collection[str],
        logs: Mapping[str, str | None],
    ) -> None:
        self._connect = connect
        self._org = org
        self._runs = runs
        #: What was told last of each run that is watched; None: nothing yet.
        self._last: dict[str, InvocationStatus | None] = dict.fromkeys(invocation_ids)
        self._overdue = Overdue()
        #: Runs to look at before the next look at all.
        self._fresh: set[str] = set()
        self._is_fresh = asyncio.Event()
        self._told: asyncio.Queue[WatchMessage | Exception] = asyncio.Queue(_AHEAD)
        self._tasks: set[_Task] = set()
        self._streams: dict[Place, _Task] = {}
        self._tails: dict[str, _Tail] = {}
        self._log_turns = asyncio.Semaphore(MAX_LOGS)
        self._follow_streams()
        self._follow_logs(logs)
        self._start(self._look)

    async def __aiter__(self) -> AsyncIterator[WatchMessage]:
        """What is told, in order.

        Raises:
            PlatformError: the platform can't be asked (any more).
        """
        while True:
            told = await self._told.get()
            if isinstance(told, Exception):
                raise told
            yield told

    async def change(
        self, add: Collection[str], remove: Collection[str], logs: Mapping[str, str | None]
    ) -> None:
        """Watch more runs, or fewer. Raises UnsupportedError: of too many projects."""
        for invocation_id in remove:
            self._last.pop(invocation_id, None)
            if tail := self._tails.pop(invocation_id, None):
                tail.task.cancel()
        self._last.update(dict.fromkeys(set(add) - self._last.keys()))
        self._follow_streams()
        self._follow_logs(logs)
        self._look_at([*add, *logs])

    async def close(self) -> None:
        """End everything."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # -- statuses ------------------------------------------------------------------------------------

    async def _look(self) -> None:
        """Ask for all runs every few seconds, and in between for those that came or may have changed."""
        due, is_caught_up = 0.0, False
        while True:
            is_due = time.monotonic() >= due
            if is_due:
                ids = set(self._last)
                due = time.monotonic() + LOOK_INTERVAL * random.uniform(0.9, 1.1)  # noqa: S311
            else:
                ids = self._fresh & self._last.keys()
            self._fresh -= ids
            self._is_fresh.clear()
            if ids:
                for snapshot in await self._runs.statuses(ids):
                    await self._hear(snapshot)
            if is_due:
                await self._look_at_queued()
                await self._look_at_pods()
            if not is_caught_up:
                is_caught_up = True
                await self._told.put(CaughtUp(0))
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, due - time.monotonic())):
                    await self._is_fresh.wait()

    async def _look_at_queued(self) -> None:
        """Enqueue runs that Flyte accepted a minute or longer ago and has not enqueued."""
        queued = {one for one, status in self._last.items() if status is InvocationStatus.Queued}
        for invocation_id in self._overdue.due(self._last, queued):
            try:
                await self._runs.enqueue_if_unscheduled(invocation_id)
            except UnauthorizedError:
                raise
            except PlatformError as error:
                _log.info("Could not check whether Flyte has enqueued %s: %s", invocation_id, error)

    async def _look_at_pods(self) -> None:
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
                _log.debug("what %s waits for can't be read: %s", run, error)
                continue
            if not tail.begun.is_set():
                await self._tell_lines(run, tail, batch)

    def _look_at(self, invocation_ids: Iterable[str]) -> None:
        self._fresh |= set(invocation_ids)
        self._is_fresh.set()

    def _follow_streams(self) -> None:
        """Have a stream for each place that a run is at, and no other."""
        places = {run.place for run in map(_run_of, self._last) if run is not None}
        if len(places) > MAX_PLACES:
            raise UnsupportedError(
                f"{len(places)} projects' domains can't be watched at once; allowed: {MAX_PLACES}"
            )
        for place in self._streams.keys() - places:
            self._streams.pop(place).cancel()
        for place in places - self._streams.keys():
            self._streams[place] = self._start(self._stream, place)

    async def _stream(self, place: Place) -> None:
        """Hear what the stream of a place says; whatever becomes of it, the lists go on."""
        message = {"projectId": place.wire(self._org)}
        failures, is_first = 0, True
        while True:
            try:
                async with self._connect.stream(f"{RUNS}/WatchRuns", message, STREAM_SILENCE) as answers:
                    async for answer in answers:
                        failures = 0
                        if not is_first:
                            # What happened while there was no stream need not be in anything that it says.
                            self._look_at(one for one in self._last if _is_at(one, place))
                            is_first = True
                        for snapshot in snapshots_of(objects_at(answer, "runs")):
                            await self._hear(snapshot)
                # Flyte ends none by itself; who does may end the next one as soon.
                failures += 1
            except UnauthorizedError:
                raise
            except PermanentError as error:
                _log.info("no stream of runs, asking for them every %g s: %s", LOOK_INTERVAL, error)
                return
            except SilentError:
                failures = 0
            except TransientError as error:
                _log.debug("the stream of %s is opened anew: %s", place, error)
                failures += 1
            is_first = False
            if failures:
                await asyncio.sleep(0.1 + backoff(failures, base=0.5, cap=15.0))

    async def _hear(self, snapshot: StatusSnapshot) -> None:
        """Tell a status that is another than the last one; an end, when the last lines have come."""
        invocation_id = snapshot.invocation_id
        if invocation_id not in self._last:
            return
        last = self._last[invocation_id]
        # A list may have been asked for before the stream told of an end, and be answered after it.
        if last == snapshot.status or (last is not None and last.is_terminal):
            return
        self._last[invocation_id] = snapshot.status
        tail = self._tails.get(invocation_id)
        if tail is None:
            await self._told.put(snapshot)
            return
        if snapshot.status.is_running or snapshot.status.is_terminal:
            tail.begun.set()
        if snapshot.status.is_terminal:
            tail.ended.set()
            self._start(self._tell_end, snapshot, tail)
        else:
            await self._told.put(snapshot)

    async def _tell_end(self, snapshot: StatusSnapshot, tail: _Tail) -> None:
        await asyncio.wait({tail.task}, timeout=LAST_LINES)
        tail.task.cancel()
        if self._last.get(snapshot.invocation_id) == snapshot.status:
            await self._told.put(snapshot)

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
        """Tell a run's lines as they come, attempt after attempt, until it has ended."""
        try:
            tail.cursor, tail.told = Cursor.of(cursor_text), cursor_text
            await tail.begun.wait()
            pauses = 0
            while True:
                is_last, before = tail.ended.is_set(), tail.cursor
                try:
                    async with self._log_turns:
                        await self._turn(run, tail)
                except TransientError as error:
                    _log.debug("the log of %s is opened anew: %s", run, error)
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
            await self._told.put(UnreadableLog(str(run), str(error)))

    async def _turn(self, run: RunId, tail: _Tail) -> None:
        """Follow an attempt's log to its end, or for as long as a turn lasts."""
        is_crowded = len(self._tails) > MAX_LOGS
        try:
            async with (
                asyncio.timeout(TURN if is_crowded else None),
                aclosing(follow(self._connect, run, self._org, tail.cursor, LOG_SILENCE)) as batches,
            ):
                async for batch in batches:
                    await self._tell_lines(run, tail, batch)
        except TimeoutError:
            return
        except NotFoundError:
            pass
        await self._tell_lines(run, tail, behind_the_log(await self._runs.details(run), tail.cursor))

    async def _tell_lines(self, run: RunId, tail: _Tail, batch: Batch) -> None:
        if batch.records:
            page = LogPage(items=batch.records, has_next=False, last_read=str(batch.cursor))
            await self._told.put(NewLines(str(run), page, tail.told))
            tail.told = page.last_read
        # These lines have been delivered, even if the stream fails now.
        tail.cursor = batch.cursor

    # -- tasks ---------------------------------------------------------------------------------------

    def _start(self, operation: Callable[P, Awaitable[None]], *args: P.args, **named: P.kwargs) -> _Task:
        """Run it beside the others; what it fails with ends the watch."""

        async def run() -> None:
            try:
                await operation(*args, **named)
            except Exception as error:
                if not isinstance(error, PlatformError):
                    _log.exception("the watch broke")
                await self._told.put(error)

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
        self.told: str | None = None
        #: A status is known, so there may be a log; and the run has ended, so nothing more comes.
        self.begun = asyncio.Event()
        self.ended = asyncio.Event()

    async def pause(self, seconds: float) -> None:
        """Wait, but not longer than the run goes on."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.ended.wait()


def _run_of(invocation_id: str) -> RunId | None:
    try:
        return RunId.of(invocation_id)
    except NotFoundError:
        return None


def _is_at(invocation_id: str, place: Place) -> bool:
    run = _run_of(invocation_id)
    return run is not None and run.place == place
