"""Asks the platforms through the hook: in threads of its own, within bounds, once for all viewers."""

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
from ...platforms.base import web_address
from ...version_compat import AirflowNotFoundException
from .runs import PLATFORMS, RunKey

#: Seconds that a platform has for an answer; after that it counts as out of reach.
PATIENCE = 8.0

#: Seconds that a request of a browser's waits for it: what isn't there by then comes with a later one.
PAGE_PATIENCE = 2.0

#: Seconds for which a platform that didn't answer isn't asked again.
REST = 10.0

#: Threads that ask for lists, and as many again for what a person has opened. Airflow's own, which serve all
#: of its API, only wait, and never longer than a page's patience.
THREADS = 4

#: Questions of people that may wait for a thread.
MAX_WAITING = 32

#: DAG runs that one connection is asked about at once.
_AT_ONCE = 4

#: Answers, and invocations' owners, that are kept.
_MAX_ANSWERS = 256
_MAX_OWNERS = 20_000

#: Characters of a status' detail that are kept for a list.
_DETAIL = 300

T = TypeVar("T")
K = TypeVar("K")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Question:
    """What has a DAG run invoked through a connection? The newest `limit` are wanted."""

    conn_id: str
    run: RunKey
    limit: int


@dataclass(frozen=True, slots=True)
class Found:
    """An invocation as a list shows it."""

    conn_id: str
    platform: str
    invocation_id: str
    action: str
    status: InvocationStatus
    detail: str | None
    created: datetime
    #: When the action began to run; None: it hasn't, or waits to do so again.
    started: datetime | None
    #: None: it goes on.
    ended: datetime | None
    asker: TaskInstanceReference
    url: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What is known of a question now."""

    found: tuple[Found, ...] = ()
    #: Why nothing newer is known, in words for everybody; None: nothing is wrong.
    problem: str | None = None
    #: Nothing has been answered yet.
    is_pending: bool = False
    #: Whether the connection is one of ours at all; nobody needs to see the others.
    is_ours: bool = True
    #: How the connection's type is called; empty: not known.
    platform: str = ""

    @property
    def goes_on(self) -> bool:
        """Whether any of it is still under way."""
        return any(each.ended is None for each in self.found)


@dataclass(frozen=True, slots=True)
class Opened:
    """An invocation as a person has opened it."""

    record: InvocationRecord
    asker: TaskInstanceReference
    url: str


@dataclass(slots=True)
class _Known:
    answer: Answer
    #: When it was answered, by the monotonic clock.
    at: float


@dataclass(slots=True)
class _Connection:
    """What has been found out about a connection beside answers."""

    problem: str | None = None
    rests_until: float = 0.0
    asking: Future[None] | None = None
    asked_at: float = 0.0


class OutOfReachError(Exception):
    """A platform couldn't be asked what a person wants to see; the message is for everybody."""


class Platforms:
    """What the platforms say, at most so old, for all viewers together.

    A question that is fresh enough isn't asked again; each connection is asked one set of questions at a
    time; one that doesn't answer rests. Nothing that is said of a problem here comes from a message: those
    may name addresses or hold what somebody typed into a wrong field. They go to the API server's log, which
    masks secrets.

    :param hook: makes the hook of a connection.
    """

    def __init__(self, hook: Callable[[str], InvocationHook] = InvocationHook) -> None:
        self._hook = hook
        self._lock = threading.Lock()
        self._known: OrderedDict[Question, _Known] = OrderedDict()
        self._owners: OrderedDict[tuple[str, str], RunKey] = OrderedDict()
        self._connections: dict[str, _Connection] = {}
        self._lists, self._persons = _thread_pools()
        self._waiting = threading.BoundedSemaphore(MAX_WAITING)

    def close(self) -> None:
        """Drop queued questions, and let running ones finish.

        Airflow keeps the page as long as its process lives, so a later question starts threads again.
        """
        with self._lock:
            pools = self._lists, self._persons
            self._lists, self._persons = _thread_pools()
        for pool in pools:
            pool.shutdown(wait=False, cancel_futures=True)

    def answers(
        self, questions: Mapping[Question, Callable[[Answer], float]], patience: float = PAGE_PATIENCE
    ) -> dict[Question, Answer]:
        """What is known of each question; what is too old is asked anew, and waited for `patience` seconds.

        :param questions: for each, how many seconds its answer may be old, given that answer.
        """
        stale: dict[str, list[Question]] = {}
        with self._lock:
            now = time.monotonic()
            for question, fresh_for in questions.items():
                known = self._known.get(question)
                if known is None or now - known.at >= fresh_for(known.answer):
                    stale.setdefault(question.conn_id, []).append(question)
            asking = [self._ask(conn_id, of_one, now) for conn_id, of_one in stale.items()]
        wait([future for future in asking if future is not None], timeout=patience)
        with self._lock:
            return {question: self._answer(question) for question in questions}

    def open(self, conn_id: str, run: RunKey, invocation_id: str) -> Opened:
        """An invocation of a DAG run, whole.

        Raises:
            OutOfReachError: the platform doesn't answer, or can't be asked.
            NotFoundError: the run has no such invocation.
        """

        async def whole(platform: Platform) -> Opened:
            record = await platform.get(invocation_id)
            asker = task_instance_of(record.provenance.source.source_id)
            if asker is None or RunKey(asker.dag_id, asker.run_id) != run:
                raise NotFoundError("the DAG run has no such invocation")
            return Opened(record, asker, web_address(platform.url(invocation_id)))

        opened = self._for_a_person(conn_id, whole)
        with self._lock:
            _keep(self._owners, (conn_id, invocation_id), run, _MAX_OWNERS)
        return opened

    def log_page(self, conn_id: str, run: RunKey, invocation_id: str, cursor: str | None) -> LogPage | None:
        """The next lines of an invocation of a DAG run; None: the platform keeps none.

        Raises:
            OutOfReachError: the platform doesn't answer, or can't be asked.
            NotFoundError: the run has no such invocation.
        """
        with self._lock:
            owner = self._owners.get((conn_id, invocation_id))
        if owner != run:
            self.open(conn_id, run, invocation_id)

        async def lines(platform: Platform) -> LogPage | None:
            return await platform.logs(invocation_id, cursor) if platform.capabilities.logs else None

        return self._for_a_person(conn_id, lines)

    # -- lists

    def _ask(self, conn_id: str, questions: list[Question], now: float) -> Future[None] | None:
        """Have a connection asked, unless it is being asked, or rests. The lock is held."""
        connection = self._connections.setdefault(conn_id, _Connection())
        if connection.asking is not None and not connection.asking.done():
            return connection.asking
        if now < connection.rests_until:
            return None
        connection.asked_at = now
        connection.asking = self._lists.submit(self._find_all, conn_id, questions)
        return connection.asking

    def _answer(self, question: Question) -> Answer:
        """What is known now. The lock is held."""
        connection = self._connections.get(question.conn_id, _Connection())
        known = self._known.get(question)
        problem = connection.problem
        late = time.monotonic() - connection.asked_at > 2 * PATIENCE
        if problem is None and late and connection.asking is not None and not connection.asking.done():
            problem = "doesn't answer"
        if known is None:
            return Answer(problem=problem, is_pending=problem is None)
        self._known.move_to_end(question)
        kept = known.answer
        return kept if problem is None else replace(kept, problem=problem)

    def _find_all(self, conn_id: str, questions: list[Question]) -> None:
        try:
            answers = self._found(conn_id, questions)
            problem = None
        except Exception as error:  # whatever it is, the page goes on without this connection
            answers, problem = {}, self._problem(conn_id, error)
        with self._lock:
            now = time.monotonic()
            connection = self._connections[conn_id]
            connection.problem = problem
            connection.rests_until = now + REST if problem else 0.0
            for question, answer in answers.items():
                _keep(self._known, question, _Known(answer, now), _MAX_ANSWERS)
                for each in answer.found:
                    _keep(self._owners, (conn_id, each.invocation_id), question.run, _MAX_OWNERS)

    def _found(self, conn_id: str, questions: list[Question]) -> dict[Question, Answer]:
        hook = self._hook(conn_id)
        platform_name = PLATFORMS.get(hook.connection_type)
        if platform_name is None:
            return dict.fromkeys(questions, Answer(is_ours=False))
        turns = asyncio.Semaphore(_AT_ONCE)

        async def one(platform: Platform, question: Question) -> Answer:
            async with turns:
                run = question.run
                records = await platform.find(run.dag_id, run.run_id, None, None, question.limit)
            listed = (found_of(conn_id, platform_name, platform, record) for record in records)
            found = tuple(each for each in listed if each is not None)
            return Answer(found, platform=platform_name)

        async def each(platform: Platform) -> dict[Question, Answer]:
            async with asyncio.timeout(PATIENCE):
                found = await asyncio.gather(*(one(platform, question) for question in questions))
            return dict(zip(questions, found, strict=True))

        return hook.ask(each)

    # -- what a person has opened

    def _for_a_person(self, conn_id: str, operation: Callable[[Platform], Awaitable[T]]) -> T:
        with self._lock:
            connection = self._connections.get(conn_id)
            if connection is not None and connection.problem and time.monotonic() < connection.rests_until:
                raise OutOfReachError(connection.problem)
        if not self._waiting.acquire(blocking=False):
            raise OutOfReachError("is being asked too much at the moment")

        async def in_time(platform: Platform) -> T:
            async with asyncio.timeout(PATIENCE):
                return await operation(platform)

        asking = self._persons.submit(lambda: self._hook(conn_id).ask(in_time))
        asking.add_done_callback(lambda _: self._waiting.release())
        try:
            return asking.result(timeout=PATIENCE)
        except NotFoundError:
            raise
        except Exception as error:
            asking.cancel()
            raise OutOfReachError(self._problem(conn_id, error)) from error

    def _problem(self, conn_id: str, error: Exception) -> str:
        """What is wrong, in words that hold nothing of a connection's."""
        _log.warning("connection %r: %s: %s", conn_id, type(error).__name__, error)
        match error:
            case TimeoutError():
                return "doesn't answer"
            case TransientError():
                return "is out of reach"
            case UnauthorizedError():
                return "doesn't accept the connection's token"
            case UnsupportedError():
                return "can't be asked that"
            case PlatformError():
                return "refuses to answer"
            case AirflowNotFoundException():
                return "isn't defined as a connection any more"
            case ValueError():
                return "is a connection that makes no sense"
            case _:
                return "can't be asked"


def _thread_pools() -> tuple[ThreadPoolExecutor, ThreadPoolExecutor]:
    """Return the thread pools for lists and for single invocations; threads start when needed."""
    return (
        ThreadPoolExecutor(THREADS, thread_name_prefix="invocations-page-lists"),
        ThreadPoolExecutor(THREADS, thread_name_prefix="invocations-page"),
    )


def _keep(mapping: OrderedDict[K, T], key: K, value: T, limit: int) -> None:
    """Keep a value; the one that was used longest ago goes, if there are more than `limit`."""
    mapping[key] = value
    mapping.move_to_end(key)
    while len(mapping) > limit:
        mapping.popitem(last=False)


def found_of(conn_id: str, platform_name: str, platform: Platform, record: InvocationRecord) -> Found | None:
    """An invocation as a list shows it; None: no task of an Airflow's has asked for it."""
    asker = task_instance_of(record.provenance.source.source_id)
    if asker is None:
        return None
    step = record.current
    return Found(
        conn_id=conn_id,
        platform=platform_name,
        invocation_id=record.invocation_id,
        action=record.provenance.action.name,
        status=step.status,
        detail=(step.detail or "")[:_DETAIL] or None,
        created=record.created,
        started=record.started_at,
        ended=record.ended_at,
        asker=asker,
        url=web_address(platform.url(record.invocation_id)),
    )
