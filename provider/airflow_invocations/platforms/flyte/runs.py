"""Requests to Flyte's run service: lists, details, creation and cancellation of runs."""

from __future__ import annotations

import asyncio
import datetime
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from ...models import InvocationStatus, StatusSnapshot
from ..errors import ConflictError, NotFoundError, UnavailableError
from .client import DATA, RUNS, ConnectClient
from .ids import ProjectDomain, RunId, TaskId
from .phases import status_of
from .records import is_unscheduled, runs_by_id, snapshots_of, task_of
from .shapes import object_at, objects_at, reads, text_at

Json = dict[str, Any]
ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

#: Largest page that Flyte returns.
PAGE = 200

#: Requests at the same time, where one question needs several.
AT_ONCE = 8

_log = logging.getLogger(__name__)


class RunService:
    """Requests to the run service.

    :param client: sends them.
    :param where: Flyte's address, for messages.
    :param org: the organisation; None: Flyte has none.
    """

    def __init__(self, client: ConnectClient, where: str, org: str | None) -> None:
        self.client = client
        self.org = org
        self._where = where

    # -- one run -------------------------------------------------------------------------------------

    async def details(self, run: RunId) -> Json:
        """Return a run's RunDetails. Raises NotFoundError only if Flyte says that there is no such run."""
        return await self.client.retry(lambda: self.details_once(run))

    async def details_once(self, run: RunId) -> Json:
        """Like `details`, without a retry."""
        answer = await self._read_once(f"{RUNS}/GetRunDetails", {"runId": run.wire(self.org)})
        return object_at(answer, "details")

    async def details_if_any(self, run: RunId) -> Json | None:
        """Return a run's RunDetails; None if there is no such run."""
        try:
            return await self.details(run)
        except NotFoundError:
            return None

    async def read(self, method: str, message: Json) -> Json:
        """Return one object. Raises NotFoundError only if Flyte says that it doesn't exist."""
        return await self.client.retry(lambda: self._read_once(method, message))

    async def _read_once(self, method: str, message: Json) -> Json:
        """Return one object, without a retry.

        Flyte answers not_found also when its database fails. Only its messages about absence count, because a
        run that is absent is created again.
        """
        try:
            return await self.client.send(method, message)
        except NotFoundError as error:
            if _is_absence(str(error)):
                raise
            raise UnavailableError(f"{self._where} can't read its database: {error}") from error

    async def create(self, run: RunId, task: TaskId, spec: Json, message: Json) -> Json:
        """Create a run; return its RunDetails, as far as the response contains them.

        Flyte creates a run twice if it is asked twice, after the first run's resource is gone. So each retry
        looks for the run first.

        :param spec: the task's spec, which the response lacks.
        :param message: the inputs and the run's spec.
        """
        request = {"runId": run.wire(self.org), "taskId": task.wire(self.org), **message}
        is_retry = False

        async def create_once() -> Json:
            nonlocal is_retry
            if is_retry and (present := await self._present(run)) is not None:
                return present
            is_retry = True
            try:
                answer = await self.client.send(f"{RUNS}/CreateRun", request)
            except ConflictError:
                _log.debug("run %s already exists", run)
                return await self.details_once(run)
            created: Json = object_at(answer, "run", "action")
            if not _is_new(created, task):
                return await self.details_once(run)
            return {"action": {**created, "task": spec}, "runSpec": message["runSpec"]}

        return await self.client.retry(create_once)

    async def _present(self, run: RunId) -> Json | None:
        try:
            details = await self.details_once(run)
        except NotFoundError:
            return None
        if is_unscheduled(details):
            await self.enqueue(run, details)
        return details

    async def enqueue_if_unscheduled(self, invocation_id: str) -> bool:
        """Enqueue a run that Flyte accepted and never enqueued; return whether it was such a run."""
        run = RunId.of(invocation_id)
        details = await self.details(run)
        if not is_unscheduled(details):
            return False
        await self.enqueue(run, details)
        return True

    async def enqueue(self, run: RunId, details: Json) -> None:
        """Send CreateRun again, with the inputs and the spec that Flyte stores.

        A run that was accepted while Flyte could not reach its cluster stays queued, and a restart of Flyte
        doesn't help (https://github.com/flyteorg/flyte/issues/7872). Sent again, CreateRun leaves the record
        as it is and enqueues the run; Flyte rejects a second resource of an enqueued run.
        """
        data = await self.client.call(f"{DATA}/GetActionData", {"actionId": run.action(self.org)})
        message = {
            "runId": run.wire(self.org),
            "taskId": task_of(object_at(details, "action")).wire(self.org),
            "inputs": object_at(data, "inputs"),
            "runSpec": object_at(details, "runSpec"),
        }
        with suppress(ConflictError):
            await self.client.send(f"{RUNS}/CreateRun", message)
        _log.info("Flyte accepted run %s without enqueueing it; sent CreateRun again", run)

    async def abort(self, run: RunId, reason: str) -> None:
        """Abort a run, without a retry."""
        await self.client.send(f"{RUNS}/AbortRun", {"runId": run.wire(self.org), "reason": reason})

    # -- several runs --------------------------------------------------------------------------------

    async def statuses(self, invocation_ids: Collection[str]) -> list[StatusSnapshot]:
        """Return the statuses of up to 1,000 runs; unknown ids are left out."""
        return snapshots_of(await self.by_ids(invocation_ids))

    async def by_ids(self, invocation_ids: Collection[str], *filters: Json) -> list[Json]:
        """Return those of some runs that match the filters, with a request for 200 of one project."""
        by_scope: dict[ProjectDomain, list[str]] = {}
        for invocation_id in set(invocation_ids):
            try:
                run = RunId.of(invocation_id)
            except NotFoundError:
                continue
            by_scope.setdefault(run.scope, []).append(run.name)
        batches = [
            (scope, names[start : start + PAGE])
            for scope, names in by_scope.items()
            for start in range(0, len(names), PAGE)
        ]

        async def list_batch(batch: tuple[ProjectDomain, list[str]]) -> list[Json]:
            scope, names = batch
            named = field_filter("run_name", names)
            return objects_at(await self.page(self.scope_of(scope), [named, *filters]), "runs")

        return [run for runs in await at_once(list_batch, batches) for run in runs]

    async def pages(
        self, scope: Json, filters: Sequence[Json], size: int = PAGE
    ) -> AsyncIterator[Sequence[Json]]:
        """Yield all runs that match the filters, newest first and each once, page by page.

        A run that is created meanwhile is in no page, or moves others to the next one. In another order there
        is no second page where Flyte's tokens are times of creation.
        """
        newest_first = [{"key": "created_at", "direction": "DESCENDING"}]
        seen: set[RunId] = set()
        token = ""
        while True:
            answer = await self.page(scope, filters, limit=size, token=token, sort=newest_first)
            listed = runs_by_id(objects_at(answer, "runs"))
            new = [run for run_id, run in listed.items() if run_id not in seen]
            seen.update(listed)
            before, token = token, text_at(answer, "token")
            if new:
                yield new
            # A page may have nothing new if many runs were created meanwhile.
            if not listed or token in ("", before):
                return

    async def page(
        self,
        scope: Json,
        filters: Sequence[Json],
        *,
        limit: int = PAGE,
        token: str = "",
        sort: Sequence[Json] = (),
    ) -> Json:
        """Return a page of runs.

        :param scope: see `scope_of`.
        """
        listed = {"limit": limit, "filters": [*filters], "token": token, "sortByFields": [*sort]}
        return await self.client.call(f"{RUNS}/ListRuns", {"request": listed, **scope})

    def scope_of(self, scope: ProjectDomain | None) -> Json:
        """Return the scope of lists: a project's domain, or all runs, whose names are unique."""
        return {"org": self.org or ""} if scope is None else {"projectId": scope.wire(self.org)}


def field_filter(field: str, values: Sequence[str]) -> Json:
    """Return the filter for one of these values. For a single one Flyte rejects VALUE_IN."""
    return {"function": "EQUAL" if len(values) == 1 else "VALUE_IN", "field": field, "values": [*values]}


def created_since(moment: datetime.datetime) -> Json:
    """Return the filter for runs that were created at a moment or later."""
    values = [moment.astimezone(datetime.UTC).isoformat()]
    return {"function": "GREATER_THAN_OR_EQUAL", "field": "created_at", "values": values}


def name_contains(text: str) -> Json:
    """Return the filter for runs whose name contains a text."""
    return {"function": "CONTAINS", "field": "run_name", "values": [text]}


async def at_once(request: Callable[[ItemT], Awaitable[ResultT]], items: Iterable[ItemT]) -> list[ResultT]:
    """Return the results for all items, in order, with up to AT_ONCE requests at the same time."""
    turns = asyncio.Semaphore(AT_ONCE)

    async def one(item: ItemT) -> ResultT:
        async with turns:
            return await request(item)

    tasks = [asyncio.ensure_future(one(item)) for item in items]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@reads
def _is_new(action: Json, task: TaskId) -> bool:
    """Return whether CreateRun's response is the run that was requested, and still queued."""
    status = object_at(action, "status")
    has_time = bool(status.get("startTime"))
    return has_time and status_of(status) is InvocationStatus.Queued and task_of(action) == task


def _is_absence(message: str) -> bool:
    """Return whether a not_found says that something doesn't exist, not that it could not be read."""
    said = message.lower()
    if said.startswith("failed to"):
        return "record not found" in said or "no rows in result set" in said
    return "not found" in said
