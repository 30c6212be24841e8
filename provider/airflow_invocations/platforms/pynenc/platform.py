"""The platform behind connections of type `pynenc`: Python tasks that runners take from Redis or SQLite."""

from __future__ import annotations

import asyncio
import datetime
import os
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar, TypeVarTuple
from urllib.parse import quote

from ...models import (
    ActionRecord,
    EventFilter,
    InvocationRecord,
    InvocationRequest,
    InvocationStatus,
    SourceFilter,
    StatusSnapshot,
    UnreadableItem,
)
from ..base import Capabilities, EventStream, Platform
from ..errors import CannotStopError, InvalidRequestError, UnavailableError
from ..overdue import Overdue
from ..polling import SLACK, ListedInvocation, PollingEventStream
from .settings import PynencSettings, Stop, require_version
from .thread import run_in_thread

if TYPE_CHECKING:
    from .cluster import Cluster

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

#: Loaded apps, by process: a forked process needs other connections.
_clusters: dict[tuple[int, PynencSettings], Cluster] = {}

#: Seconds for which a cancel waits until an invocation that is between two statuses can be stopped, or a
#: running one stops by itself. Airflow kills a task 5 s after it asked it to stop.
CANCEL_TIMEOUT = 2.0
CANCEL_PAUSE = 0.05

#: Seconds for which an invocation may be registered by another caller, and between two checks.
REGISTER_TIMEOUT = 40.0
REGISTER_PAUSE = 0.02

#: Invocations whose records are read in one call, which blocks the thread.
BATCH = 50

#: How far back the history is read when a stream of events is opened, because entries may be missing.
HISTORY_LOOKBACK = datetime.timedelta(hours=1)

#: Length of the first part of the history that is searched for the newest invocation of a task.
FIRST_STRETCH = datetime.timedelta(hours=1)


class PynencPlatform(Platform):
    """A pynenc app and its backend.

    The platform writes to the backend and reads what runners write; no server is needed. One thread of the
    process makes all calls to pynenc, because its contexts are local to a thread and each polling thread
    leaves an SQLite connection open.

    An invocation's id is derived from its idempotency id, so it can't exist twice. pynenc's concurrency
    control of registrations isn't used, because it may return another task's invocation.
    """

    name = "pynenc"
    capabilities = Capabilities(
        logs=False,
        cancels_running=False,
        input_data=False,
        upload_destination=False,
        compute_requirements=False,
        container_parameters=False,
        timeout=False,
        outputs=True,
        events=True,
    )

    def __init__(self, settings: PynencSettings) -> None:
        super().__init__(settings.where)
        self._settings = settings
        self._cluster: Cluster | None = None
        self._overdue = Overdue()

    async def open(self) -> None:
        """Load the app, once in a process."""
        self._cluster = await run_in_thread(lambda: _cluster_of(self._settings), self.where)

    async def close(self) -> None:
        """Forget the app."""
        self._cluster = None

    def page_url(self, invocation_id: str) -> str:
        """Return the URL of its page in pynmon, if the connection has pynmon's address."""
        base = self._settings.link_base
        return f"{base.rstrip('/')}/invocations/{quote(invocation_id, safe='')}" if base else ""

    async def check(self) -> str:
        """Read the app's runners and queue; return a sentence about them."""
        return await self._call(lambda cluster: cluster.check())

    async def get_action(self, name: str) -> ActionRecord:
        """Return a task, `module.function`, with the parameters of its signature.

        :raises NotFoundError: there is no such module, or no such task in it.
        :raises InvalidRequestError: its module can't be imported; the message has the import's error.
        """
        return await self._call(lambda cluster: cluster.action(name))

    async def invoke(self, action: str, request: InvocationRequest) -> InvocationRecord:
        """Register and queue an invocation, or return the one that has the request's `idempotency_id`.

        :raises UnsupportedError: the request has an argument that pynenc can't apply.
        :raises InvalidRequestError: the parameters don't fit the task's signature; all problems.
        :raises ConflictError: the idempotency id belongs to another task's invocation.
        :raises UnavailableError: another caller has been registering it for REGISTER_TIMEOUT seconds.
        """
        self.check_supported(request)
        deadline = time.monotonic() + REGISTER_TIMEOUT
        while True:
            record = await self._call(lambda cluster: cluster.invoke(action, request))
            if record is not None:
                return record
            if time.monotonic() >= deadline:
                raise UnavailableError(
                    f"{self.where}: another caller is registering this invocation; try again"
                )
            await asyncio.sleep(REGISTER_PAUSE)

    async def get(self, invocation_id: str) -> InvocationRecord:
        """Return an invocation with its history. Fields that pynenc lacks have their defaults."""
        return await self._call(lambda cluster: cluster.reader.record(invocation_id))

    async def statuses(self, invocation_ids: Collection[str]) -> list[StatusSnapshot]:
        """Return the statuses of up to 1,000 invocations; unknown ids are left out.

        An invocation that stays queued for a minute is queued again: pynenc stores an invocation and then
        sends its message, and the caller may have died in between.
        """
        snapshots = await self._call(lambda cluster: cluster.reader.statuses(list(invocation_ids)))
        queued = {one.invocation_id for one in snapshots if one.status is InvocationStatus.Queued}
        if overdue := self._overdue.due(invocation_ids, queued):
            await self._call(lambda cluster: cluster.queue_again(overdue))
        return snapshots

    async def ended(self, invocation_ids: Collection[str]) -> list[StatusSnapshot]:
        """Like `statuses`, for invocations in a terminal status only."""
        return await self._call(lambda cluster: cluster.reader.ended(list(invocation_ids)))

    async def active(self, idempotency_ids: Collection[str]) -> list[StatusSnapshot]:
        """Return the statuses of the active invocations of up to 1,000 idempotency ids."""
        snapshots = await self._call(lambda cluster: cluster.statuses_by_key(list(idempotency_ids)))
        return [snapshot for snapshot in snapshots if not snapshot.status.is_terminal]

    async def newest(self, action: str, since: datetime.datetime) -> InvocationRecord | None:
        """Return the invocation of a task that was created last, at `since` or later; None: none was.

        The history of all tasks is searched backwards from now, in parts of growing length.
        """
        end, length = datetime.datetime.now(datetime.UTC) + SLACK, FIRST_STRETCH
        while True:
            begin = end - length if end - since > length else since
            found = await self._newest(action, begin, end)
            if found is not None:
                return await self.get(found)
            if begin == since:
                return None
            end, length = begin, length * 2

    async def _newest(self, action: str, begin: datetime.datetime, end: datetime.datetime) -> str | None:
        found: str | None = None
        cursor: datetime.datetime | None = begin
        while cursor is not None:
            later, cursor = await self._call(
                lambda cluster, begin: cluster.history.newest(action, begin, end), cursor
            )
            found = later or found
        return found

    async def find(
        self,
        dag_id: str,
        run_id: str | None,
        task_id: str | None,
        map_index: int | None,
        limit: int | None = None,
        iteration: int | None = None,
    ) -> list[InvocationRecord]:
        """Return the invocations of a DAG, a run or a task, newest first.

        All are read whatever the `limit`, because pynenc lists in no order.
        """
        wanted = SourceFilter(dag_id, run_id, task_id, map_index, iteration)
        return (await self._call(lambda cluster: cluster.reader.find(wanted)))[:limit]

    async def find_active(self, limit: int) -> list[InvocationRecord]:
        """Return the active invocations that tasks of any Airflow have started."""
        return await self._call(lambda cluster: cluster.reader.find_active(limit))

    @asynccontextmanager
    async def events(self, wanted: EventFilter, since: int | None) -> AsyncIterator[EventStream]:
        """Open a stream of the terminal statuses of all invocations of the app; its history is polled."""
        yield PollingEventStream(_Lister(self, wanted.action), since)

    async def records(self, invocation_ids: Collection[str]) -> list[InvocationRecord | UnreadableItem]:
        """Return the records of up to 1,000 invocations, in any order; unknown ids are left out."""
        found: list[InvocationRecord | UnreadableItem] = []
        for batch in _batches(invocation_ids):
            found += await self._call(lambda cluster, ids: cluster.reader.records(ids), batch)
        return found

    async def cancel(self, invocation_id: str) -> None:
        """Stop an invocation that hasn't started. Ask a running one to stop, through its workflow data.

        An invocation that fails after this counts as Cancelled.

        :raises CannotStopError: it keeps running; the message says where.
        """
        deadline = time.monotonic() + CANCEL_TIMEOUT
        await self._call(lambda cluster: cluster.request_stop(invocation_id))
        while True:
            stop = await self._call(lambda cluster: cluster.stop(invocation_id))
            if stop is Stop.Ended:
                return
            if time.monotonic() >= deadline:
                break
            await asyncio.sleep(CANCEL_PAUSE)
        if stop is Stop.Runs:
            raise CannotStopError(await self._call(lambda cluster: cluster.why_still_running(invocation_id)))

    async def outputs(self, invocation_id: str) -> Any:
        """Return the result of a completed task, as JSON types; tuples and sets become lists.

        :raises UnsupportedError: it is of another type, which pynenc can only read by running its code.
        :raises NotFoundError: there is none: the task hasn't completed, or is unknown.
        """
        return await self._call(lambda cluster: cluster.reader.outputs(invocation_id))

    async def _call(self, operation: Callable[[Cluster, *Ts], T], *arguments: *Ts) -> T:
        cluster = self._cluster
        if cluster is None:
            raise RuntimeError("the platform is used outside of 'async with'")
        return await run_in_thread(lambda: operation(cluster, *arguments), self.where)


class _Lister:
    """Lists changes from pynenc's history, and terminal invocations by their statuses.

    A runner that dies, or loses its Redis, between the two leaves a terminal status without an entry in the
    history.
    """

    lookback = HISTORY_LOOKBACK

    def __init__(self, platform: PynencPlatform, action: str | None) -> None:
        self._call = platform._call
        self._action = action

    async def since(self, moment: datetime.datetime) -> AsyncIterator[ListedInvocation]:
        """Yield the invocations that have changed since a moment."""
        cursor: datetime.datetime | None = moment
        while cursor is not None:
            page, cursor = await self._call(
                lambda cluster, begin: cluster.history.changes(self._action, begin), cursor
            )
            for listed in page:
                yield listed

    async def ended(self, invocation_ids: Collection[str]) -> AsyncIterator[ListedInvocation]:
        """Yield those of up to 1,000 invocations that are terminal."""
        final = await self._call(lambda cluster: cluster.history.final(list(invocation_ids)))
        for batch in _batches(final):
            for listed in await self._call(lambda cluster, ids: cluster.history.listed(ids), batch):
                yield listed


def _batches(ids: Collection[str]) -> Iterator[Sequence[str]]:
    every = list(ids)
    return (every[start : start + BATCH] for start in range(0, len(every), BATCH))


def _cluster_of(settings: PynencSettings) -> Cluster:
    """Return the cluster of some settings. An app is loaded once in a process.

    :raises InvalidRequestError: pynenc isn't installed in the supported version, or the app can't be
        imported or can't work.
    """
    cluster = _clusters.get((os.getpid(), settings))
    if cluster is None:
        require_version("pynenc")
        try:
            from .cluster import Cluster
        except ImportError as error:
            raise InvalidRequestError(f"pynenc can't be imported here: {error}") from error

        cluster = _clusters[os.getpid(), settings] = Cluster(settings)
    return cluster
