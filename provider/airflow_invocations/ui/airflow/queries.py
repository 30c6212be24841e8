"""Query the platforms through the hook: in own threads, within time limits, once for all viewers."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TypeVar

from ...hooks import InvocationHook
from ...models import (
    InvocationRecord,
    InvocationStatus,
    LogPage,
    TaskInstanceReference,
    task_instance_of,
)
from ...platforms import (
    NotFoundError,
    Platform,
    PlatformError,
    TransientError,
    UnauthorizedError,
    UnsupportedError,
)
from ...version_compat import AirflowNotFoundException
from .runs import PLATFORMS, RunKey

#: Seconds until a platform that doesn't respond counts as unavailable.
PLATFORM_TIMEOUT = 8.0

#: Seconds that a browser's request waits for the platforms; results that arrive later come with the next
#: request.
PAGE_TIMEOUT = 2.0

#: Seconds after a failed query during which its connection isn't queried.
BACKOFF = 10.0

#: Threads for lists, and as many for single invocations. Airflow's own threads, which serve all of its API,
#: only wait, and no longer than PAGE_TIMEOUT or PLATFORM_TIMEOUT.
THREADS = 4

#: Interactive queries that may wait for a thread.
MAX_WAITING = 32

#: DAG runs that one connection is queried for at once.
_AT_ONCE = 4

#: Results, and invocations' DAG runs, that are cached.
_MAX_RESULTS = 256
_MAX_OWNERS = 20_000

#: Characters of a status's detail that a list keeps.
_DETAIL = 300

_NO_RESPONSE = "The platform doesn't respond."

T = TypeVar("T")
K = TypeVar("K")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ListQuery:
    """A query for the newest `limit` invocations of a DAG run through a connection."""

    conn_id: str
    run: RunKey
    limit: int


@dataclass(frozen=True, slots=True)
class InvocationRow:
    """An invocation as a list shows it."""

    conn_id: str
    platform: str
    invocation_id: str
    action: str
    status: InvocationStatus
    detail: str | None
    created: datetime
    #: None: the last attempt hasn't started.
    started: datetime | None
    #: None: active.
    ended: datetime | None
    #: The task instance that invoked it.
    task: TaskInstanceReference
    url: str


@dataclass(frozen=True, slots=True)
class ListResult:
    """The latest known result of a query."""

    rows: tuple[InvocationRow, ...] = ()
    #: Why there is no newer result, as a sentence without secrets; None: the last query succeeded.
    problem: str | None = None
    #: No query has completed yet.
    is_pending: bool = False
    #: Whether the connection's type is one of this provider's; connections of other types aren't shown.
    is_supported: bool = True
    #: The display name of the connection's type; empty: not known yet.
    platform: str = ""

    @property
    def has_active(self) -> bool:
        """Whether any of the invocations is active."""
        return any(row.ended is None for row in self.rows)


@dataclass(frozen=True, slots=True)
class InvocationDetail:
    """One invocation with its complete record."""

    record: InvocationRecord
    task: TaskInstanceReference
    url: str


@dataclass(slots=True)
class _Cached:
    result: ListResult
    #: Seconds of the monotonic clock at which the result arrived.
    at: float


@dataclass(slots=True)
class _Connection:
    """The state of a connection beside its results; times are seconds of the monotonic clock."""

    problem: str | None = None
    backs_off_until: float = 0.0
    running: Future[None] | None = None
    started_at: float = 0.0


class QueryFailedError(Exception):
    """A query for one invocation failed; the message is a sentence without secrets."""


class PlatformQueries:
    """Queries platforms for all viewers together, and caches the results.

    A result that is fresh enough is reused. Each connection runs one set of list queries at a time. A
    connection backs off after a failure. Problems are reported in fixed sentences, because an exception's
    message may hold an address or a secret; the message goes to the API server's log, which masks secrets.

    :param hook: makes the hook of a connection.
    """

    def __init__(self, hook: Callable[[str], InvocationHook] = InvocationHook) -> None:
        self._hook = hook
        self._lock = threading.Lock()
        self._cache: OrderedDict[ListQuery, _Cached] = OrderedDict()
        self._owners: OrderedDict[tuple[str, str], RunKey] = OrderedDict()
        self._connections: dict[str, _Connection] = {}
        self._lists, self._interactive = _thread_pools()
        self._waiting = threading.BoundedSemaphore(MAX_WAITING)

    def close(self) -> None:
        """Drop queued queries, and let running ones finish.

        Airflow keeps the page for the life of its process, so a later query starts threads again.
        """
        with self._lock:
            pools = self._lists, self._interactive
            self._lists, self._interactive = _thread_pools()
        for pool in pools:
            pool.shutdown(wait=False, cancel_futures=True)

    def results(
        self, queries: Mapping[ListQuery, Callable[[ListResult], float]], timeout: float = PAGE_TIMEOUT
    ) -> dict[ListQuery, ListResult]:
        """Return the latest result of each query, after rerunning those whose result is too old.

        :param queries: for each query, a function that returns how many seconds a result of it stays fresh.
        :param timeout: seconds to wait for the reruns; a result that arrives later is cached for the next
            call.
        """
        stale: dict[str, list[ListQuery]] = {}
        with self._lock:
            now = time.monotonic()
            for query, fresh_for in queries.items():
                cached = self._cache.get(query)
                if cached is None or now - cached.at >= fresh_for(cached.result):
                    stale.setdefault(query.conn_id, []).append(query)
            running = [self._start(conn_id, of_one, now) for conn_id, of_one in stale.items()]
        wait([future for future in running if future is not None], timeout=timeout)
        with self._lock:
            return {query: self._latest(query) for query in queries}

    def detail(self, conn_id: str, run: RunKey, invocation_id: str) -> InvocationDetail:
        """Return one invocation of a DAG run.

        :raises QueryFailedError: the platform is unavailable, or the connection doesn't work.
        :raises NotFoundError: the DAG run has no such invocation.
        """

        async def fetch(platform: Platform) -> InvocationDetail:
            record = await platform.get(invocation_id)
            task = task_instance_of(record.provenance.source.source_id)
            if task is None or RunKey(task.dag_id, task.run_id) != run:
                raise NotFoundError("the DAG run has no such invocation")
            return InvocationDetail(record, task, platform.url(invocation_id))

        detail = self._run_interactive(conn_id, fetch)
        with self._lock:
            _keep(self._owners, (conn_id, invocation_id), run, _MAX_OWNERS)
        return detail

    def log_page(self, conn_id: str, run: RunKey, invocation_id: str, cursor: str | None) -> LogPage | None:
        """Return the log lines of an invocation behind a cursor; None if the platform keeps no log.

        :param cursor: `last_read` of the previous page; None reads from the beginning.
        :raises QueryFailedError: the platform is unavailable, or the connection doesn't work.
        :raises NotFoundError: the DAG run has no such invocation.
        """
        with self._lock:
            owner = self._owners.get((conn_id, invocation_id))
        if owner != run:
            self.detail(conn_id, run, invocation_id)

        async def fetch(platform: Platform) -> LogPage | None:
            return await platform.logs(invocation_id, cursor) if platform.capabilities.logs else None

        return self._run_interactive(conn_id, fetch)

    # -- lists

    def _start(self, conn_id: str, queries: list[ListQuery], now: float) -> Future[None] | None:
        """Start a connection's queries unless it is busy or backs off. The caller holds the lock."""
        connection = self._connections.setdefault(conn_id, _Connection())
        if connection.running is not None and not connection.running.done():
            return connection.running
        if now < connection.backs_off_until:
            return None
        connection.started_at = now
        connection.running = self._lists.submit(self._run_queries, conn_id, queries)
        return connection.running

    def _latest(self, query: ListQuery) -> ListResult:
        """Return the latest result of a query. The caller holds the lock."""
        connection = self._connections.get(query.conn_id, _Connection())
        cached = self._cache.get(query)
        problem = connection.problem
        is_late = time.monotonic() - connection.started_at > 2 * PLATFORM_TIMEOUT
        if problem is None and is_late and connection.running is not None and not connection.running.done():
            problem = _NO_RESPONSE
        if cached is None:
            return ListResult(problem=problem, is_pending=problem is None)
        self._cache.move_to_end(query)
        return cached.result if problem is None else replace(cached.result, problem=problem)

    def _run_queries(self, conn_id: str, queries: list[ListQuery]) -> None:
        try:
            results = self._fetch(conn_id, queries)
            problem = None
        except Exception as error:  # the page shows the other connections
            results, problem = {}, _problem(conn_id, error)
        with self._lock:
            now = time.monotonic()
            connection = self._connections[conn_id]
            connection.problem = problem
            connection.backs_off_until = now + BACKOFF if problem else 0.0
            for query, result in results.items():
                _keep(self._cache, query, _Cached(result, now), _MAX_RESULTS)
                for row in result.rows:
                    _keep(self._owners, (conn_id, row.invocation_id), query.run, _MAX_OWNERS)

    def _fetch(self, conn_id: str, queries: list[ListQuery]) -> dict[ListQuery, ListResult]:
        hook = self._hook(conn_id)
        platform_name = PLATFORMS.get(hook.connection_type)
        if platform_name is None:
            return dict.fromkeys(queries, ListResult(is_supported=False))
        slots = asyncio.Semaphore(_AT_ONCE)

        async def fetch(platform: Platform, query: ListQuery) -> ListResult:
            async with slots:
                run = query.run
                records = await platform.find(run.dag_id, run.run_id, None, None, query.limit)
            rows = (to_row(conn_id, platform_name, platform, record) for record in records)
            return ListResult(tuple(row for row in rows if row is not None), platform=platform_name)

        async def fetch_all(platform: Platform) -> dict[ListQuery, ListResult]:
            async with asyncio.timeout(PLATFORM_TIMEOUT):
                results = await asyncio.gather(*(fetch(platform, query) for query in queries))
            return dict(zip(queries, results, strict=True))

        return hook.ask(fetch_all)

    # -- one invocation

    def _run_interactive(self, conn_id: str, operation: Callable[[Platform], Awaitable[T]]) -> T:
        """Run an operation that a viewer waits for.

        :raises QueryFailedError: it failed, its connection backs off, or too many operations wait.
        :raises NotFoundError: the platform has no such invocation.
        """
        with self._lock:
            connection = self._connections.get(conn_id)
            if (
                connection is not None
                and connection.problem
                and time.monotonic() < connection.backs_off_until
            ):
                raise QueryFailedError(connection.problem)
        if not self._waiting.acquire(blocking=False):
            raise QueryFailedError("Too many requests are waiting for the platform. Try again later.")

        async def in_time(platform: Platform) -> T:
            async with asyncio.timeout(PLATFORM_TIMEOUT):
                return await operation(platform)

        running = self._interactive.submit(lambda: self._hook(conn_id).ask(in_time))
        running.add_done_callback(lambda _: self._waiting.release())
        try:
            return running.result(timeout=PLATFORM_TIMEOUT)
        except NotFoundError:
            raise
        except Exception as error:
            running.cancel()
            raise QueryFailedError(_problem(conn_id, error)) from error


def _problem(conn_id: str, error: Exception) -> str:
    """Log an error; return a sentence about it that holds nothing of the connection."""
    _log.warning("connection %r: %s: %s", conn_id, type(error).__name__, error)
    match error:
        case TimeoutError():
            return _NO_RESPONSE
        case TransientError():
            return "The platform is unavailable."
        case UnauthorizedError():
            return "The platform rejected the connection's token."
        case UnsupportedError():
            return "The platform doesn't support this."
        case PlatformError():
            return "The platform rejected the request."
        case AirflowNotFoundException():
            return "The connection is no longer defined."
        case ValueError():
            return "The connection is misconfigured."
        case _:
            return "The request failed; the API server's log has the reason."


def _thread_pools() -> tuple[ThreadPoolExecutor, ThreadPoolExecutor]:
    """Return the thread pools for lists and for single invocations; threads start when needed."""
    return (
        ThreadPoolExecutor(THREADS, thread_name_prefix="invocations-page-lists"),
        ThreadPoolExecutor(THREADS, thread_name_prefix="invocations-page"),
    )


def _keep(mapping: OrderedDict[K, T], key: K, value: T, limit: int) -> None:
    """Store a value; beyond `limit` entries, remove the least recently used one."""
    mapping[key] = value
    mapping.move_to_end(key)
    while len(mapping) > limit:
        mapping.popitem(last=False)


def to_row(
    conn_id: str, platform_name: str, platform: Platform, record: InvocationRecord
) -> InvocationRow | None:
    """Return an invocation as a list shows it; None if no Airflow task invoked it."""
    task = task_instance_of(record.provenance.source.source_id)
    if task is None:
        return None
    step = record.current
    return InvocationRow(
        conn_id=conn_id,
        platform=platform_name,
        invocation_id=record.invocation_id,
        action=record.provenance.action.name,
        status=step.status,
        detail=(step.detail or "")[:_DETAIL] or None,
        created=record.created,
        started=record.started_at,
        ended=record.ended_at,
        task=task,
        url=platform.url(record.invocation_id),
    )
