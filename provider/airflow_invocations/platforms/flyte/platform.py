"""Flyte 2 as a platform: its run service asked over Connect, without its SDK."""

from __future__ import annotations

import asyncio
import datetime
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar
from urllib.parse import quote

from ...models import (
    ActionRecord,
    EventFilter,
    InvocationRecord,
    InvocationRequest,
    InvocationStatus,
    LogPage,
    SourceFilter,
    StatusSnapshot,
    UnreadableItem,
    task_instance_of,
)
from ..base import Capabilities, EventStream, Platform, web_address
from ..errors import (
    ConflictError,
    InvalidRequestError,
    NotFoundError,
    TransientError,
    UnavailableError,
    UnsupportedError,
)
from ..polling import PollingEventStream
from .client import ATTEMPTS, DATA, RUNS, TASKS, Connect, pause_after
from .ids import Place, RunId, TaskId, name_begin, name_middle, run_name
from .inputs import inputs_of, variables_of
from .listing import FlyteLister
from .logs import Cursor, page_of
from .outputs import outputs_of
from .phases import ENDS, status_of
from .records import (
    action_record_of,
    ended_at,
    is_unscheduled,
    lacks_why,
    record_of,
    run_id_of,
    run_spec_of,
    runs_by_id,
    snapshot_of,
    snapshots_of,
    task_of,
)
from .settings import FlyteSettings
from .shapes import MisshapenError, object_at, objects_at, reads, text_at
from .watch import FlyteWatch

Json = dict[str, Any]
ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

#: The largest page that Flyte answers.
PAGE = 200

#: Requests at a time, where one question needs several.
AT_ONCE = 8

#: How often, and with which pause in seconds, a failed run is asked for why, while that may be on its way:
#: so many seconds after its end.
WHY_ATTEMPTS = 5
WHY_PAUSE = 0.5
WHY_LATE = 30.0

#: Seconds for which a task's definition is kept, and how many are.
TASK_FRESH = 10.0
MAX_TASKS = 256

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _KnownTask:
    """A task with its version, and its TaskDetails, for a while."""

    task: TaskId
    details: Json
    #: By the monotonic clock.
    fresh_until: float


class FlytePlatform(Platform):
    """A client of Flyte 2: one connection pool, opened with `async with`.

    An action is a deployed task, project/domain/name@version; an invocation is a run, project/domain/name.
    Calls that don't change anything are tried again after a TransientError.

    Raises:
        PlatformError: each method, one of the tree in `platforms.base`.
    """

    name = "Flyte"

    #: Of container parameters only env_vars are honoured; `invoke` refuses the others. What a run was given
    #: is not with the run, but in a storage that Flyte would have to read for each record.
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
        self._connect = Connect(settings)
        self._tasks: dict[TaskId, _KnownTask] = {}

    async def open(self) -> None:
        """Make the connection pool."""
        await self._connect.open()

    async def close(self) -> None:
        """Close the connection pool and its streams."""
        await self._connect.close()

    def url(self, invocation_id: str) -> str:
        """The run's page in Flyte's console, which is at /v2 of the endpoint."""
        try:
            run = RunId.of(invocation_id)
        except NotFoundError:
            return ""
        # As the SDK has it: the development server's console has a port of its own.
        endpoint = self._settings.endpoint.replace("://localhost:8090", "://localhost:8080", 1)
        base = (self._settings.link_base or f"{endpoint}/v2").rstrip("/")
        project, domain, name = (
            quote(part, safe="") for part in (run.place.project, run.place.domain, run.name)
        )
        return web_address(f"{base}/domain/{domain}/project/{project}/runs/{name}")

    async def check(self) -> str:
        """Ask for one run; a sentence about who answered."""
        answer = await self._list(self._everywhere(), [], limit=1)
        try:
            objects_at(answer, "runs")
        except MisshapenError as error:
            raise UnavailableError(f"{self.where} answers, but not as Flyte 2 does: {error}") from error
        place = "/".join(part for part in (self._settings.project, self._settings.domain) if part)
        return f"{self.where} answers as Flyte 2" + (f"; actions are those of {place}" if place else "")

    async def get_action(self, name: str) -> ActionRecord:
        """A deployed task, in its newest version if the name has none."""
        task, details = await self._task(TaskId.of(name, self._settings))
        return action_record_of(task, details, self._org)

    async def invoke(self, action: str, request: InvocationRequest) -> InvocationRecord:
        """Start a run; the one that has the request's `idempotency_id`, if there is one already.

        Raises:
            InvalidRequestError: parameters that the task doesn't take: all of them, before anything is sent.
            UnsupportedError: what Flyte doesn't let a run change.
            ConflictError: the run of that `idempotency_id` is another task's.
        """
        self.check_supported(request)
        _refuse_other_than_variables(request)
        task = TaskId.of(action, self._settings)
        run = RunId(task.place, run_name(task.place, request))
        details = await self._details_if_any(run)
        if details is None:
            details = await self._create(run, task, request)
        elif is_unscheduled(details) and task_of(object_at(details, "action")).path == task.path:
            await self._enqueue(run, details)
        _check_task(details, run, task)
        return record_of(details, run, self._org)

    async def get(self, invocation_id: str) -> InvocationRecord:
        """A run with its history; of one that has just failed, once its error is there, too."""
        run = RunId.of(invocation_id)
        for _ in range(WHY_ATTEMPTS):
            details = await self.details(run)
            ended = ended_at(details)
            is_late = ended is None or datetime.datetime.now(datetime.UTC) - ended < datetime.timedelta(
                seconds=WHY_LATE
            )
            if not (lacks_why(details) and is_late):
                break
            await asyncio.sleep(WHY_PAUSE)
        return record_of(details, run, self._org)

    async def statuses(self, invocation_ids: Collection[str]) -> list[StatusSnapshot]:
        """The status of each of up to 1,000 runs; those that aren't known are left out."""
        return await self._snapshots(invocation_ids, [])

    async def ended(self, invocation_ids: Collection[str]) -> list[StatusSnapshot]:
        """The same of those that have ended only."""
        return await self._snapshots(invocation_ids, [_filter("phase", ENDS)])

    async def active(self, idempotency_ids: Collection[str]) -> list[StatusSnapshot]:
        """Those runs under up to 1,000 idempotency ids that haven't ended: a request for each id."""

        async def of(idempotency_id: str) -> list[Json]:
            named = _containing("run_name", name_middle(idempotency_id))
            return objects_at(await self._list(self._everywhere(), [named]), "runs")

        # A run that can't be read may be one that goes on: it is not left out here.
        found = [snapshot_of(run) for runs in await _at_once(of, idempotency_ids) for run in runs]
        return [snapshot for snapshot in found if not snapshot.status.is_terminal]

    async def newest(self, action: str, since: datetime.datetime) -> InvocationRecord | None:
        """Return the run of a task that was created last, at `since` or later; None: there is none.

        `since` is compared with Flyte's times by Flyte's own clock.

        Raises:
            InvalidRequestError: that is no name of a task.
        """
        return await self._connect.clock.since(since, partial(self._newest_since, action))

    async def _newest_since(self, action: str, since: datetime.datetime) -> InvocationRecord | None:
        task = TaskId.of(action, self._settings)
        filters = [_filter("task_name", [task.name]), _created_since(since)]
        # Lists can't be asked for a version everywhere.
        size = PAGE if task.version else 1
        async for page in self._pages(self._at(task.place), filters, size):
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
        """Return what a DAG, a run or a task of it has invoked, newest first, wherever in Flyte.

        Flyte can't search annotations: runs are found by their names, in pages of 200, by a pattern that no
        index of its database serves; each is then read by itself, also for a task of its DAG run only. With
        `limit` no more are read than it takes to have the newest so many.
        """
        named = _containing("run_name", name_begin(dag_id, run_id))
        wanted = SourceFilter(dag_id, run_id, task_id, map_index, iteration)
        mine: list[InvocationRecord] = []
        async for page in self._pages(self._everywhere(), [named]):
            runs = [run_id_of(object_at(run, "action")) for run in page]
            step = limit or len(runs)
            for first in range(0, len(runs), step):
                mine += await self._asked_by(runs[first : first + step], wanted)
                if limit is not None and len(mine) >= limit:
                    return sorted(mine, key=lambda record: record.created, reverse=True)[:limit]
        return sorted(mine, key=lambda record: record.created, reverse=True)

    async def _asked_by(self, runs: Collection[RunId], wanted: SourceFilter) -> list[InvocationRecord]:
        """Return the records of those runs that these task instances have asked for."""
        details = await _at_once(self._details_if_any, runs)
        records = [
            record_of(one, run, self._org) for run, one in zip(runs, details, strict=True) if one is not None
        ]
        return [one for one in records if wanted.matches(one.provenance.source.source_id)]

    @asynccontextmanager
    async def watch(
        self, invocation_ids: Collection[str], logs: Mapping[str, str | None], place: int | None
    ) -> AsyncIterator[FlyteWatch]:
        """Open a stream for each project's domain that the runs are in; it begins with the present state.

        Raises:
            UnsupportedError: on entering: the runs are in too many projects' domains.
        """
        watch = FlyteWatch(self, self._connect, self._org, invocation_ids, logs)
        try:
            yield watch
        finally:
            await watch.close()

    @asynccontextmanager
    async def events(self, wanted: EventFilter, since: int | None) -> AsyncIterator[EventStream]:
        """Open a stream of the ends of runs in the connection's project and domain, or else of all runs.

        They are asked for: what Flyte streams of runs leaves out some.

        Raises:
            InvalidRequestError: on entering: the wanted action is no name of a task there.
        """
        settings = self._settings
        here = Place(settings.project, settings.domain) if settings.project and settings.domain else None
        filters: list[Json] = []
        if wanted.action is not None:
            task = TaskId.of(wanted.action, settings)
            if here not in (None, task.place):
                raise InvalidRequestError(
                    f"{wanted.action!r} is a task of {task.place}, and this connection hears of {here} only; "
                    "use a connection of that project and domain, or one that names none"
                )
            filters = [_filter("task_name", [task.name])]
        scope = self._everywhere() if here is None else self._at(here)

        def created(moment: datetime.datetime) -> AsyncIterator[Sequence[Json]]:
            return self._pages(scope, [*filters, _created_since(moment)])

        def ended(invocation_ids: Collection[str]) -> Awaitable[list[Json]]:
            return self._runs_of(invocation_ids, [_filter("phase", ENDS)])

        yield PollingEventStream(FlyteLister(created, ended, settings), since)

    async def records(self, invocation_ids: Collection[str]) -> list[InvocationRecord | UnreadableItem]:
        """The records of up to 1,000 runs, in any order, each asked for by itself."""

        async def of(invocation_id: str) -> InvocationRecord | UnreadableItem | None:
            try:
                return await self.get(invocation_id)
            except NotFoundError:
                return None
            except MisshapenError as error:
                return UnreadableItem(f"{invocation_id}: {error}")

        return [record for record in await _at_once(of, set(invocation_ids)) if record is not None]

    async def logs(self, invocation_id: str, cursor: str | None = None) -> LogPage:
        """Log lines from `cursor` (None: the beginning) on; none while, or after, there is no pod."""
        run, place = RunId.of(invocation_id), Cursor.of(cursor)
        return await page_of(self._connect, run, self._org, place, partial(self.details, run))

    async def cancel(self, invocation_id: str) -> None:
        """Abort a run, and say for which task; one that has ended stays as it is.

        Flyte itself would overwrite an end that comes in the moment between the look and the request.
        """
        run = RunId.of(invocation_id)
        for attempt in range(ATTEMPTS):
            record = record_of(await self.details(run), run, self._org)
            if record.current.status.is_terminal:
                return
            try:
                message = {"runId": run.wire(self._org), "reason": _reason(record)}
                await self._connect.call(f"{RUNS}/AbortRun", message, attempts=1)
                return
            except TransientError as error:
                if attempt == ATTEMPTS - 1:
                    raise
                await asyncio.sleep(pause_after(error, attempt))

    async def outputs(self, invocation_id: str) -> Any:
        """What a completed run has returned, as JSON types: see `outputs_of`."""
        message = {"actionId": RunId.of(invocation_id).action(self._org)}
        answer = await self._connect.call(f"{DATA}/GetActionData", message)
        return outputs_of(objects_at(answer, "outputs", "literals"))

    # -- runs ----------------------------------------------------------------------------------------

    async def _create(self, run: RunId, task: TaskId, request: InvocationRequest) -> Json:
        """Create a run that isn't there; its details, as far as the answer tells them.

        Flyte creates a run twice if it is asked twice, once the first one's resource is gone: so it is
        looked for before each try.
        """
        task, deployed = await self._task(task)
        spec: Json = object_at(deployed, "spec")
        run_spec = run_spec_of(request)
        message = {
            "runId": run.wire(self._org),
            "taskId": task.wire(self._org),
            "inputs": inputs_of(str(task), variables_of(spec), request.parameter_values or {}),
            "runSpec": run_spec,
        }
        for attempt in range(ATTEMPTS):
            try:
                answer = await self._connect.call(f"{RUNS}/CreateRun", message, attempts=1)
            except ConflictError:
                _log.debug("run %s is there already", run)
                return await self.details(run)
            except TransientError as error:
                if attempt == ATTEMPTS - 1:
                    raise
                await asyncio.sleep(pause_after(error, attempt))
                details = await self._details_if_any(run)
                if details is None:
                    continue
                if is_unscheduled(details):
                    await self._enqueue(run, details)
                return details
            created: Json = object_at(answer, "run", "action")
            if not _is_new(created, task):
                return await self.details(run)
            return {"action": {**created, "task": spec}, "runSpec": run_spec}
        raise AssertionError("unreachable: the last attempt returns or raises")

    async def enqueue_if_unscheduled(self, invocation_id: str) -> bool:
        """Enqueue a run that Flyte accepted and never enqueued; return whether it was such a run.

        Raises:
            PlatformError: Flyte can't be asked, or has no such run.
        """
        run = RunId.of(invocation_id)
        details = await self.details(run)
        if not is_unscheduled(details):
            return False
        await self._enqueue(run, details)
        return True

    async def _enqueue(self, run: RunId, details: Json) -> None:
        """Send CreateRun again, with the inputs and the spec that Flyte stores.

        A run that was accepted while Flyte could not reach its cluster stays queued for ever, and a restart
        of Flyte doesn't help (https://github.com/flyteorg/flyte/issues/7872). Sent again, CreateRun leaves
        the record as it is and enqueues the run; Flyte rejects a second resource of an enqueued run.
        """
        data = await self._connect.call(f"{DATA}/GetActionData", {"actionId": run.action(self._org)})
        message = {
            "runId": run.wire(self._org),
            "taskId": task_of(object_at(details, "action")).wire(self._org),
            "inputs": object_at(data, "inputs"),
            "runSpec": object_at(details, "runSpec"),
        }
        with suppress(ConflictError):
            await self._connect.call(f"{RUNS}/CreateRun", message, attempts=1)
        _log.info("Flyte accepted run %s without enqueueing it; sent CreateRun again", run)

    async def details(self, run: RunId) -> Json:
        """Return a run's RunDetails. Raises NotFoundError only if it isn't there."""
        answer = await self._read(f"{RUNS}/GetRunDetails", {"runId": run.wire(self._org)})
        return object_at(answer, "details")

    async def _details_if_any(self, run: RunId) -> Json | None:
        try:
            return await self.details(run)
        except NotFoundError:
            return None

    async def _read(self, method: str, message: Json) -> Json:
        """Ask for one thing.

        Flyte answers not_found, too, when its database fails: what is really absent it says in words of its
        own, and only those are believed, as a run that is taken for absent is created anew.
        """
        for attempt in range(ATTEMPTS):
            try:
                return await self._connect.call(method, message)
            except NotFoundError as error:
                if _is_absence(str(error)):
                    raise
                if attempt == ATTEMPTS - 1:
                    raise UnavailableError(f"{self.where} can't look: {error}") from error
                await asyncio.sleep(pause_after(UnavailableError(), attempt))
        raise AssertionError("unreachable: the last attempt returns or raises")

    async def _snapshots(self, invocation_ids: Collection[str], filters: list[Json]) -> list[StatusSnapshot]:
        """The statuses of those runs that the filters let through."""
        return snapshots_of(await self._runs_of(invocation_ids, filters))

    async def _runs_of(self, invocation_ids: Collection[str], filters: list[Json]) -> list[Json]:
        """Those runs that the filters let through: a request for 200 of one place."""
        by_place: dict[Place, list[str]] = {}
        for invocation_id in set(invocation_ids):
            try:
                run = RunId.of(invocation_id)
            except NotFoundError:
                continue
            by_place.setdefault(run.place, []).append(run.name)
        batches = [
            (place, names[start : start + PAGE])
            for place, names in by_place.items()
            for start in range(0, len(names), PAGE)
        ]

        async def of(batch: tuple[Place, list[str]]) -> list[Json]:
            place, names = batch
            named = _filter("run_name", names)
            return objects_at(await self._list(self._at(place), [named, *filters]), "runs")

        return [run for runs in await _at_once(of, batches) for run in runs]

    async def _pages(
        self, scope: Json, filters: Sequence[Json], size: int = PAGE
    ) -> AsyncIterator[Sequence[Json]]:
        """All runs that the filters let through, newest first and each once, page by page.

        What is created meanwhile is in none of them, or moves others into the next. In another order there
        is no second page where Flyte's tokens are times of creation.
        """
        newest_first = [{"key": "created_at", "direction": "DESCENDING"}]
        seen: set[RunId] = set()
        token = ""
        while True:
            answer = await self._list(scope, filters, limit=size, token=token, sort=newest_first)
            listed = runs_by_id(objects_at(answer, "runs"))
            new = [run for run_id, run in listed.items() if run_id not in seen]
            seen.update(listed)
            before, token = token, text_at(answer, "token")
            if new:
                yield new
            # A page without anything new is that of many that were created meanwhile.
            if not listed or token in ("", before):
                return

    async def _list(
        self,
        scope: Json,
        filters: Sequence[Json],
        *,
        limit: int = PAGE,
        token: str = "",
        sort: Sequence[Json] = (),
    ) -> Json:
        listed = {"limit": limit, "filters": list(filters), "token": token, "sortByFields": list(sort)}
        return await self._connect.call(f"{RUNS}/ListRuns", {"request": listed, **scope})

    def _at(self, place: Place) -> Json:
        """The scope of a project's domain."""
        return {"projectId": place.wire(self._org)}

    def _everywhere(self) -> Json:
        """The scope of all runs that there are: names are unique among them."""
        return {"org": self._org or ""}

    # -- tasks ---------------------------------------------------------------------------------------

    async def _task(self, task: TaskId) -> tuple[TaskId, Json]:
        """A deployed task with its version, and its TaskDetails, at most TASK_FRESH seconds old.

        Raises:
            NotFoundError: there is no such task.
        """
        known = self._tasks.get(task)
        if known is not None and time.monotonic() < known.fresh_until:
            return known.task, known.details
        versioned = task if task.version is not None else await self._newest(task)
        try:
            answer = await self._read(f"{TASKS}/GetTaskDetails", {"taskId": versioned.wire(self._org)})
        except NotFoundError as error:
            raise NotFoundError(f"there is no task {versioned} at {self.where}: {error}") from error
        details = object_at(answer, "details")
        while len(self._tasks) >= MAX_TASKS:
            del self._tasks[next(iter(self._tasks))]
        self._tasks[task] = _KnownTask(versioned, details, time.monotonic() + TASK_FRESH)
        return versioned, details

    async def _newest(self, task: TaskId) -> TaskId:
        message = {
            "request": {
                "limit": 1,
                "filters": [_filter("name", [task.name])],
                "sortByFields": [{"key": "created_at", "direction": "DESCENDING"}],
            },
            **self._at(task.place),
        }
        answer = await self._connect.call(f"{TASKS}/ListTasks", message)
        for found in objects_at(answer, "tasks"):
            version = text_at(found, "taskId", "version")
            if version:
                return TaskId(task.place, task.name, version)
        raise NotFoundError(f"there is no task {task} at {self.where}, in any version")


def _check_task(details: Json, run: RunId, task: TaskId) -> None:
    """Raise ConflictError for a run of another task than the one that is to be invoked."""
    present = task_of(object_at(details, "action"))
    if present.name and present.path != task.path:
        raise ConflictError(f"run {run}, which has this idempotency id, is one of task {present.path}")


@reads
def _is_new(action: Json, task: TaskId) -> bool:
    """Return whether CreateRun's answer is the run that it asked for, and none that has gone on since."""
    status = object_at(action, "status")
    has_time = bool(status.get("startTime"))
    return has_time and status_of(status) is InvocationStatus.Queued and task_of(action) == task


def _filter(field: str, values: Sequence[str]) -> Json:
    """One of these values. For a single one Flyte's VALUE_IN is an error."""
    return {"function": "EQUAL" if len(values) == 1 else "VALUE_IN", "field": field, "values": list(values)}


def _created_since(moment: datetime.datetime) -> Json:
    values = [moment.astimezone(datetime.UTC).isoformat()]
    return {"function": "GREATER_THAN_OR_EQUAL", "field": "created_at", "values": values}


def _containing(field: str, text: str) -> Json:
    return {"function": "CONTAINS", "field": field, "values": [text]}


async def _at_once(of: Callable[[ItemT], Awaitable[ResultT]], items: Iterable[ItemT]) -> list[ResultT]:
    """The results for all items, in order, some of them asked for at a time."""
    turns = asyncio.Semaphore(AT_ONCE)

    async def one(item: ItemT) -> ResultT:
        async with turns:
            return await of(item)

    tasks = [asyncio.ensure_future(one(item)) for item in items]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _is_absence(message: str) -> bool:
    """Whether a not_found says that something isn't there, and not that it couldn't be looked for."""
    said = message.lower()
    if said.startswith("failed to"):
        return "record not found" in said or "no rows in result set" in said
    return "not found" in said


def _reason(record: InvocationRecord) -> str:
    asker = task_instance_of(record.provenance.source.source_id)
    if asker is None:
        return "cancelled from Airflow"
    looped = f", iteration {asker.iteration}" if asker.iteration is not None else ""
    mapped = f" [{asker.map_index}]" if asker.map_index >= 0 else ""
    task = f"{asker.task_id}{mapped}{looped}"
    return f"cancelled from Airflow: DAG {asker.dag_id}, run {asker.run_id}, task {task}"


def _refuse_other_than_variables(request: InvocationRequest) -> None:
    own = request.own_container_parameters
    if own is None:
        return
    asked = own.model_dump(exclude_none=True, exclude={"env_vars"})
    if asked:
        names = ", ".join(map(repr, asked))
        raise UnsupportedError(
            f"Flyte can't honour {names} of argument 'container_parameters', only 'env_vars'; set them where "
            "the task is defined"
        )
