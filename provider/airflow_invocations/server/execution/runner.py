"""Claims invocations, runs each action as a process group of its own, and ships its log lines."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import signal
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from sqlalchemy.exc import SQLAlchemyError

from ...models import (
    ActionRecord,
    ContainerParameters,
    InvocationRecord,
    InvocationStatus,
    LogProcess,
)
from ...models.dataset import ActionInputRecord
from ...runtime.exceptions import PrepareEnvException
from ..api.errors import ConditionError, InvalidStateTransitionError, NotFoundError
from ..api.schemas import Own, Role
from ..catalog import LocalCatalog
from ..datasets import DatasetFiles
from ..db import RUNNER_PREFIX, StatusEvent, Store
from ..outages import is_outage, log_failure, pause_after
from ..secrets import Secrets
from ..settings import ServiceSettings
from ..tokens import Tokens
from . import processes
from .logs import REDRAW_INTERVAL, LineStream, LogFiles, LogWriter
from .orphans import Orphans
from .outputs import UploadError, destination_of, upload
from .reconciler import Reconciler
from .redaction import Redaction
from .workspace import INVOCATION_VARIABLE, Access, Workspace

#: Seconds between two signs of life.
HEARTBEAT_INTERVAL = 5.0

#: Seconds between two looks, while files are copied, at whether it is to be stopped.
LOOK_INTERVAL = 0.5

#: Seconds that output may still come after the process group is gone: somebody else may hold the pipe.
LAST_OUTPUT = 2.0

#: Characters that the detail of a failure has at most.
MAX_DETAIL = 1000

#: Seconds in the unit of an invocation's timeout.
MINUTE = 60.0

_T = TypeVar("_T")

_log = logging.getLogger(__name__)


class Verdict(NamedTuple):
    """How an attempt ended, and why. Queued: it didn't end, and has to run again."""

    status: InvocationStatus
    detail: str | None
    #: What the action's process ended with, if that is how the attempt ended.
    exit_code: int | None = None


@dataclass(slots=True, eq=False)
class _Claim:
    """What this runner knows of an invocation that it owns."""

    store: Store
    owner: str
    record: InvocationRecord
    #: Set when the server stops: what runs is to run again later.
    stopping: asyncio.Event
    #: Set when there may be a reason to stop that wasn't there before.
    touched: asyncio.Event = field(default_factory=asyncio.Event)
    #: Whether an attempt failed with an unexpected error, which must not repeat for ever.
    lost: bool = False

    async def move(self, status: InvocationStatus) -> None:
        """Set the status; repeat this during outages. Raises ConditionError if the claim was lost."""

        def record() -> None:
            self.store.claims.transition_owned(self.record.invocation_id, status, None, self.owner)

        await self.repeat(f"record that it is {status.name}", record)

    async def set_processing(self, pid: int) -> None:
        """Set the status to Processing, by this process. Raises ConditionError if it isn't ours any more."""

        def record() -> None:
            self.store.claims.set_processing(self.record.invocation_id, self.owner, pid, processes.began(pid))

        await self.repeat("record its process", record)

    async def end(self, verdict: Verdict) -> None:
        """Record how the attempt ended; repeat this during outages, as an unrecorded end would run again.

        Raises:
            ConditionError: the invocation isn't ours any more.
            InvalidStateTransitionError: it has come to an end already.
        """
        await self.repeat(f"record that it is {verdict.status.name}", lambda: self._record(verdict))

    async def repeat(self, what: str, call: Callable[[], _T]) -> _T:
        """Call a function in a thread, and repeat it while the server has an outage of its own.

        Pauses between attempts grow up to LONGEST_PAUSE. The outage itself is raised when the server stops.
        """
        failures = 0
        while True:
            try:
                return await asyncio.to_thread(call)
            except Exception as error:
                if not is_outage(error) or self.stopping.is_set():
                    raise
                failures += 1
                pause = pause_after(failures)
                _log.warning("cannot %s: %s; trying again in %g s", what, error, pause, extra=self.named)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self.stopping.wait()

    @property
    def named(self) -> dict[str, str]:
        """What log records say of it."""
        return {"invocation_id": self.record.invocation_id}

    def stopped(self) -> Verdict | None:
        """The verdict that doesn't wait for the action; None: go on."""
        reason = self.store.aborts.stop_reason(self.record.invocation_id, self.owner)
        if reason is not None:
            return Verdict(InvocationStatus.Cancelled, reason)
        if self.stopping.is_set():
            return Verdict(InvocationStatus.Queued, "the server was stopped while this ran")
        return None

    def wants_downloads(self) -> bool:
        """Whether the action wants its input's files, not only their records."""
        action = self._action()
        # The action was deleted; downloading too much is harmless.
        return action is None or action.requires_downloaded_inputs is not False

    def role_of_process(self) -> Role:
        """The role of the action's process for other resources than its own."""
        action = self._action()
        return Role.Invoke if action is not None and action.may_invoke else Role.Action

    async def until_stopped(self) -> Verdict:
        """Wait for the verdict that doesn't wait for the action."""
        while True:
            await self.touched.wait()
            self.touched.clear()
            if (verdict := await self.repeat("see whether it is to be stopped", self.stopped)) is not None:
                return verdict

    def _action(self) -> ActionRecord | None:
        """The version of the action that was invoked; None: it was deleted since."""
        action = self.record.provenance.action
        try:
            return self.store.actions.get(action.name, action.org_id, action.digest)
        except NotFoundError:
            return None

    def _record(self, verdict: Verdict) -> None:
        if verdict.status is InvocationStatus.Queued:
            self.store.claims.requeue(self.record.invocation_id, self.owner, verdict.detail, lost=self.lost)
        else:
            self.store.claims.transition_owned(
                self.record.invocation_id, verdict.status, verdict.detail, self.owner, verdict.exit_code
            )


class _Outages:
    """The invocations that met an outage of the server, and when each may be claimed again."""

    def __init__(self) -> None:
        #: By invocation: how often in a row, and until when it waits (`time.monotonic`).
        self._met: dict[str, tuple[int, float]] = {}

    def met(self, invocation_id: str) -> float:
        """Record one more outage; return the seconds until the invocation may be claimed again."""
        times = self._met.get(invocation_id, (0, 0.0))[0] + 1
        pause = pause_after(times)
        self._met[invocation_id] = (times, time.monotonic() + pause)
        return pause

    def over(self, invocation_id: str) -> None:
        """Remove an invocation that has ended."""
        self._met.pop(invocation_id, None)

    def pausing(self) -> list[str]:
        """Those that wait."""
        present = time.monotonic()
        return [invocation_id for invocation_id, (_, until) in self._met.items() if until > present]


class _Stopped(Exception):
    """There is a verdict on an attempt, whatever it was about to do."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(verdict)
        self.verdict = verdict


class Runner:
    """Runs up to `slots` actions at once, in the event loop that `start` is called in."""

    def __init__(
        self,
        store: Store,
        datasets: DatasetFiles,
        secret_values: Secrets,
        logs: LogFiles,
        tokens: Tokens,
        settings: ServiceSettings,
        orphans: Orphans | None = None,
    ) -> None:
        self._store = store
        self._datasets = datasets
        self._secrets = secret_values
        self._logs = logs
        self._tokens = tokens
        self._settings = settings
        self._owner = f"{RUNNER_PREFIX}{os.getpid()}-{secrets.token_hex(4)}"
        self._reconciler = Reconciler(store, self._owner, self._claims_of_now, self._touch, settings)
        self._orphans = orphans or Orphans()
        self._identity = settings.identity
        self._endpoint = ""
        self._work = asyncio.Event()
        self._stopping = asyncio.Event()
        self._claims: dict[str, _Claim] = {}
        self._outages = _Outages()
        self._running: dict[str, asyncio.Task[None]] = {}

    async def start(self, endpoint: str) -> None:
        """End and requeue what an earlier life left running, then begin to claim."""
        self._endpoint = endpoint
        await self._reconciler.recover()
        loop = asyncio.get_running_loop()
        self._store.database.listen_to_events(in_loop(loop, self._changed))
        self._store.database.listen_to_aborts(in_loop(loop, self._touch))
        self._work.set()
        self._claiming = asyncio.create_task(self._claim_until_stopped())
        self._beating = asyncio.create_task(self._beat_forever())
        self._reconciling = asyncio.create_task(self._reconciler.run())

    async def stop(self) -> None:
        """Claim no more; stop what runs (SIGTERM, the grace period, SIGKILL) and have it run again later."""
        # Nothing that runs is cancelled as a task: a claim or a verdict that is on its way to the database
        # would be lost.
        self._stopping.set()
        self._work.set()
        await asyncio.wait({self._claiming})
        for claim in self._claims.values():
            claim.touched.set()
        await asyncio.gather(*self._running.values())
        self._beating.cancel()
        self._reconciling.cancel()

    def _changed(self, committed: Sequence[StatusEvent]) -> None:
        for event in committed:
            if event.status is InvocationStatus.Queued:
                self._work.set()
            self._touch(event.invocation_id)

    def _touch(self, invocation_id: str) -> None:
        if claim := self._claims.get(invocation_id):
            claim.touched.set()

    def _claims_of_now(self) -> Collection[str]:
        return self._claims.keys()

    async def _claim_until_stopped(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            await self._work.wait()
            self._work.clear()
            try:
                while len(self._running) < self._settings.slots and not self._stopping.is_set():
                    busy = [*self._running, *self._outages.pausing()]
                    record = await asyncio.to_thread(self._store.claims.claim, self._owner, busy)
                    if record is None:
                        break
                    self._begin(record)
                failures = 0
            except Exception:
                failures += 1
                pause = pause_after(failures)
                log_failure(_log, "could not claim an invocation; trying again in %g s", pause)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await self._stopping.wait()
                self._work.set()

    def _begin(self, record: InvocationRecord) -> None:
        claim = _Claim(self._store, self._owner, record, self._stopping)
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
                    await asyncio.to_thread(self._store.claims.heartbeat, self._owner)
                except Exception:
                    log_failure(_log, "could not record a sign of life")

    async def _run(self, claim: _Claim) -> None:
        """Run an invocation to its end, or queue it again; never raise."""
        try:
            verdict = await self._attempt(claim)
            await claim.end(verdict)
            is_over = verdict.status is not InvocationStatus.Queued
            happened = "ended" if is_over else "interrupted, will run again"
            _log.info(happened, extra={**claim.named, "status": verdict.status.name})
        except (ConditionError, InvalidStateTransitionError):
            _log.info("ended by another request", extra=claim.named)
        except Exception:
            # The claim stays, and nothing works on it, so the reconciler treats the invocation as lost.
            log_failure(_log, "%s is left to the reconciler", claim.record.invocation_id)

    async def _attempt(self, claim: _Claim) -> Verdict:
        invocation_id = claim.record.invocation_id
        try:
            with contextlib.closing(self._logs.writer(invocation_id)) as writer:
                execution = _Execution(
                    claim, writer, self._settings, self._access, self._datasets, self._secrets, self._orphans
                )
                verdict = await execution.run()
        except (ConditionError, InvalidStateTransitionError):
            raise
        except Exception as error:
            # Errors of the action have been handled: an OSError here is about the server's own files. Any
            # other unexpected error counts like a crash.
            claim.lost = not (isinstance(error, OSError) or is_outage(error))
            pause = self._pause(invocation_id)
            log_failure(_log, "could not run %s; queued again, to start in %g s", invocation_id, pause)
            return Verdict(InvocationStatus.Queued, f"the server could not run this: {error}"[:MAX_DETAIL])
        self._outages.over(invocation_id)
        return verdict

    def _pause(self, invocation_id: str) -> float:
        """Delay the next claim of an invocation; return the seconds."""
        pause = self._outages.met(invocation_id)
        asyncio.get_running_loop().call_later(pause, self._work.set)
        return pause

    @contextlib.contextmanager
    def _access(self, own: Own, role: Role) -> Iterator[Access]:
        token = self._tokens.lend(own, role)
        try:
            yield Access(self._endpoint, token, self._identity)
        finally:
            self._tokens.take_back(token)


class _Execution:
    """One attempt at one invocation, from its workspace to its verdict."""

    def __init__(
        self,
        claim: _Claim,
        writer: LogWriter,
        settings: ServiceSettings,
        access: Callable[[Own, Role], AbstractContextManager[Access]],
        datasets: DatasetFiles,
        secret_values: Secrets,
        orphans: Orphans,
    ) -> None:
        self._claim = claim
        self._record = claim.record
        self._writer = writer
        self._settings = settings
        self._access = access
        self._datasets = datasets
        self._secrets = secret_values
        self._orphans = orphans
        self._redaction = Redaction(())
        self._own = Own(claim.record.invocation_id, claim.record.org_id, "", set())
        self._role = Role.Action

    async def run(self) -> Verdict:
        """Run the action; its end status and the reason for it."""
        if (why := _why_again(self._record)) is not None:
            self._notice(why)
        workspace = Workspace(self._settings.workspaces / self._record.invocation_id)
        if (verdict := await asyncio.to_thread(self._prepare, workspace)) is not None:
            return verdict
        out = self._writer.stream(LogProcess.Action, self._redaction)
        err = self._writer.stream(LogProcess.Action, self._redaction)
        with self._access(self._own, self._role) as access:
            try:
                process = self._start(workspace, access, out, err)
                self._orphans.action_began(self._record.invocation_id, process.pid)
            except (OSError, ValueError) as error:
                if is_outage(error):
                    raise
                command = _command(self._record.container_parameters)[0]
                detail = f"can't start {command!r}: {error}"[:MAX_DETAIL]
                self._writer.say(LogProcess.Setup, detail)
                return Verdict(InvocationStatus.Failed, detail)
            try:
                verdict = await self._attend(process, out, err)
            finally:
                # Processes that the action left in its group end with it, as in a container.
                await processes.end(process.pid, self._settings.grace)
                # So do those that have left the group: nothing looks for them after the invocation has ended.
                await processes.end_marked(INVOCATION_VARIABLE, {self._record.invocation_id})
                await self._orphans.action_ended(self._record.invocation_id, workspace.folder)
                await process.last_output(LAST_OUTPUT, self._claim.stopping)
                workspace.remove_secrets()
        out.finish()
        err.finish()
        await self._claim.repeat("write its last lines", self._writer.write_waiting)
        if verdict is None:
            verdict = _ended_by_itself(await process.exit_code, err)
        if verdict.status is InvocationStatus.Completed:
            await self._claim.move(InvocationStatus.Uploading)
            return await self._uploaded(workspace) or verdict
        return verdict

    async def _uploaded(self, workspace: Workspace) -> Verdict | None:
        """Upload the outputs, and repeat this during outages; return a verdict if the upload failed."""
        attempts = 0

        def upload_unless_stopped() -> Verdict | None:
            nonlocal attempts
            attempts += 1
            stopped = self._claim.stopped() if attempts > 1 else None
            return stopped or self._upload(workspace)

        return await self._claim.repeat("upload its outputs", upload_unless_stopped)

    def _prepare(self, workspace: Workspace) -> Verdict | None:
        """Make the workspace; a verdict if nothing is to be run in it any more."""
        catalog = LocalCatalog(self._datasets, self._record.org_id, self._unless_stopped(), self._notice)
        try:
            prepared = workspace.prepare(
                self._record,
                catalog,
                self._secrets.reader(self._record.org_id),
                self._claim.wants_downloads,
                self._notice,
            )
        except PrepareEnvException as error:
            if is_outage(error.__cause__):
                workspace.remove_input()
                raise error.__cause__ from None
            self._writer.say(LogProcess.Setup, error.reason)
            code = int(error.exit_code)
            return Verdict(InvocationStatus.Failed, f"exit code {code}: {error.reason}"[:MAX_DETAIL], code)
        except _Stopped as stopped:
            return stopped.verdict
        self._redaction = Redaction(prepared.secrets.values())
        self._own = own_of(self._record, prepared.inputs)
        self._role = self._claim.role_of_process()
        return self._claim.stopped()

    def _notice(self, text: str) -> None:
        self._writer.say(LogProcess.Setup, text)

    def _upload(self, workspace: Workspace) -> Verdict | None:
        """Upload the outputs; a verdict if that isn't done."""

        def say(text: str) -> None:
            self._writer.say(LogProcess.OutputHandler, text)

        try:
            upload(self._datasets, self._record, workspace.paths, say, self._unless_stopped())
        except UploadError as error:
            say(str(error))
            return Verdict(InvocationStatus.Failed, f"the upload failed: {error}"[:MAX_DETAIL])
        except _Stopped as stopped:
            return stopped.verdict
        return None

    def _unless_stopped(self) -> Callable[[], None]:
        """A function that raises _Stopped once there is a verdict; it looks now and then only."""
        next_look = time.monotonic() + LOOK_INTERVAL

        def look() -> None:
            nonlocal next_look
            if time.monotonic() < next_look:
                return
            next_look = time.monotonic() + LOOK_INTERVAL
            with contextlib.suppress(SQLAlchemyError):  # the next look may be answered
                if (verdict := self._claim.stopped()) is not None:
                    raise _Stopped(verdict)

        return look

    def _start(
        self, workspace: Workspace, access: Access, out: LineStream, err: LineStream
    ) -> processes.Process:
        container = self._record.container_parameters
        folder = _working_directory(container, workspace)
        command = _command(container)
        environment = workspace.environment(self._record, access, command, self._notice)
        return processes.start(command, folder, environment, out.feed, err.feed)

    async def _attend(self, process: processes.Process, *streams: LineStream) -> Verdict | None:
        """Follow a process until it ends by itself (None), or has to be stopped."""
        await self._claim.set_processing(process.pid)
        stopped = asyncio.create_task(self._claim.until_stopped())
        redrawing = asyncio.create_task(_show_redrawn(streams))
        ends: set[asyncio.Future[Any]] = {process.exit_code, stopped}
        minutes = self._record.timeout
        try:
            await asyncio.wait(ends, timeout=minutes * MINUTE, return_when=asyncio.FIRST_COMPLETED)
            if process.exit_code.done():
                return None
            return stopped.result() if stopped.done() else _timed_out(minutes)
        finally:
            stopped.cancel()
            redrawing.cancel()


async def _show_redrawn(streams: Sequence[LineStream]) -> None:
    """Write the current state of progress bars while their streams are silent."""
    while True:
        await asyncio.sleep(REDRAW_INTERVAL)
        for stream in streams:
            stream.show_redrawn()


def own_of(record: InvocationRecord, inputs: ActionInputRecord) -> Own:
    """Return an invocation's own resources: itself, its input datasets, and its destination."""
    selectors = record.rich_input_data.file_selectors if record.rich_input_data else []
    named = {None if record.data_source.is_unspecified else record.data_source.data_source_id}
    named |= {selector.dataset_id for selector in selectors}
    named |= {file.association_id for file, _ in inputs.files}
    named.add(destination_of(record))
    datasets = {dataset_id for dataset_id in named if dataset_id is not None}
    return Own(record.invocation_id, record.org_id, record.provenance.action.name, datasets)


def _why_again(record: InvocationRecord) -> str | None:
    """Return which attempt this is, and why the previous one was interrupted; None for the first."""
    queued = [step for step in record.status if step.status is InvocationStatus.Queued]
    if len(queued) < 2:
        return None
    why = f": {queued[-1].detail}" if queued[-1].detail else ""
    return f"attempt {len(queued)}, from the beginning{why}"


def _timed_out(minutes: int) -> Verdict:
    return Verdict(InvocationStatus.Failed, f"timed out after {minutes} min")


def _ended_by_itself(code: int, err: LineStream) -> Verdict:
    if code == 0:
        return Verdict(InvocationStatus.Completed, None, code)
    how = f"exit code {code}" if code > 0 else f"ended by {_signal_name(-code)}"
    last = err.last_line.decode("utf-8", errors="replace")[-MAX_DETAIL:]
    return Verdict(InvocationStatus.Failed, f"{how}: {last}" if last else how, code if code > 0 else None)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _working_directory(container: ContainerParameters, workspace: Workspace) -> Path:
    if container.workdir is None:
        return workspace.work
    folder = Path(container.workdir)
    if not folder.is_dir():
        raise NotADirectoryError(f"there is no working directory {container.workdir!r}")
    return folder


def _command(container: ContainerParameters) -> list[str]:
    return [*(container.entry_point or []), *(container.command or [])]


def in_loop(loop: asyncio.AbstractEventLoop, listener: Callable[[_T], None]) -> Callable[[_T], None]:
    """A listener that may be called from any thread, and is run in the loop."""

    def call(news: _T) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: the server is stopping
            loop.call_soon_threadsafe(listener, news)

    return call
