"""Claims invocations, runs each action as a process group of its own, and ships its log lines."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import signal
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sqlalchemy.exc import SQLAlchemyError

from ..model import ContainerParameters, InvocationRecord, InvocationStatus, LogProcess
from . import processes
from .errors import ConditionError, InvalidStateTransitionError
from .logs import LineStream, LogFiles, LogWriter
from .settings import ServiceSettings
from .store import RUNNER_PREFIX, StatusEvent, Store
from .workspace import Workspace

#: Seconds between two signs of life.
HEARTBEAT_INTERVAL = 5.0

#: Seconds until a claim that the database refused is tried again.
RETRY_PAUSE = 1.0

#: Seconds that output may still come after the process group is gone: somebody else may hold the pipe.
LAST_OUTPUT = 2.0

#: Characters of an action's last line of stderr that go into the detail of its failure.
MAX_DETAIL = 1000

_READ = 64 * 1024

_log = logging.getLogger(__name__)

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class _Claim:
    """What this runner knows of an invocation that it owns."""

    store: Store
    owner: str
    record: InvocationRecord
    #: Set when the invocation's status or its abort may have been changed by somebody else.
    touched: asyncio.Event = field(default_factory=asyncio.Event)

    async def move(self, status: InvocationStatus, detail: str | None = None) -> None:
        """Set the status. Raises ConditionError if the invocation isn't ours any more."""
        await asyncio.to_thread(self.store.advance, self.record.invocation_id, status, detail, self.owner)

    async def stop_reason(self) -> str | None:
        """Why to stop; None: go on."""
        return await asyncio.to_thread(self.store.stop_reason, self.record.invocation_id, self.owner)

    async def stop_wanted(self) -> str:
        """Return why to stop, as soon as there is a reason."""
        while True:
            await self.touched.wait()
            self.touched.clear()
            if (reason := await self.stop_reason()) is not None:
                return reason


class Runner:
    """Runs up to `slots` actions at once, in the event loop that `start` is called in."""

    def __init__(self, store: Store, logs: LogFiles, settings: ServiceSettings) -> None:
        self._store = store
        self._logs = logs
        self._settings = settings
        self._owner = f"{RUNNER_PREFIX}{os.getpid()}-{secrets.token_hex(4)}"
        self._endpoint = ""
        self._work = asyncio.Event()
        self._claims: dict[str, _Claim] = {}
        self._running: dict[str, asyncio.Task[None]] = {}
        self._background: list[asyncio.Task[None]] = []

    async def start(self, endpoint: str) -> None:
        """End and requeue what an earlier life left running, then begin to claim."""
        self._endpoint = endpoint
        await self._recover()
        self._store.listen(_in_loop(asyncio.get_running_loop(), self._changed))
        self._work.set()
        self._background = [
            asyncio.create_task(self._claim_forever()),
            asyncio.create_task(self._beat_forever()),
        ]

    async def stop(self) -> None:
        """Claim no more; stop what runs (SIGTERM, the grace period, SIGKILL) and have it run again later."""
        tasks = [*self._background, *self._running.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _recover(self) -> None:
        for left in await asyncio.to_thread(self._store.left_over):
            if left.process_group is not None and left.process_began is not None:
                await processes.end_left_over(left.process_group, left.process_began)
            detail = "the service ended while this ran"
            await asyncio.to_thread(self._store.requeue, left.invocation_id, detail, lost=True)

    def _changed(self, committed: Sequence[StatusEvent]) -> None:
        for event in committed:
            if event.status is InvocationStatus.Queued:
                self._work.set()
            elif claim := self._claims.get(event.invocation_id):
                claim.touched.set()

    async def _claim_forever(self) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            try:
                while len(self._running) < self._settings.slots:
                    record = await asyncio.to_thread(self._store.claim, self._owner)
                    if record is None:
                        break
                    self._begin(record)
            except SQLAlchemyError:
                _log.exception("could not claim an invocation; trying again in %s s", RETRY_PAUSE)
                await asyncio.sleep(RETRY_PAUSE)
                self._work.set()

    def _begin(self, record: InvocationRecord) -> None:
        claim = _Claim(self._store, self._owner, record)
        task = asyncio.create_task(self._run(claim))
        self._claims[record.invocation_id] = claim
        self._running[record.invocation_id] = task
        task.add_done_callback(lambda _: self._ended(record.invocation_id))

    def _ended(self, invocation_id: str) -> None:
        del self._claims[invocation_id], self._running[invocation_id]
        self._work.set()

    async def _beat_forever(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_INTERVAL)
            if self._running:
                try:
                    await asyncio.to_thread(self._store.heartbeat, self._owner)
                except SQLAlchemyError:
                    _log.exception("could not record a sign of life")

    async def _run(self, claim: _Claim) -> None:
        invocation_id = claim.record.invocation_id
        writer = self._logs.writer(invocation_id)
        try:
            status, detail = await _Execution(claim, writer, self._settings, self._endpoint).run()
            await claim.move(status, detail)
        except asyncio.CancelledError:
            detail = "the service was stopped while this ran"
            await _finished(asyncio.to_thread(self._store.requeue, invocation_id, detail, lost=False))
            raise
        except (ConditionError, InvalidStateTransitionError):
            _log.info("%s came to its end from outside", invocation_id)
        except Exception as error:
            _log.exception("could not run %s", invocation_id)
            await claim.move(InvocationStatus.Failed, f"the service could not run this: {error}")
        finally:
            writer.close()


class _Execution:
    """One attempt at one invocation, from its workspace to its verdict."""

    def __init__(self, claim: _Claim, writer: LogWriter, settings: ServiceSettings, endpoint: str) -> None:
        self._claim = claim
        self._record = claim.record
        self._writer = writer
        self._settings = settings
        self._endpoint = endpoint

    async def run(self) -> tuple[InvocationStatus, str | None]:
        """Run the action; its end status and the reason for it."""
        workspace = Workspace(self._settings.workspaces / self._record.invocation_id)
        await self._claim.move(InvocationStatus.Downloading)
        await asyncio.to_thread(workspace.prepare, self._record)
        await self._claim.move(InvocationStatus.Processing)
        if (reason := await self._claim.stop_reason()) is not None:
            return InvocationStatus.Cancelled, reason
        try:
            process = await self._spawn(workspace)
        except (OSError, ValueError) as error:
            detail = f"can't start {_command(self._record.container_parameters)[0]!r}: {error}"
            self._writer.say(LogProcess.Setup, detail)
            return InvocationStatus.Failed, detail
        status, reason = await self._attend(process)
        if status is InvocationStatus.Completed:
            await self._claim.move(InvocationStatus.Uploading)
        return status, reason

    async def _spawn(self, workspace: Workspace) -> asyncio.subprocess.Process:
        container = self._record.container_parameters
        return await asyncio.create_subprocess_exec(
            *_command(container),
            cwd=container.workdir or workspace.work,
            env=workspace.environment(self._record, self._endpoint),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )

    async def _attend(self, process: asyncio.subprocess.Process) -> tuple[InvocationStatus, str | None]:
        """Follow a process to its end: by itself, or because it has to be stopped."""
        out, err = self._writer.stream(LogProcess.Action), self._writer.stream(LogProcess.Action)
        pumps = asyncio.gather(_pump(process.stdout, out), _pump(process.stderr, err))
        try:
            began = await asyncio.to_thread(processes.began, process.pid)
            await asyncio.to_thread(
                self._claim.store.set_process, self._record.invocation_id, process.pid, began
            )
            stopped = await self._why_stopped(process)
        finally:
            # Whatever the action left behind in its group ends with it, as in a container.
            await _finished(processes.end(process.pid, self._settings.grace))
            with contextlib.suppress(TimeoutError):
                await _finished(asyncio.wait_for(pumps, LAST_OUTPUT))
            await _finished(process.wait())
            out.finish()
            err.finish()
        return stopped or _ended_by_itself(process.returncode, err)

    async def _why_stopped(self, process: asyncio.subprocess.Process) -> tuple[InvocationStatus, str] | None:
        """Wait for the process to end, or for the reason to end it; None: it ended by itself."""
        exited = asyncio.create_task(process.wait())
        stop = asyncio.create_task(self._claim.stop_wanted())
        minutes = self._record.timeout
        try:
            await asyncio.wait({exited, stop}, timeout=minutes * 60, return_when=asyncio.FIRST_COMPLETED)
            if exited.done():
                return None
            if stop.done():
                return InvocationStatus.Cancelled, stop.result()
            return InvocationStatus.Failed, f"timed out after {minutes} min"
        finally:
            exited.cancel()
            stop.cancel()


def _ended_by_itself(code: int | None, err: LineStream) -> tuple[InvocationStatus, str | None]:
    if code == 0:
        return InvocationStatus.Completed, None
    how = f"exit code {code}" if code is not None and code > 0 else f"ended by {_signal_name(code)}"
    last = err.last_line.decode("utf-8", errors="replace")[-MAX_DETAIL:]
    return InvocationStatus.Failed, f"{how}: {last}" if last else how


def _signal_name(code: int | None) -> str:
    try:
        return signal.Signals(-(code or 0)).name
    except ValueError:
        return f"signal {-(code or 0)}"


def _command(container: ContainerParameters) -> list[str]:
    return [*(container.entry_point or []), *(container.command or [])]


async def _pump(pipe: asyncio.StreamReader | None, lines: LineStream) -> None:
    while pipe is not None and (data := await pipe.read(_READ)):
        lines.feed(data)


async def _finished(work: Coroutine[Any, Any, _T]) -> _T:
    """Await something that must be finished, and whose result counts, even if this task is cancelled."""
    task = asyncio.ensure_future(work)
    while not task.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.shield(task)
    return task.result()


def _in_loop(
    loop: asyncio.AbstractEventLoop, listener: Callable[[Sequence[StatusEvent]], None]
) -> Callable[[Sequence[StatusEvent]], None]:
    def call(committed: Sequence[StatusEvent]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: the service is stopping
            loop.call_soon_threadsafe(listener, committed)

    return call
