"""The page's routes: whom Airflow lets see what, and the list, the facts and the log that they get."""

# No postponed annotations here: the routes' types are made inside a function.

import hashlib
import json
import secrets
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any, cast
from urllib.parse import quote, urlencode

import jinja2
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
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from ...models import InvocationRecord, LogProcess
from ...platforms import NotFoundError
from . import runs
from .airflow_api import AirflowApi, MountedApp
from .queries import Answer, Found, OutOfReachError, Platforms, Question
from .runs import RunKey
from .table import Row, key_of, rows_of

#: Invocations that a list shows, the newest; of each run in the list of all of Airflow fewer.
MAX_ROWS = 200
MAX_ROWS_OF_A_RUN = 50

#: Questions that one list may ask.
MAX_QUESTIONS = 100

#: Seconds that an answer may be old where something is under way, and where nothing is.
LIVE = 2.0
AT_REST = 30.0

#: Characters of a value that came from outside: in a table, where there is room, and of a line of a log.
_SHORT, _LONG, _LINE = 160, 4000, 20_000

#: Lines of a log that are sent at once, the last of a page that has more: a browser keeps no more.
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
    """A connection that a list comes from, and what is wrong with it (None: nothing)."""

    conn_id: str
    name: str
    problem: str | None
    is_pending: bool


@dataclass(frozen=True, slots=True)
class Listing:
    """Everything that a list shows."""

    run: RunKey | None
    rows: tuple[Row, ...]
    platforms: tuple[Platform, ...]
    #: There is more than is shown.
    is_cut: bool
    #: It may change at any moment.
    is_live: bool

    @property
    def problems(self) -> list[Platform]:
        """The connections whose platform can't be asked now."""
        return [platform for platform in self.platforms if platform.problem]

    @property
    def is_pending(self) -> bool:
        """Whether a platform is still being asked."""
        return any(platform.is_pending for platform in self.platforms)

    @property
    def version(self) -> str:
        """The same for the same content, however long ago its spans began."""
        return hashlib.sha256(repr(self).encode()).hexdigest()


async def _airflow_api(request: Request) -> AsyncIterator[AirflowApi]:
    async with AirflowApi(request) as api:
        yield api


Api = Annotated[AirflowApi, Depends(_airflow_api)]


async def _run_of(api: Api, dag_id: DagId, run_id: RunId) -> RunKey:
    """Return the run that a route is about, if Airflow lets the viewer see it."""
    run = RunKey(dag_id, run_id)
    await _has_ended(api, run)
    return run


KnownRun = Annotated[RunKey, Depends(_run_of)]


async def _connection_of(run: KnownRun, api: Api, conn_id: ConnId) -> str:
    """Return the connection, if it is one that the run's list is made of; raise NotFoundError if not."""
    named = (await runs.named_connections(api, [run])).get(run, [])
    if conn_id not in _bounded(named, await runs.listed_connections(api)):
        raise NotFoundError("the DAG run has no such connection")
    return conn_id


KnownConnection = Annotated[str, Depends(_connection_of)]


class _Viewer:
    """The viewer of the page.

    A status's detail contains the last line that an action wrote, so only viewers of task logs see it.
    """

    def __init__(self, user: GetUserDep) -> None:
        self._user = user

    def may_read_logs(self, dag_id: str) -> bool:
        """Return whether Airflow lets the viewer read the logs of a DAG's tasks. It may ask a database."""
        return get_auth_manager().is_authorized_dag(
            method="GET",
            user=self._user,
            access_entity=DagAccessEntity.TASK_LOGS,
            details=DagDetails(id=dag_id),
        )


Viewer = Annotated[_Viewer, Depends(_Viewer)]


def create_app(platforms: Platforms | None = None) -> FastAPI:
    """The page, to be mounted into Airflow's API server; each route asks Airflow who may see it."""
    asked = platforms or Platforms()

    @asynccontextmanager
    async def until_the_end(_: FastAPI) -> AsyncIterator[None]:
        yield
        asked.close()

    app = MountedApp(
        title="Invocations",
        lifespan=until_the_end,
        openapi_url=None,  # its routes are the page's own business, and unguarded it would tell of them
        dependencies=[Depends(requires_access_view(AccessView.PLUGINS))],
    )
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(RequestValidationError, _malformed)
    app.add_exception_handler(NotFoundError, _not_found)
    app.add_exception_handler(OutOfReachError, _out_of_reach)

    async def all_runs(api: Api, viewer: Viewer) -> Listing:
        return await list_all(asked, api, viewer)

    async def one_run(api: Api, viewer: Viewer, dag_id: DagId, run_id: RunId) -> Listing:
        return await list_run(asked, api, viewer, RunKey(dag_id, run_id))

    @app.get("/", dependencies=_MAY_SEE)
    def page_of_all(listing: Annotated[Listing, Depends(all_runs)]) -> Response:
        return _html("page.html", listing=listing)

    @app.get("/run", dependencies=_MAY_SEE)
    def page_of_a_run(listing: Annotated[Listing, Depends(one_run)]) -> Response:
        return _html("page.html", listing=listing)

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
        """What is known of one invocation, but for its log."""
        opened = asked.open(conn_id, run, invocation_id)
        if not viewer.may_read_logs(run.dag_id):
            opened = replace(opened, record=_without_details(opened.record))
        return _html("facts.html", opened=opened, record=opened.record, run=run, conn_id=conn_id)

    @app.get("/log", dependencies=_MAY_READ_LOGS)
    def log(
        run: KnownRun, conn_id: KnownConnection, invocation_id: InvocationId, cursor: Cursor | None = None
    ) -> Response:
        """The lines from a cursor on, and where to read on."""
        page = asked.log_page(conn_id, run, invocation_id, cursor)
        if page is None:
            return JSONResponse({"kept": False}, headers=_HEADERS)
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
        return JSONResponse(content, headers=_HEADERS)

    return app


async def list_run(platforms: Platforms, api: AirflowApi, viewer: _Viewer, run: RunKey) -> Listing:
    """Return the invocations of one DAG run.

    :raises HTTPException: there is no such run (404), or the viewer may not see it (403).
    """
    has_ended = await _has_ended(api, run)
    named = (await runs.named_connections(api, [run])).get(run, [])
    listed = await runs.listed_connections(api)
    questions = {
        Question(conn_id, run, MAX_ROWS): partial(_fresh_for, has_ended or conn_id not in named)
        for conn_id in _bounded(named, listed)
    }
    answers = await run_in_threadpool(platforms.answers, questions)
    # A connection that no task names is looked at too, as a task may use the hook, but isn't worth a word.
    shown = {question.conn_id for question in questions} if not named else set(named)
    return await _listing(api, viewer, run, answers, shown)


async def list_all(platforms: Platforms, api: AirflowApi, viewer: _Viewer) -> Listing:
    """Return the invocations of the newest DAG runs that the viewer may see."""
    newest = await runs.newest_runs(api)
    named = await runs.named_connections(api, newest)
    listed = await runs.listed_connections(api)
    questions = {
        Question(conn_id, run, MAX_ROWS_OF_A_RUN): partial(_fresh_for, has_ended)
        for run, has_ended in newest.items()
        for conn_id in _bounded(named.get(run) or listed)
    }
    answers = await run_in_threadpool(platforms.answers, dict(list(questions.items())[:MAX_QUESTIONS]))
    shown = {question.conn_id for question in questions}
    return await _listing(api, viewer, None, answers, shown)


def _fresh_for(is_at_rest: bool, answer: Answer) -> float:
    return AT_REST if not answer.goes_on and (is_at_rest or not answer.is_ours) else LIVE


def _bounded(*conn_ids: Iterable[str]) -> list[str]:
    """Each id once, in order, no more than may be asked."""
    each_once = dict.fromkeys(conn_id for some in conn_ids for conn_id in some)
    return list(each_once)[: runs.MAX_CONNECTIONS]


async def _listing(
    api: AirflowApi,
    viewer: _Viewer,
    run: RunKey | None,
    answers: Mapping[Question, Answer],
    shown: set[str],
) -> Listing:
    ours = {question: answer for question, answer in answers.items() if answer.is_ours}
    found = [each for answer in ours.values() for each in answer.found]
    found.sort(key=lambda each: (each.created, each.invocation_id), reverse=True)
    newest = await run_in_threadpool(_for_viewer, found[:MAX_ROWS], viewer)
    instances = await runs.task_instances(api, {key_of(each) for each in newest})
    states: dict[str, Platform] = {}
    for question, answer in ours.items():
        if question.conn_id in shown or answer.found:
            states[question.conn_id] = _merged(states.get(question.conn_id), question.conn_id, answer)
    full = any(len(answer.found) >= question.limit for question, answer in ours.items())
    return Listing(
        run=run,
        rows=tuple(rows_of(newest, instances)),
        platforms=tuple(states[conn_id] for conn_id in sorted(states)),
        is_cut=full or len(found) > MAX_ROWS,
        is_live=any(answer.goes_on or answer.is_pending for answer in ours.values()),
    )


def _merged(known: Platform | None, conn_id: str, answer: Answer) -> Platform:
    before = known or Platform(conn_id, "", None, False)
    return Platform(
        conn_id,
        before.name or answer.platform,
        before.problem or answer.problem,
        before.is_pending or answer.is_pending,
    )


def _for_viewer(found: Iterable[Found], viewer: _Viewer) -> list[Found]:
    """Return an invocation without the fields that the viewer may not see."""
    may_read_logs = cache(viewer.may_read_logs)
    return [each if may_read_logs(each.asker.dag_id) else replace(each, detail=None) for each in found]


def _without_details(record: InvocationRecord) -> InvocationRecord:
    return record.model_copy(
        update={"status": [step.model_copy(update={"detail": None}) for step in record.status]}
    )


async def _has_ended(api: AirflowApi, run: RunKey) -> bool:
    has_ended = await runs.run_has_ended(api, run)
    if has_ended is None:
        raise HTTPException(404, "There is no such DAG run.")
    return has_ended


# -- answers

_HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}


def _unless_seen(listing: Listing, seen: str) -> Response:
    if seen == listing.version:
        return Response(status_code=204, headers=_HEADERS)
    return _html("listing.html", listing=listing)


def _html(template: str, status: int = 200, **values: Any) -> Response:
    nonce = secrets.token_urlsafe(16)
    policy = (
        f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; "
        "img-src data:; form-action 'none'; base-uri 'none'; frame-ancestors 'self'"
    )
    headers = {**_HEADERS, "Content-Security-Policy": policy, "X-Frame-Options": "SAMEORIGIN"}
    text = _TEMPLATES.get_template(template).render(nonce=nonce, now=datetime.now(UTC), **values)
    return HTMLResponse(text, status, headers)


def _message(status: int, text: str) -> Response:
    return _html("message.html", status, text=text)


async def _refused(_: Request, error: Exception) -> Response:
    refusal = cast(HTTPException, error)
    words = {401: "You aren't logged in to Airflow.", 403: "Airflow doesn't let you see this."}
    return _message(refusal.status_code, words.get(refusal.status_code, str(refusal.detail)))


async def _malformed(_: Request, __: Exception) -> Response:
    return _message(422, "This address lacks something, or has something that can't be.")


async def _not_found(_: Request, __: Exception) -> Response:
    return _message(404, "This DAG run has no such invocation.")


async def _out_of_reach(_: Request, error: Exception) -> Response:
    return _message(503, f"The platform {error}.")


def _shortened(value: object, limit: int = _SHORT) -> str:
    """A value of any kind as text, at most about `limit` characters of it, without secrets that are known."""
    shown = redact(value)
    text = shown if isinstance(shown, str) else json.dumps(shown, ensure_ascii=False, default=str)
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text)} characters)"


def _task_address(found: Any) -> str:
    """The task instance on Airflow's own pages, seen from this one's."""
    instance = f"../dags/{_part(found.dag_id)}/runs/{_part(found.run_id)}/tasks/{_part(found.task_id)}"
    if found.map_index >= 0:
        instance += f"/mapped/{found.map_index}"
    if found.region_id is None:
        return instance
    return f"{instance}?{urlencode({'region_id': found.region_id, 'region_index': found.region_index})}"


def _run_address(found: Any) -> str:
    return f"../dags/{_part(found.dag_id)}/runs/{_part(found.run_id)}"


_part: Callable[[str], str] = partial(quote, safe="")

_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_TEMPLATES.filters.update(
    shortened=_shortened, task_address=_task_address, run_address=_run_address, redacted=redact
)
_TEMPLATES.globals.update(LONG=_LONG, MAX_ROWS=MAX_ROWS)
