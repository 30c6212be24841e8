"""Run an invocation once: workspace, process, log, timeout, and upload of the outputs."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from ...models import ContainerParameters, InvocationRecord, InvocationStatus, LogProcess
from ...models.dataset import ActionInputRecord
from ...runtime.exceptions import PrepareEnvException
from ..callers import Own, Role
from ..catalog import LocalCatalog
from ..datasets import DatasetFiles
from ..outages import is_outage
from ..secrets import Secrets
from ..settings import ServerSettings
from . import processes
from .claim import Claim, Outcome
from .logs import REDRAW_INTERVAL, LineStream, LogWriter
from .outputs import UploadError, destination_of, upload
from .redaction import Redaction
from .subreaper import Subreaper
from .termination import ProcessGroup, kill_marked, terminate
from .workspace import INVOCATION_VARIABLE, Access, Workspace

#: Seconds between two checks, while files are copied, whether the attempt has to stop.
STOP_CHECK_INTERVAL = 0.5

#: Seconds to wait for output after the process group has ended; another process may hold the pipe.
MAX_LAST_OUTPUT = 2.0

#: Characters of a failure's detail.
MAX_DETAIL = 1000

#: Seconds in the unit of an invocation's timeout.
MINUTE = 60.0


class _Stopped(Exception):
    """Leave an attempt that has to stop."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome)
        self.outcome = outcome


class Attempt:
    """One attempt to run an invocation, from its workspace to its outcome."""

    def __init__(
        self,
        claim: Claim,
        writer: LogWriter,
        settings: ServerSettings,
        access: Callable[[Own, Role], AbstractContextManager[Access]],
        datasets: DatasetFiles,
        secret_values: Secrets,
        subreaper: Subreaper,
    ) -> None:
        self._claim = claim
        self._record = claim.record
        self._writer = writer
        self._settings = settings
        self._access = access
        self._datasets = datasets
        self._secrets = secret_values
        self._subreaper = subreaper
        self._redaction = Redaction(())
        self._own = Own(claim.record.invocation_id, claim.record.org_id, "", set())
        self._role = Role.Action
        self._destination: str | None = None

    async def run(self) -> Outcome:
        """Run the action; return the outcome."""
        if (why := _repetition(self._record)) is not None:
            self._notice(why)
        workspace = Workspace(self._settings.workspaces / self._record.invocation_id)
        if (outcome := await asyncio.to_thread(self._prepare, workspace)) is not None:
            return outcome
        out = self._writer.stream(LogProcess.Action, self._redaction)
        err = self._writer.stream(LogProcess.Action, self._redaction)
        with self._access(self._own, self._role) as access:
            try:
                process = self._start(workspace, access, out, err)
                self._subreaper.action_started(self._record.invocation_id, process.pid)
            except (OSError, ValueError) as error:
                if is_outage(error):
                    raise
                command = _command(self._record.container_parameters)[0]
                detail = f"can't start {command!r}: {error}"[:MAX_DETAIL]
                self._writer.say(LogProcess.Setup, detail)
                return Outcome(InvocationStatus.Failed, detail)
            try:
                outcome = await self._attend(process, out, err)
            finally:
                # Processes that the action has left in its group end with it, as in a container.
                await terminate(ProcessGroup(process.pid), self._settings.grace)
                # So do processes that have left the group; nothing searches for them after the invocation.
                await kill_marked(INVOCATION_VARIABLE, {self._record.invocation_id})
                await self._subreaper.action_ended(self._record.invocation_id, workspace.folder)
                await process.last_output(MAX_LAST_OUTPUT, self._claim.stopping)
                workspace.remove_secrets()
        out.finish()
        err.finish()
        await self._claim.repeat("write its last lines", self._writer.write_waiting)
        if outcome is None:
            outcome = _ended_by_itself(await process.exit_code, err)
        if outcome.status is InvocationStatus.Completed:
            await self._claim.move(InvocationStatus.Uploading)
            return await self._uploaded(workspace) or outcome
        return outcome

    async def _uploaded(self, workspace: Workspace) -> Outcome | None:
        """Upload the outputs, and repeat this during outages; return the outcome if the upload failed."""
        attempts = 0

        def upload_unless_stopped() -> Outcome | None:
            nonlocal attempts
            attempts += 1
            stopped = self._claim.stopped() if attempts > 1 else None
            return stopped or self._upload(workspace)

        return await self._claim.repeat("upload its outputs", upload_unless_stopped)

    def _prepare(self, workspace: Workspace) -> Outcome | None:
        """Prepare the workspace; return an outcome if nothing has to run in it."""
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
            return Outcome(InvocationStatus.Failed, f"exit code {code}: {error.reason}"[:MAX_DETAIL], code)
        except _Stopped as stopped:
            return stopped.outcome
        self._redaction = Redaction(prepared.secrets.values())
        self._destination = destination_of(self._record, prepared.inputs)
        self._own = own_of(self._record, prepared.inputs)
        self._role = self._claim.role_of_process()
        return self._claim.stopped()

    def _notice(self, text: str) -> None:
        self._writer.say(LogProcess.Setup, text)

    def _upload(self, workspace: Workspace) -> Outcome | None:
        """Upload the outputs; return an outcome if that failed or was stopped."""

        def say(text: str) -> None:
            self._writer.say(LogProcess.OutputHandler, text)

        try:
            upload(
                self._datasets, self._record, self._destination, workspace.paths, say, self._unless_stopped()
            )
        except UploadError as error:
            say(str(error))
            return Outcome(InvocationStatus.Failed, f"the upload failed: {error}"[:MAX_DETAIL])
        except _Stopped as stopped:
            return stopped.outcome
        return None

    def _unless_stopped(self) -> Callable[[], None]:
        """Return a function that raises _Stopped if the attempt has to stop; it may be called often."""
        next_check = time.monotonic() + STOP_CHECK_INTERVAL

        def check() -> None:
            nonlocal next_check
            if time.monotonic() < next_check:
                return
            next_check = time.monotonic() + STOP_CHECK_INTERVAL
            with contextlib.suppress(SQLAlchemyError):  # the next check may succeed
                if (outcome := self._claim.stopped()) is not None:
                    raise _Stopped(outcome)

        return check

    def _start(
        self, workspace: Workspace, access: Access, out: LineStream, err: LineStream
    ) -> processes.Process:
        container = self._record.container_parameters
        folder = _working_directory(container, workspace)
        command = _command(container)
        environment = workspace.environment(self._record, access, command, self._notice)
        return processes.start(command, folder, environment, out.feed, err.feed)

    async def _attend(self, process: processes.Process, *streams: LineStream) -> Outcome | None:
        """Follow a process until it ends by itself (return None) or has to be stopped."""
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
    """Return an invocation's own resources: itself, its input datasets, and its upload destination."""
    selectors = record.rich_input_data.file_selectors if record.rich_input_data else []
    named = {None if record.data_source.is_unspecified else record.data_source.data_source_id}
    named |= {selector.dataset_id for selector in selectors}
    named |= {file.association_id for file, _ in inputs.files}
    named.add(destination_of(record, inputs))
    datasets = {dataset_id for dataset_id in named if dataset_id is not None}
    return Own(record.invocation_id, record.org_id, record.provenance.action.name, datasets)


def _repetition(record: InvocationRecord) -> str | None:
    """Return the attempt's number, and why the previous one was interrupted; None for the first."""
    queued = [step for step in record.status if step.status is InvocationStatus.Queued]
    if len(queued) < 2:
        return None
    why = f": {queued[-1].detail}" if queued[-1].detail else ""
    return f"attempt {len(queued)}, from the beginning{why}"


def _timed_out(minutes: int) -> Outcome:
    return Outcome(InvocationStatus.Failed, f"timed out after {minutes} min")


def _ended_by_itself(code: int, err: LineStream) -> Outcome:
    if code == 0:
        return Outcome(InvocationStatus.Completed, None, code)
    how = f"exit code {code}" if code > 0 else f"ended by {_signal_name(-code)}"
    last = err.last_line.decode("utf-8", errors="replace")[-MAX_DETAIL:]
    return Outcome(InvocationStatus.Failed, f"{how}: {last}" if last else how, code if code > 0 else None)


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
