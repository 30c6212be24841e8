"""Routes of the page in Airflow: permissions, lists of invocations, details of one, and its log."""

# No postponed annotations here: the routes' types are made inside a function.

import hashlib
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Annotated, cast
from urllib.parse import quote, urlencode

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.resource_details import (
    AccessView,
    DagAccessEntity,
    DagDetails,
)
from airflow.api_fastapi.core_api.security import GetUserDep, requires_access_dag, requires_access_view
from airflow.sdk.log import redact  # type: ignore[attr-defined]  # Airflow's own, though not listed
from fastapi import Depends, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from ...models import InvocationRecord, LogProcess, TaskInstanceReference
from ...platforms import NotFoundError
from ..shared.renderer import HEADERS, PageRenderer
from . import runs
from .airflow_api import AirflowApi, MountedApp
from .queries import InvocationRow, ListQuery, ListResult, PlatformQueries, QueryFailedError
from .runs import RunKey
from .table import TableRow, key_of, table_rows

#: Invocations that a list shows: the newest. The list of all of Airflow has fewer of each run.
MAX_ROWS = 200
MAX_ROWS_OF_A_RUN = 50

#: Queries that one list may run.
MAX_QUERIES = 100

#: Seconds that a result stays fresh while an invocation is active, and while none is.
LIVE = 2.0
AT_REST = 30.0

#: Characters of a log line that are sent.
_LINE = 20_000

#: Lines of a log in one response: the last ones of a longer page. A browser keeps no more.
_LINES = 2000

_MAY_SEE = [
    Depends(requires_access_dag("GET", DagAccessEntity.RUN)),
    Depends(requires_access_dag("GET", DagAccessEntity.TASK_INSTANCE)),
]
_MAY_READ_LOGS = [*_MAY_SEE, Depends(requires_access_dag("GET", DagAccessEntity.TASK_LOGS))]

# As long as Airflow's own ids may be.
DagId = Annotated[str, Query(min_length=1, max_length=250)]
RunId = Annotated[str, Query(min_length=1, max_length=250)]
ConnId = Annotated[str, Query(min_length=1, max_length=250)]
InvocationId = Annotated[str, Query(min_length=1, max_length=256)]
Seen = Annotated[str, Query(max_length=64)]
Cursor = Annotated[str, Query(max_length=1024)]


@dataclass(frozen=True, slots=True)
class Platform:
    """A connection of a list, its platform's display name, and its problem as a sentence (None: none)."""

    conn_id: str
    name: str
    problem: str | None
    is_pending: bool


@dataclass(frozen=True, slots=True)
class Listing:
    """Everything that a list shows."""

    run: RunKey | None
    rows: tuple[TableRow, ...]
    platforms: tuple[Platform, ...]
    #: There are more invocations.
    is_cut: bool
    #: An invocation is active, or a query hasn't completed.
    is_live: bool

    @property
    def problems(self) -> list[Platform]:
        """The connections with a problem."""
        return [platform for platform in self.platforms if platform.problem]

    @property
    def is_pending(self) -> bool:
        """Whether the first query of a connection hasn't completed."""
        return any(platform.is_pending for platform in self.platforms)

    @property
    def version(self) -> str:
        """A hash of the content; growing durations don't change it."""
        return hashlib.sha256(repr(self).encode()).hexdigest()


async def _airflow_api(request: Request) -> AsyncIterator[AirflowApi]:
    async with AirflowApi(request) as api:
        yield api


Api = Annotated[AirflowApi, Depends(_airflow_api)]


async def _run_of(api: Api, dag_id: DagId, run_id: RunId) -> RunKey:
    """Return a route's DAG run if the viewer may see it."""
    run = RunKey(dag_id, run_id)
    await _has_ended(api, run)
    return run


KnownRun = Annotated[RunKey, Depends(_run_of)]


async def _connection_of(run: KnownRun, api: Api, conn_id: ConnId) -> str:
    """Return a route's connection; raise NotFoundError if the run's list doesn't use it."""
    named = (await runs.named_connections(api, [run])).get(run, [])
    if conn_id not in _bounded(named, await runs.listed_connections(api)):
        raise NotFoundError("the DAG run has no such connection")
    return conn_id


KnownConnection = Annotated[str, Depends(_connection_of)]


class _Viewer:
    """The viewer of the page.

    A status's detail contains the last log line of the action, so only viewers of task logs see it.
    """

    def __init__(self, user: GetUserDep) -> None:
        self._user = user

    def may_read_logs(self, dag_id: str) -> bool:
        """Return whether the viewer may read the logs of a DAG's tasks. It may query a database."""
        return get_auth_manager().is_authorized_dag(
            method="GET",
            user=self._user,
            access_entity=DagAccessEntity.TASK_LOGS,
            details=DagDetails(id=dag_id),
        )


Viewer = Annotated[_Viewer, Depends(_Viewer)]


def create_app(queries: PlatformQueries | None = None) -> FastAPI:
    """Return the page, to be mounted in Airflow's API server; each route checks Airflow's permissions."""
    platforms = queries or PlatformQueries()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        platforms.close()

    app = MountedApp(
        title="Invocations",
        lifespan=lifespan,
        openapi_url=None,  # it would be public, and the routes are internal to the page
        dependencies=[Depends(requires_access_view(AccessView.PLUGINS))],
    )
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _invalid_request)
    app.add_exception_handler(NotFoundError, _not_found)
    app.add_exception_handler(QueryFailedError, _query_failed)

    async def all_runs(api: Api, viewer: Viewer) -> Listing:
        return await list_all(platforms, api, viewer)

    async def one_run(api: Api, viewer: Viewer, dag_id: DagId, run_id: RunId) -> Listing:
        return await list_run(platforms, api, viewer, RunKey(dag_id, run_id))

    @app.get("/", dependencies=_MAY_SEE)
    def show_all(listing: Annotated[Listing, Depends(all_runs)]) -> Response:
        return _PAGES.response("page.html", listing=listing)

    @app.get("/run", dependencies=_MAY_SEE)
    def show_run(listing: Annotated[Listing, Depends(one_run)]) -> Response:
        return _PAGES.response("page.html", listing=listing)

    @app.get("/rows", dependencies=_MAY_SEE)
    def rows_of_all(listing: Annotated[Listing, Depends(all_runs)], seen: Seen = "") -> Response:
        return _unless_seen(listing, seen)

    @app.get("/run/rows", dependencies=_MAY_SEE)
    def rows_of_a_run(listing: Annotated[Listing, Depends(one_run)], seen: Seen = "") -> Response:
        return _unless_seen(listing, seen)

    @app.get("/facts", dependencies=_MAY_SEE)
    def facts(
        run: KnownRun, conn_id: KnownConnection, viewer: Viewer, invocation_id: InvocationId
    ) -> Response:
        """Return one invocation without its log."""
        detail = platforms.detail(conn_id, run, invocation_id)
        record = detail.record if viewer.may_read_logs(run.dag_id) else _without_details(detail.record)
        return _PAGES.response("facts.html", record=record, task=detail.task, url=detail.url, conn_id=conn_id)

    @app.get("/log", dependencies=_MAY_READ_LOGS)
    def log(
        run: KnownRun, conn_id: KnownConnection, invocation_id: InvocationId, cursor: Cursor | None = None
    ) -> Response:
        """Return the log lines behind a cursor, and the next cursor."""
        page = platforms.log_page(conn_id, run, invocation_id, cursor)
        if page is None:
            return JSONResponse({"kept": False}, headers=HEADERS)
        lines = [
            {
                "time": line.timestamp.isoformat(),
                "text": str(redact(line.log))[:_LINE],
                "part": line.partial_id,
                "aside": line.process is not LogProcess.Action,
            }
            for line in page.items[-_LINES:]
        ]
        content = {
            "kept": True,
            "lines": lines,
            "cut": len(page.items) > _LINES,
            "cursor": page.last_read or cursor,
            "more": page.has_next,
        }
        return JSONResponse(content, headers=HEADERS)

    return app


async def list_run(platforms: PlatformQueries, api: AirflowApi, viewer: _Viewer, run: RunKey) -> Listing:
    """Return the invocations of one DAG run.

    :raises HTTPException: there is no such run (404), or the viewer may not see it (403).
    """
    has_ended = await _has_ended(api, run)
    named = (await runs.named_connections(api, [run])).get(run, [])
    listed = await runs.listed_connections(api)
    queries = {
        ListQuery(conn_id, run, MAX_ROWS): partial(_fresh_for, has_ended or conn_id not in named)
        for conn_id in _bounded(named, listed)
    }
    results = await run_in_threadpool(platforms.results, queries)
    # A task may use a connection in its code without naming it, so all are queried, but not all are listed.
    shown = {query.conn_id for query in queries} if not named else set(named)
    return await _listing(api, viewer, run, results, shown)


async def list_all(platforms: PlatformQueries, api: AirflowApi, viewer: _Viewer) -> Listing:
    """Return the invocations of the newest DAG runs that the viewer may see."""
    newest = await runs.newest_runs(api)
    named = await runs.named_connections(api, newest)
    listed = await runs.listed_connections(api)
    queries = {
        ListQuery(conn_id, run, MAX_ROWS_OF_A_RUN): partial(_fresh_for, has_ended)
        for run, has_ended in newest.items()
        for conn_id in _bounded(named.get(run) or listed)
    }
    results = await run_in_threadpool(platforms.results, dict(list(queries.items())[:MAX_QUERIES]))
    shown = {query.conn_id for query in queries}
    return await _listing(api, viewer, None, results, shown)


def _fresh_for(is_at_rest: bool, result: ListResult) -> float:
    return AT_REST if not result.has_active and (is_at_rest or not result.is_supported) else LIVE


def _bounded(*conn_ids: Iterable[str]) -> list[str]:
    """Return the distinct ids in order, at most MAX_CONNECTIONS."""
    distinct = dict.fromkeys(conn_id for some in conn_ids for conn_id in some)
    return list(distinct)[: runs.MAX_CONNECTIONS]


async def _listing(
    api: AirflowApi,
    viewer: _Viewer,
    run: RunKey | None,
    results: Mapping[ListQuery, ListResult],
    shown: set[str],
) -> Listing:
    supported = {query: result for query, result in results.items() if result.is_supported}
    rows = [row for result in supported.values() for row in result.rows]
    rows.sort(key=lambda row: (row.created, row.invocation_id), reverse=True)
    newest = await run_in_threadpool(_for_viewer, rows[:MAX_ROWS], viewer)
    instances = await runs.task_instances(api, {key_of(row) for row in newest})
    platforms: dict[str, Platform] = {}
    for query, result in supported.items():
        if query.conn_id in shown or result.rows:
            platforms[query.conn_id] = _merged(platforms.get(query.conn_id), query.conn_id, result)
    full = any(len(result.rows) >= query.limit for query, result in supported.items())
    return Listing(
        run=run,
        rows=tuple(table_rows(newest, instances)),
        platforms=tuple(platforms[conn_id] for conn_id in sorted(platforms)),
        is_cut=full or len(rows) > MAX_ROWS,
        is_live=any(result.has_active or result.is_pending for result in supported.values()),
    )


def _merged(known: Platform | None, conn_id: str, result: ListResult) -> Platform:
    before = known or Platform(conn_id, "", None, False)
    return Platform(
        conn_id,
        before.name or result.platform,
        before.problem or result.problem,
        before.is_pending or result.is_pending,
    )


def _for_viewer(rows: Iterable[InvocationRow], viewer: _Viewer) -> list[InvocationRow]:
    """Return invocations without the fields that the viewer may not see."""
    may_read_logs = cache(viewer.may_read_logs)
    return [row if may_read_logs(row.task.dag_id) else replace(row, detail=None) for row in rows]


def _without_details(record: InvocationRecord) -> InvocationRecord:
    return record.model_copy(
        update={"status": [step.model_copy(update={"detail": None}) for step in record.status]}
    )


async def _has_ended(api: AirflowApi, run: RunKey) -> bool:
    has_ended = await runs.run_has_ended(api, run)
    if has_ended is None:
        raise HTTPException(404, "There is no such DAG run.")
    return has_ended


# -- responses


def _unless_seen(listing: Listing, seen: str) -> Response:
    if seen == listing.version:
        return Response(status_code=204, headers=HEADERS)
    return _PAGES.response("listing.html", listing=listing)


def _message(status: int, text: str) -> Response:
    return _PAGES.response("shared/message.html", status, text=text)


async def _http_error(_: Request, error: Exception) -> Response:
    rejection = cast(HTTPException, error)
    texts = {401: "You aren't logged in to Airflow.", 403: "Airflow doesn't let you see this."}
    return _message(rejection.status_code, texts.get(rejection.status_code, str(rejection.detail)))


async def _invalid_request(_: Request, __: Exception) -> Response:
    return _message(422, "Invalid request: a query parameter is missing or malformed.")


async def _not_found(_: Request, __: Exception) -> Response:
    return _message(404, "This DAG run has no such invocation.")


async def _query_failed(_: Request, error: Exception) -> Response:
    return _message(503, str(error))


def _task_address(task: TaskInstanceReference) -> str:
    """Return the address of a task instance in Airflow's UI, relative to this page."""
    address = f"{_run_address(task)}/tasks/{_part(task.task_id)}"
    if task.map_index >= 0:
        address += f"/mapped/{task.map_index}"
    if task.region_id is None:
        return address
    return f"{address}?{urlencode({'region_id': task.region_id, 'region_index': task.region_index})}"


def _run_address(task: TaskInstanceReference) -> str:
    return f"../dags/{_part(task.dag_id)}/runs/{_part(task.run_id)}"


_part: Callable[[str], str] = partial(quote, safe="")

_PAGES = PageRenderer(
    Path(__file__).with_name("templates"), form_action="none", frame_ancestors="self", redact=redact
)
_PAGES.templates.filters.update(task_address=_task_address, run_address=_run_address)
