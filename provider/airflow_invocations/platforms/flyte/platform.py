"""The platform behind connections of type `flyte`: Flyte 2, without its SDK."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import AsyncIterator, Awaitable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any
from urllib.parse import quote

from ...models import (
    SOURCE_ID_BEGIN,
    ActionRecord,
    EventFilter,
    InvocationRecord,
    InvocationRequest,
    LogPage,
    SourceFilter,
    StatusSnapshot,
    UnreadableItem,
    task_instance_of,
)
from ..base import Capabilities, EventStream, Platform
from ..errors import (
    ConflictError,
    InvalidRequestError,
    NotFoundError,
    UnavailableError,
    UnsupportedError,
)
from ..polling import PollingEventStream
from .client import DATA, ConnectClient
from .ids import ProjectDomain, RunId, TaskId, name_begin, name_middle, run_name
from .lister import FlyteLister
from .literals import inputs_of, variables_of
from .logs import Cursor, page_of
from .outputs import outputs_of
from .phases import ACTIVE, ENDS
from .records import (
    ended_at,
    is_unscheduled,
    lacks_why,
    run_id_of,
    run_spec_of,
    snapshot_of,
    snapshots_of,
    task_of,
    to_action_record,
    to_record,
)
from .runs import PAGE, RunService, at_once, created_since, field_filter, name_contains
from .settings import FlyteSettings
from .shapes import MisshapenError, object_at, objects_at
from .tasks import TaskCatalog
from .watch import FlyteWatch

Json = dict[str, Any]

#: Attempts to read the error of a failed run, the pause between them in seconds, and the seconds after its
#: end during which the error may still arrive.
WHY_ATTEMPTS = 5
WHY_PAUSE = 0.5
WHY_LATE = 30.0


class FlytePlatform(Platform):
    """Flyte 2, over its run service.

    An action is a deployed task, project/domain/name@version; an invocation is a run, project/domain/name.
    """

    name = "Flyte"

    #: Of container parameters only env_vars are applied; `invoke` rejects the others. A run's inputs aren't
    #: in its record but in a storage that Flyte would have to read for each record.
    capabilities = Capabilities(
        input_data=False,
        upload_destination=False,
        compute_requirements=False,
        timeout=False,
        parameters=False,
        outputs=True,
        events=True,
    )

    def __init__(self, settings: FlyteSettings) -> None:
        super().__init__(settings.endpoint)
        self._settings = settings
        self._org = settings.org
        self._connect = ConnectClient(settings)
        self._runs = RunService(self._connect, settings.endpoint, settings.org)
        self._tasks = TaskCatalog(self._runs, settings.endpoint)

    async def open(self) -> None:
        """Make the connection pool."""
        await self._connect.pool.open()

    async def close(self) -> None:
        """Close the connection pool and its streams."""
        await self._connect.pool.close()

    def page_url(self, invocation_id: str) -> str:
        """Return the URL of the run's page in Flyte's console, which is at /v2 of the endpoint."""
        try:
            run = RunId.of(invocation_id)
        except NotFoundError:
            return ""
        # As in Flyte's SDK: the development server's console has another port.
        endpoint = self._settings.endpoint.replace("://localhost:8090", "://localhost:8080", 1)
        base = (self._settings.link_base or f"{endpoint}/v2").rstrip("/")
        project, domain, name = (
            quote(part, safe="") for part in (run.scope.project, run.scope.domain, run.name)
        )
        return f"{base}/domain/{domain}/project/{project}/runs/{name}"

    async def check(self) -> str:
        """List one run; return a sentence with the address and the project."""
        answer = await self._runs.page(self._runs.scope_of(None), [], limit=1)
        try:
            objects_at(answer, "runs")
        except MisshapenError as error:
            raise UnavailableError(f"{self.where} responds, but not as Flyte 2 does: {error}") from error
        scope = "/".join(part for part in (self._settings.project, self._settings.domain) if part)
        return f"{self.where} responds as Flyte 2" + (f"; actions are those of {scope}" if scope else "")

    async def get_action(self, name: str) -> ActionRecord:
        """Return a deployed task, in its newest version if the name has none."""
        task, details = await self._tasks.get(TaskId.of(name, self._settings))
        return to_action_record(task, details, self._org)

    async def invoke(self, action: str, request: InvocationRequest) -> InvocationRecord:
        """Start a run, or return the one that has the request's `idempotency_id`.

        :raises InvalidRequestError: the task doesn't accept the parameters; all problems, before sending.
        :raises UnsupportedError: Flyte can't apply an argument to a single run.
        :raises ConflictError: the run of that `idempotency_id` is another task's.
        """
        self.check_supported(request)
        _check_container_parameters(request)
        task = TaskId.of(action, self._settings)
        run = RunId(task.scope, run_name(task.scope, request))
        details = await self._runs.details_if_any(run)
        if details is None:
            details = await self._create(run, task, request)
        elif is_unscheduled(details) and task_of(object_at(details, "action")).path == task.path:
            await self._runs.enqueue(run, details)
        _check_task(details, run, task)
        return to_record(details, run, self._org)

    async def get(self, invocation_id: str) -> InvocationRecord:
        """Return a run with its history. If it has just failed, wait for its error, which arrives later."""
        run = RunId.of(invocation_id)
        for _ in range(WHY_ATTEMPTS):
            details = await self._runs.details(run)
            ended = ended_at(details)
            is_late = ended is None or datetime.datetime.now(datetime.UTC) - ended < datetime.timedelta(
                seconds=WHY_LATE
            )
            if not (lacks_why(details) and is_late):
                break
            await asyncio.sleep(WHY_PAUSE)
        return to_record(details, run, self._org)

    async def statuses(self, invocation_ids: Collection[str]) -> list[StatusSnapshot]:
        """Return the statuses of up to 1,000 runs; unknown ids are left out."""
        return await self._runs.statuses(invocation_ids)

    async def ended(self, invocation_ids: Collection[str]) -> list[StatusSnapshot]:
        """Like `statuses`, for runs in a terminal status only."""
        return snapshots_of(await self._runs.by_ids(invocation_ids, field_filter("phase", ENDS)))

    async def active(self, idempotency_ids: Collection[str]) -> list[StatusSnapshot]:
        """Return the statuses of the active runs of up to 1,000 idempotency ids, with a request for each."""

        async def list_named(idempotency_id: str) -> list[Json]:
            named = name_contains(name_middle(idempotency_id))
            return objects_at(await self._runs.page(self._runs.scope_of(None), [named]), "runs")

        # An unreadable run raises here, because it may be active.
        found = [snapshot_of(run) for runs in await at_once(list_named, idempotency_ids) for run in runs]
        return [snapshot for snapshot in found if not snapshot.status.is_terminal]

    async def newest(self, action: str, since: datetime.datetime) -> InvocationRecord | None:
        """Return the run of a task that was created last, at `since` or later; None: none was.

        `since` is converted to Flyte's clock.

        :raises InvalidRequestError: the action is not the name of a task.
        """
        return await self._connect.pool.clock.since(since, partial(self._newest_since, action))

    async def _newest_since(self, action: str, since: datetime.datetime) -> InvocationRecord | None:
        task = TaskId.of(action, self._settings)
        filters = [field_filter("task_name", [task.name]), created_since(since)]
        # Not every Flyte can filter by version.
        size = PAGE if task.version else 1
        async for page in self._runs.pages(self._runs.scope_of(task.scope), filters, size):
            for run in page:
                root = object_at(run, "action")
                if str(task) in task_of(root).names(self._settings):
                    return await self.get(str(run_id_of(root)))
        return None

    async def find(
        self,
        dag_id: str,
        run_id: str | None,
        task_id: str | None,
        map_index: int | None,
        limit: int | None = None,
        iteration: int | None = None,
    ) -> list[InvocationRecord]:
        """Return the runs of a DAG, a DAG run or a task, newest first, in all projects.

        Flyte can't search annotations. Runs are found by their names, in pages of 200, with a pattern that no
        index of its database serves; then each is read. With `limit`, only as many are read as needed.
        """
        named = name_contains(name_begin(dag_id, run_id))
        wanted = SourceFilter(dag_id, run_id, task_id, map_index, iteration)
        mine: list[InvocationRecord] = []
        async for page in self._runs.pages(self._runs.scope_of(None), [named]):
            runs = [run_id_of(object_at(run, "action")) for run in page]
            step = limit or len(runs)
            for first in range(0, len(runs), step):
                mine += await self._asked_by(runs[first : first + step], wanted)
                if limit is not None and len(mine) >= limit:
                    return sorted(mine, key=lambda record: record.created, reverse=True)[:limit]
        return sorted(mine, key=lambda record: record.created, reverse=True)

    async def find_active(self, limit: int) -> list[InvocationRecord]:
        """Return the active runs that tasks of any Airflow have started, newest first, in all projects.

        The names of all runs in an active phase are listed, in pages of 200; then each is read.
        """
        found: list[InvocationRecord] = []
        async for page in self._runs.pages(self._runs.scope_of(None), [field_filter("phase", ACTIVE)]):
            runs = [run_id_of(object_at(run, "action")) for run in page]
            details = await at_once(self._runs.details_if_any, runs)
            records = [
                to_record(one, run, self._org)
                for run, one in zip(runs, details, strict=True)
                if one is not None
            ]
            found += [one for one in records if one.provenance.source.source_id.startswith(SOURCE_ID_BEGIN)]
            if len(found) >= limit:
                break
        return [one for one in found[:limit] if not one.current.status.is_terminal]

    async def _asked_by(self, runs: Collection[RunId], wanted: SourceFilter) -> list[InvocationRecord]:
        """Return the records of those runs that these task instances started."""
        details = await at_once(self._runs.details_if_any, runs)
        records = [
            to_record(one, run, self._org) for run, one in zip(runs, details, strict=True) if one is not None
        ]
        return [one for one in records if wanted.matches(one.provenance.source.source_id)]

    @asynccontextmanager
    async def watch(
        self, invocation_ids: Collection[str], logs: Mapping[str, str | None], cursor: int | None
    ) -> AsyncIterator[FlyteWatch]:
        """Open a stream for each project and domain of the runs. It begins with the present statuses.

        :raises UnsupportedError: on entering: the runs are in too many projects.
        """
        watch = FlyteWatch(self._runs, self._connect, self._org, invocation_ids, logs)
        try:
            yield watch
        finally:
            await watch.close()

    @asynccontextmanager
    async def events(self, wanted: EventFilter, since: int | None) -> AsyncIterator[EventStream]:
        """Open a stream of the terminal statuses of the connection's project and domain, or of all runs.

        Runs are polled, because Flyte's own stream leaves out some.

        :raises InvalidRequestError: on entering: the action is not a task of that project and domain.
        """
        settings = self._settings
        here = (
            ProjectDomain(settings.project, settings.domain) if settings.project and settings.domain else None
        )
        filters: list[Json] = []
        if wanted.action is not None:
            task = TaskId.of(wanted.action, settings)
            if here not in (None, task.scope):
                raise InvalidRequestError(
                    f"{wanted.action!r} is a task of {task.scope}, and this connection watches {here} only; "
                    "use a connection of that project and domain, or one without project and domain"
                )
            filters = [field_filter("task_name", [task.name])]
        scope = self._runs.scope_of(here)

        def created(moment: datetime.datetime) -> AsyncIterator[Sequence[Json]]:
            return self._runs.pages(scope, [*filters, created_since(moment)])

        def ended(invocation_ids: Collection[str]) -> Awaitable[list[Json]]:
            return self._runs.by_ids(invocation_ids, field_filter("phase", ENDS))

        yield PollingEventStream(FlyteLister(created, ended, settings), since)

    async def records(self, invocation_ids: Collection[str]) -> list[InvocationRecord | UnreadableItem]:
        """Return the records of up to 1,000 runs, in any order, with a request for each."""

        async def get_if_any(invocation_id: str) -> InvocationRecord | UnreadableItem | None:
            try:
                return await self.get(invocation_id)
            except NotFoundError:
                return None
            except MisshapenError as error:
                return UnreadableItem(f"{invocation_id}: {error}")

        return [record for record in await at_once(get_if_any, set(invocation_ids)) if record is not None]

    async def logs(self, invocation_id: str, cursor: str | None = None) -> LogPage:
        """Return log lines from a cursor on (None: the beginning); none while the run has no pod."""
        run = RunId.of(invocation_id)
        details = partial(self._runs.details, run)
        return await page_of(self._connect, run, self._org, Cursor.of(cursor), details)

    async def cancel(self, invocation_id: str) -> None:
        """Abort a run, with the task as the reason; a terminal one stays as it is.

        Flyte itself would overwrite a status that becomes terminal between the two requests.
        """
        run = RunId.of(invocation_id)

        async def abort_if_active() -> None:
            record = to_record(await self._runs.details_once(run), run, self._org)
            if not record.current.status.is_terminal:
                await self._runs.abort(run, _reason(record))

        await self._connect.retry(abort_if_active)

    async def outputs(self, invocation_id: str) -> Any:
        """Return the result of a completed run, as JSON types: see `outputs_of`."""
        message = {"actionId": RunId.of(invocation_id).action(self._org)}
        answer = await self._connect.call(f"{DATA}/GetActionData", message)
        return outputs_of(objects_at(answer, "outputs", "literals"))

    async def _create(self, run: RunId, task: TaskId, request: InvocationRequest) -> Json:
        """Create the run of a request; return its RunDetails, as far as they are known."""
        task, deployed = await self._tasks.get(task)
        spec: Json = object_at(deployed, "spec")
        message = {
            "inputs": inputs_of(str(task), variables_of(spec), request.parameter_values or {}),
            "runSpec": run_spec_of(request),
        }
        return await self._runs.create(run, task, spec, message)


def _check_task(details: Json, run: RunId, task: TaskId) -> None:
    """Raise ConflictError unless a run belongs to the requested task."""
    present = task_of(object_at(details, "action"))
    if present.name and present.path != task.path:
        raise ConflictError(f"run {run} has this idempotency id, but it is a run of task {present.path}")


def _reason(record: InvocationRecord) -> str:
    """Return the reason for an abort, which names the task."""
    task_instance = task_instance_of(record.provenance.source.source_id)
    if task_instance is None:
        return "cancelled from Airflow"
    looped = f", iteration {task_instance.iteration}" if task_instance.iteration is not None else ""
    mapped = f" [{task_instance.map_index}]" if task_instance.map_index >= 0 else ""
    task = f"{task_instance.task_id}{mapped}{looped}"
    return f"cancelled from Airflow: DAG {task_instance.dag_id}, run {task_instance.run_id}, task {task}"


def _check_container_parameters(request: InvocationRequest) -> None:
    """Raise UnsupportedError for container parameters other than env_vars."""
    own = request.own_container_parameters
    if own is None:
        return
    others = own.model_dump(exclude_none=True, exclude={"env_vars"})
    if others:
        names = ", ".join(map(repr, others))
        raise UnsupportedError(
            f"Flyte doesn't support {names} of argument 'container_parameters', only 'env_vars'; set them "
            "where the task is defined"
        )
