"""pynenc: Python tasks that runners take out of Redis or SQLite, seen through its own package."""

from __future__ import annotations

import asyncio
import datetime
import importlib.metadata
import os
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from enum import Enum, auto
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
from ..base import Capabilities, EventStream, Platform, web_address
from ..errors import (
    CannotStopError,
    InvalidRequestError,
    PlatformError,
    UnauthorizedError,
    UnavailableError,
)
from ..overdue import Overdue
from ..polling import SLACK, ListedInvocation, PollingEventStream

if TYPE_CHECKING:
    from .cluster import Cluster

#: The version that this is written for: caller and cluster must have the same one, or what is submitted
#: is silently not run.
VERSION = "0.3"

_S = InvocationStatus

#: pynenc's statuses in the invocation API's; a test compares them with its enum. What a runner was stopped
#: in, or was found dead in, is queued again.
STATUSES: Mapping[str, InvocationStatus] = {
    "registered": _S.Queued,
    "concurrency_controlled": _S.Queued,
    "concurrency_controlled_final": _S.Failed,
    "rerouted": _S.Queued,
    "pending": _S.Scheduled,
    "pending_recovery": _S.Queued,
    "running": _S.Processing,
    "running_recovery": _S.Queued,
    "paused": _S.Processing,
    "killed": _S.Queued,
    "success": _S.Completed,
    "failed": _S.Failed,
    "retry": _S.Queued,
}

#: Seconds for which a cancel tries to get hold of an invocation that is between two statuses, and waits for
#: one that runs to heed it; Airflow kills a task 5 s after it has told it to stop.
CANCEL_PATIENCE = 2.0
CANCEL_PAUSE = 0.05

#: Seconds for which an invocation that somebody else is registering is waited for, and between two looks.
REGISTER_PATIENCE = 40.0
REGISTER_PAUSE = 0.02

#: Invocations whose records are read at a time, beside which nothing else is done.
BATCH = 50

#: How far back the history is read when a stream of events is opened, for ends that it may lack.
HISTORY_LOOKBACK = datetime.timedelta(hours=1)

#: The first stretch of the history in which the newest invocation of a task is looked for.
FIRST_STRETCH = datetime.timedelta(hours=1)

#: What a backend's libraries raise, by its full name, as no library is imported for it; the nearest of an
#: exception's classes counts.
_ERRORS: Mapping[str, type[PlatformError]] = {
    "pynenc.exceptions.SerializationError": InvalidRequestError,
    "redis.exceptions.AuthenticationError": UnauthorizedError,
    "redis.exceptions.AuthenticationWrongNumberOfArgsError": UnauthorizedError,
    "redis.exceptions.AuthorizationError": UnauthorizedError,
    "redis.exceptions.NoPermissionError": UnauthorizedError,
    "redis.exceptions.RedisError": UnavailableError,
    "sqlite3.Error": UnavailableError,
    "builtins.OSError": UnavailableError,
    "pymongo.errors.PyMongoError": UnavailableError,
    "pika.exceptions.AMQPError": UnavailableError,
}

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


@dataclass(frozen=True, slots=True)
class PynencSettings:
    """Which app, and where its state is kept: what an Airflow connection holds."""

    #: `module:attribute`, or `module.attribute`.
    app: str
    #: The id under which its runners keep everything; None: as the app itself is configured.
    app_id: str | None = None
    #: With the password; None: as the app itself is configured.
    redis_url: str | None = field(default=None, repr=False)
    #: The path of the database; None: as the app itself is configured.
    sqlite_path: str | None = None
    #: The backend for messages, without a secret.
    backend: str = "its own backend"
    #: Where pynmon is; None: there is no page of an invocation.
    link_base: str | None = None

    @property
    def where(self) -> str:
        """For messages."""
        known_as = f" ({self.app_id})" if self.app_id else ""
        return f"pynenc app {self.app}{known_as} on {self.backend}"


class Stop(Enum):
    """How far an invocation is stopped."""

    #: It has ended, just now or before.
    Ended = auto()
    #: It is between two statuses; it may be stopped in a moment.
    InBetween = auto()
    #: It runs.
    Runs = auto()


class PynencPlatform(Platform):
    """A pynenc app and its backend, opened with `async with`.

    The caller submits by itself and reads what runners write; nothing has to listen. Everything that touches
    pynenc is done by one thread for the whole process, one thing at a time: its contexts are the thread's
    own, and its SQLite connections pile up where several poll.

    An invocation has the id that its idempotency id stands for, so that it can't be there twice. Concurrency
    control of registrations, which would hand out another task's invocation, is not asked.

    Raises:
        PlatformError: each method, one of the tree in `platforms.base`.
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
        self._cluster = await _in_its_thread(lambda: _cluster_of(self._settings), self.where)

    async def close(self) -> None:
        """Forget the app."""
        self._cluster = None

    def url(self, invocation_id: str) -> str:
        """Its page in pynmon, where the connection says where that is."""
        base = self._settings.link_base
        return web_address(f"{base.rstrip('/')}/invocations/{quote(invocation_id, safe='')}") if base else ""

    async def check(self) -> str:
        """Ask the backend who runs the app's tasks."""
        return await self._call(lambda cluster: cluster.check())

    async def get_action(self, name: str) -> ActionRecord:
        """A task, `module.function`, with its signature as its parameters.

        Raises:
            NotFoundError: there is no such module, or nothing in it that is a task.
            InvalidRequestError: its module can't be imported; the import's own error.
        """
        return await self._call(lambda cluster: cluster.action(name))

    async def invoke(self, action: str, request: InvocationRequest) -> InvocationRecord:
        """Register an invocation and queue it; the one that has the request's `idempotency_id`, if any.

        Raises:
            UnsupportedError: the request asks for what pynenc doesn't have.
            InvalidRequestError: the parameters don't fit the task's signature; all that doesn't.
            ConflictError: the idempotency id belongs to another task's invocation.
            UnavailableError: who was registering it has neither done so nor died.
        """
        self.check_supported(request)
        deadline = time.monotonic() + REGISTER_PATIENCE
        while True:
            record = await self._call(lambda cluster: cluster.invoke(action, request))
            if record is not None:
                return record
            if time.monotonic() >= deadline:
                raise UnavailableError(
                    f"{self.where}: somebody else is registering this invocation; ask again"
                )
            await asyncio.sleep(REGISTER_PAUSE)

    async def get(self, invocation_id: str) -> InvocationRecord:
        """An invocation with its history; what pynenc hasn't, such as compute, is at its default."""
        return await self._call(lambda cluster: cluster.record(invocation_id))

    async def statuses(self, invocation_ids: Collection[str]) -> list[StatusSnapshot]:
        """Return the status of each of up to 1,000 invocations; those that aren't known are left out.

        What stays queued for a minute or longer is sent to the runners again: pynenc stores an invocation
        and then sends its message, and the caller may have died in between.
        """
        snapshots = await self._call(lambda cluster: cluster.statuses(list(invocation_ids)))
        queued = {one.invocation_id for one in snapshots if one.status is InvocationStatus.Queued}
        if overdue := self._overdue.due(invocation_ids, queued):
            await self._call(lambda cluster: cluster.queue_again(overdue))
        return snapshots

    async def ended(self, invocation_ids: Collection[str]) -> list[StatusSnapshot]:
        """The same of those that have ended only."""
        return await self._call(lambda cluster: cluster.ended(list(invocation_ids)))

    async def active(self, idempotency_ids: Collection[str]) -> list[StatusSnapshot]:
        """Those invocations under up to 1,000 idempotency ids that haven't ended."""
        snapshots = await self._call(lambda cluster: cluster.statuses_by_key(list(idempotency_ids)))
        return [snapshot for snapshot in snapshots if not snapshot.status.is_terminal]

    async def newest(self, action: str, since: datetime.datetime) -> InvocationRecord | None:
        """The invocation of a task that was created last, at `since` or later; None: there is none.

        It is looked for in the history of all tasks, from now back, in stretches that grow.
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
        place: datetime.datetime | None = begin
        while place is not None:
            later, place = await self._call(lambda cluster, begin: cluster.newest(action, begin, end), place)
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
        """Return what a DAG, a run or a task of it has invoked, newest first.

        All of it is read whatever the `limit`: pynenc lists in no order.
        """
        wanted = SourceFilter(dag_id, run_id, task_id, map_index, iteration)
        return (await self._call(lambda cluster: cluster.asked_by(wanted)))[:limit]

    @asynccontextmanager
    async def events(self, wanted: EventFilter, since: int | None) -> AsyncIterator[EventStream]:
        """Open a stream of the ends of all invocations of the app; its history is asked for them."""
        yield PollingEventStream(_History(self, wanted.action), since)

    async def records(self, invocation_ids: Collection[str]) -> list[InvocationRecord | UnreadableItem]:
        """The records of up to 1,000 invocations, in any order; those that aren't known are left out."""
        found: list[InvocationRecord | UnreadableItem] = []
        for batch in _batches(invocation_ids):
            found += await self._call(lambda cluster, ids: cluster.records(ids), batch)
        return found

    async def cancel(self, invocation_id: str) -> None:
        """Stop what hasn't started; ask what runs, through its workflow data, and give it a moment.

        What fails after it was asked counts as Cancelled: somebody wanted its end.

        Raises:
            CannotStopError: it runs on; where.
        """
        deadline = time.monotonic() + CANCEL_PATIENCE
        await self._call(lambda cluster: cluster.ask_to_stop(invocation_id))
        while True:
            stop = await self._call(lambda cluster: cluster.stop(invocation_id))
            if stop is Stop.Ended:
                return
            if time.monotonic() >= deadline:
                break
            await asyncio.sleep(CANCEL_PAUSE)
        if stop is Stop.Runs:
            raise CannotStopError(await self._call(lambda cluster: cluster.why_it_runs_on(invocation_id)))

    async def outputs(self, invocation_id: str) -> Any:
        """What a completed task has returned, as JSON types; tuples and sets are lists.

        Raises:
            UnsupportedError: it returned something else; pynenc's way to read that would run its code here.
            NotFoundError: there is nothing: it hasn't completed, or isn't known.
        """
        return await self._call(lambda cluster: cluster.outputs(invocation_id))

    async def _call(self, operation: Callable[[Cluster, *Ts], T], *arguments: *Ts) -> T:
        cluster = self._cluster
        if cluster is None:
            raise RuntimeError("the platform is used outside of 'async with'")
        return await _in_its_thread(lambda: operation(cluster, *arguments), self.where)


class _History:
    """What a PollingEventStream asks for: changes by pynenc's history, and ends by the statuses themselves.

    A runner that dies, or loses its Redis, between the two leaves an end without a line in the history.
    """

    lookback = HISTORY_LOOKBACK

    def __init__(self, platform: PynencPlatform, action: str | None) -> None:
        self._call = platform._call
        self._action = action

    async def since(self, moment: datetime.datetime) -> AsyncIterator[ListedInvocation]:
        """Everything that has changed since then."""
        place: datetime.datetime | None = moment
        while place is not None:
            page, place = await self._call(lambda cluster, begin: cluster.changes(self._action, begin), place)
            for listed in page:
                yield listed

    async def ended(self, invocation_ids: Collection[str]) -> AsyncIterator[ListedInvocation]:
        """Those of up to 1,000 invocations that have ended."""
        final = await self._call(lambda cluster: cluster.final(list(invocation_ids)))
        for batch in _batches(final):
            for listed in await self._call(lambda cluster, ids: cluster.listed(ids), batch):
                yield listed


def _batches(ids: Collection[str]) -> Iterator[Sequence[str]]:
    every = list(ids)
    return (every[start : start + BATCH] for start in range(0, len(every), BATCH))


async def _in_its_thread(operation: Callable[[], T], where: str) -> T:
    """Do something in pynenc's thread. What has begun goes on, whoever stops waiting for it."""

    def run() -> T:
        with translated(where):
            return operation()

    return await asyncio.get_running_loop().run_in_executor(_thread(), run)


@contextmanager
def translated(where: str) -> Iterator[None]:
    """Raise what a backend's library raises as one of ours, which names where that was."""
    try:
        yield
    except PlatformError:
        raise
    except Exception as error:
        names = (f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__)
        kind = next((_ERRORS[name] for name in names if name in _ERRORS), None)
        if kind is None:
            raise
        raise kind(f"{where}: {error or type(error).__name__}") from error


def _cluster_of(settings: PynencSettings) -> Cluster:
    """The cluster that these settings lead to; an app is loaded once in a process.

    Raises:
        InvalidRequestError: pynenc isn't installed, or not in the version that this is written for; the
            app can't be imported, or couldn't work.
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


def require_version(package: str) -> None:
    """Raise InvalidRequestError unless a package of pynenc's is installed as this is written for."""
    try:
        version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        raise InvalidRequestError(
            f"{package} isn't installed here: pip install 'airflow-provider-invocations[pynenc]', with "
            "Python 3.12 or 3.13"
        ) from None
    if not version.startswith(f"{VERSION}."):
        raise InvalidRequestError(
            f"{package} is installed here as {version}, and only {VERSION} works: packages of other versions "
            "submit what nobody runs; pip install 'airflow-provider-invocations[pynenc]'"
        )


#: What is open, by process: a forked one has a thread and connections of its own.
_threads: dict[int, ThreadPoolExecutor] = {}
_clusters: dict[tuple[int, PynencSettings], Cluster] = {}


def _thread() -> ThreadPoolExecutor:
    """The one thread of this process."""
    pid = os.getpid()
    if pid not in _threads:
        _threads.setdefault(pid, ThreadPoolExecutor(1, thread_name_prefix="invocations-pynenc"))
    return _threads[pid]
