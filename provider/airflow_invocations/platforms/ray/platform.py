"""The platform behind connections of type `ray`: Ray Jobs, without Ray's packages."""

from __future__ import annotations

import asyncio
import datetime
import uuid
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from urllib.parse import quote

from ...models import (
    SOURCE_ID_BEGIN,
    ActionRecord,
    EventFilter,
    InvocationRecord,
    InvocationRequest,
    InvocationStatus,
    LogPage,
    SourceFilter,
    StatusSnapshot,
    UnreadableItem,
)
from ...models.text import counted
from ..base import Capabilities, EventStream, Platform
from ..errors import (
    ConflictError,
    InvalidRequestError,
    UnavailableError,
    UnsupportedError,
)
from ..http import TooLargeError
from ..polling import PollingEventStream
from .catalogue import Catalogue
from .client import RayClient
from .jobs import IDEMPOTENCY_ID, cancel_job_of, job_of
from .lister import RayLister
from .logs import page_of
from .records import (
    action_of,
    created_at,
    never_started,
    source_id_of,
    started_in,
    status_of,
    to_record,
)
from .resources import unmet_demand
from .settings import RaySettings, cancel_id_of, submission_id_of
from .shapes import Json, text_at, texts_at

#: Most jobs that are requested one by one instead of all jobs of the cluster, and requests at the same time.
SINGLES = 4
REQUESTS = 16

#: Bytes at the beginning of a log in which the setup's line is.
HEAD = 16 * 1024


class RayPlatform(Platform):
    """The Jobs API of a Ray cluster.

    An action is an entry of the connection's catalogue, an invocation is a job. A job's submission id is
    derived from the request's idempotency id, and Ray rejects a second job with that id.
    """

    name = "Ray"

    #: Of container parameters only env_vars are applied; `invoke` rejects the others.
    capabilities = Capabilities(input_data=False, upload_destination=False, timeout=False, events=True)

    def __init__(self, settings: RaySettings) -> None:
        super().__init__(settings.endpoint)
        self._settings = settings
        self._client = RayClient(settings)
        self._catalogue = Catalogue(settings)

    async def open(self) -> None:
        """Make the connection pool."""
        await self._client.pool.open()

    async def close(self) -> None:
        """Close the connection pool."""
        await self._client.pool.close()

    def page_url(self, invocation_id: str) -> str:
        """Return the URL of the job's page in Ray's dashboard."""
        base = (self._settings.link_base or self._settings.endpoint).rstrip("/")
        return f"{base}/#/jobs/{quote(invocation_id, safe='')}"

    async def check(self) -> str:
        """Check the version, the credentials and the catalogue; return a sentence about them."""
        version = await self._client.version()
        await self._client.check_credentials()
        actions = await self._catalogue.actions()
        return f"{self.where} responds as Ray {version}; the catalogue has {counted(len(actions), 'action')}"

    async def get_action(self, name: str) -> ActionRecord:
        """Return an action of the catalogue.

        :raises InvalidRequestError: the catalogue can't be read, or is invalid.
        """
        return (await self._catalogue.action(name)).record(name)

    async def invoke(self, action: str, request: InvocationRequest) -> InvocationRecord:
        """Submit a job, or return the one that has the request's `idempotency_id`.

        :raises InvalidRequestError: the parameters don't fit, or no node can ever run it; before sending.
        :raises UnsupportedError: the request has an argument that Ray can't apply.
        :raises ConflictError: the job of that id is of another action, or isn't one of this provider.
        """
        self.check_supported(request)
        _check_container_parameters(request)
        await self._client.check_version()
        submission_id = submission_id_of(request.idempotency_id or str(uuid.uuid4()))
        job = await self._client.job_if_any(submission_id)
        if job is None:
            entry = await self._catalogue.action(action)
            body = job_of(action, entry, request, submission_id, self._settings.runtime_env)
            if (why := unmet_demand(body, await self._client.cluster())) is not None:
                raise InvalidRequestError(f"action {action!r} was not invoked: {why}")
            job = await self._client.submit(body)
        _check_adopted(submission_id, job, action, request)
        return await self._record(submission_id, job)

    async def get(self, invocation_id: str) -> InvocationRecord:
        """Return a job with its history. When its command started is read from its log."""
        return await self._record(invocation_id, await self._client.job(invocation_id))

    async def _record(self, submission_id: str, job: Json) -> InvocationRecord:
        cancel, started = await self._cancel_of(submission_id, job), None
        if not never_started(job):
            started = started_in(await self._client.log_head(submission_id, HEAD))
        return to_record(submission_id, job, cancel, started)

    async def _cancel_of(self, submission_id: str, job: Json) -> Json | None:
        """Return the job that records the cancel of a job that hasn't started; None if there is none."""
        return await self._client.job_if_any(cancel_id_of(submission_id)) if never_started(job) else None

    async def statuses(self, invocation_ids: Collection[str]) -> list[StatusSnapshot]:
        """Return the statuses of up to 1,000 jobs; unknown ids are left out.

        All of them are found in one list of all jobs; a few are requested one by one.
        """
        ids = set(invocation_ids)
        if len(ids) > SINGLES:
            try:
                return _snapshots(await self._client.jobs(), ids)
            except TooLargeError:
                pass
        return await self._singles(ids)

    async def _singles(self, ids: Collection[str]) -> list[StatusSnapshot]:
        limit = asyncio.Semaphore(REQUESTS)

        async def fetch(one: str) -> StatusSnapshot | None:
            async with limit:
                job = await self._client.job_if_any(one)
                if job is None:
                    return None
                return StatusSnapshot(one, status_of(job, await self._cancel_of(one, job)))

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(fetch(one)) for one in ids]
        return [found for task in tasks if (found := task.result()) is not None]

    async def active(self, idempotency_ids: Collection[str]) -> list[StatusSnapshot]:
        """Return the statuses of the active jobs of up to 1,000 idempotency ids."""
        found = await self.statuses([submission_id_of(one) for one in idempotency_ids])
        return [snapshot for snapshot in found if not snapshot.status.is_terminal]

    async def records(self, invocation_ids: Collection[str]) -> list[InvocationRecord | UnreadableItem]:
        """Return the records of up to 1,000 jobs, from one list, without when their commands started."""
        jobs = await self._client.jobs()
        return [_listed_record(one, jobs) for one in set(invocation_ids) if one in jobs]

    async def find(
        self,
        dag_id: str,
        run_id: str | None,
        task_id: str | None,
        map_index: int | None,
        limit: int | None = None,
        iteration: int | None = None,
    ) -> list[InvocationRecord]:
        """Return the jobs of a DAG, a DAG run or a task, newest first, without when their commands started.

        They are searched in the metadata of all jobs.
        """
        wanted = SourceFilter(dag_id, run_id, task_id, map_index, iteration)
        jobs = await self._client.jobs()
        mine = [one for one, job in jobs.items() if wanted.matches(source_id_of(job))]
        mine.sort(key=lambda one: created_at(jobs[one]), reverse=True)
        return [_listed_record(one, jobs) for one in mine[:limit]]

    async def find_active(self, limit: int) -> list[InvocationRecord]:
        """Return the active jobs that tasks of any Airflow have started, from one list of all jobs."""
        jobs = await self._client.jobs()
        started = (one for one, job in jobs.items() if source_id_of(job).startswith(SOURCE_ID_BEGIN))
        records = (_listed_record(one, jobs) for one in started)
        return [one for one in records if not one.current.status.is_terminal][:limit]

    async def newest(self, action: str, since: datetime.datetime) -> InvocationRecord | None:
        """Return the job of an action that was submitted last, at `since` or later; None: none was.

        `since` is converted to the cluster's clock.
        """

        async def newest_since(moment: datetime.datetime) -> InvocationRecord | None:
            jobs = await self._client.jobs()
            found = [
                one for one, job in jobs.items() if action_of(job) == action and created_at(job) >= moment
            ]
            last = max(found, key=lambda one: created_at(jobs[one]), default=None)
            return None if last is None else await self._record(last, jobs[last])

        # Ray's times have milliseconds.
        begin = since.replace(microsecond=since.microsecond // 1000 * 1000)
        return await self._client.pool.clock.since(begin, newest_since)

    @asynccontextmanager
    async def events(self, wanted: EventFilter, since: int | None) -> AsyncIterator[EventStream]:
        """Open a stream of the terminal statuses of all jobs that this provider submitted; it polls them."""
        yield PollingEventStream(RayLister(self._client.jobs, wanted.action), since)

    async def logs(self, invocation_id: str, cursor: str | None = None) -> LogPage:
        """Return log lines from a cursor on (None: the beginning); Ray sends the whole log each time."""
        return await page_of(self._client, invocation_id, cursor)

    async def cancel(self, invocation_id: str) -> None:
        """Stop a job; a terminal one stays as it is.

        Ray stops a queued job only when it starts. Its cancel is recorded as a job of its own, which makes it
        final: whatever starts later doesn't run its command.

        :raises UnavailableError: Ray didn't pass the request on to the job's supervisor.
        """
        job = await self._client.job(invocation_id)
        if status_of(job, await self._cancel_of(invocation_id, job)).is_terminal:
            return
        is_stopping = await self._client.stop(invocation_id)
        job = await self._client.job(invocation_id)
        if status_of(job, None) is not InvocationStatus.Queued:
            return
        if not is_stopping:
            raise UnavailableError(f"{self.where}: job {invocation_id} has no supervisor yet; try again")
        await self._client.submit(cancel_job_of(invocation_id))


def _snapshots(jobs: dict[str, Json], ids: Collection[str]) -> list[StatusSnapshot]:
    return [
        StatusSnapshot(one, status_of(jobs[one], jobs.get(cancel_id_of(one)))) for one in ids if one in jobs
    ]


def _listed_record(submission_id: str, jobs: dict[str, Json]) -> InvocationRecord:
    return to_record(submission_id, jobs[submission_id], jobs.get(cancel_id_of(submission_id)))


def _check_adopted(submission_id: str, job: Json, action: str, request: InvocationRequest) -> None:
    """Raise ConflictError unless a job belongs to the request's action and idempotency id."""
    present = action_of(job)
    known = texts_at(job, "metadata").get(IDEMPOTENCY_ID)
    if present is None or known != request.idempotency_id:
        command = (text_at(job, "entrypoint") or "")[:200]
        raise ConflictError(
            f"job {submission_id}, whose id is derived from this idempotency id, belongs to another request; "
            f"submitted at {created_at(job).isoformat()}, entrypoint: {command!r}"
        )
    if present != action:
        raise ConflictError(
            f"job {submission_id}, which has this idempotency id, is one of action {present!r}"
        )


def _check_container_parameters(request: InvocationRequest) -> None:
    """Raise UnsupportedError for container parameters other than env_vars."""
    own = request.own_container_parameters
    others = own.model_dump(exclude_none=True, exclude={"env_vars"}) if own else {}
    if others:
        names = ", ".join(map(repr, others))
        raise UnsupportedError(
            f"Ray doesn't support {names} of argument 'container_parameters', only 'env_vars'; set them in "
            "the catalogue"
        )
