"""The HTTP routes of the invocation API, nothing else; the watch is an extension of this server."""

# No postponed annotations here: the routes' types are made inside functions.

import asyncio
import datetime
import logging
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Header, Path, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from pydantic import ValidationError
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException as StarletteHTTPException

from ...models import CancelAllRequest, InvocationStatus, LogRecord, Page
from ...models.base import problems_of
from ..datasets import DatasetFiles
from ..db import Store
from ..execution.logs import InvalidCursorError, LogFiles
from ..execution.overrides import accept_overrides, require_as_registered
from ..metrics import Metrics
from ..outages import is_outage
from ..query.roboql_queries import RoboqlQueries
from ..settings import MAX_BODY, ServerSettings
from ..signed_urls import SignedUrls
from ..timestamps import microseconds
from ..tokens import Tokens
from ..watch_hub import Watch, Watches
from .access import (
    Guard,
    GuardedRoute,
    OwnCheck,
    open_to_all,
    own_action,
    own_identity,
    own_invocation,
)
from .body_limit import BodyLimit
from .dataset_routes import dataset_routes, file_routes, org_routes, query_routes
from .errors import (
    ApiError,
    InvalidRequestError,
    NotFoundError,
    UnauthorizedError,
    UnavailableError,
)
from .host_check import HostCheck
from .page import Sessions, page_routes
from .responses import answered, answered_page
from .schemas import (
    MAX_IDS,
    Caller,
    ChangedAccessibility,
    ChangedAction,
    NamedAction,
    NewInvocation,
    QueryBody,
    ReportedContainer,
    ReportedLogsLocation,
    ReportedStatus,
    Role,
    StateUpdate,
    WatchChange,
    WatchRequest,
)
from .sse import server_sent_events

#: Seconds after which a client may ask again during an outage.
RETRY_AFTER = 2

Json = dict[str, Any]
ActionName = Annotated[str, Path(max_length=256)]
InvocationId = Annotated[str, Path(max_length=64)]
WatchId = Annotated[str, Path(max_length=64)]
Allows = Callable[..., Any]

_log = logging.getLogger(__name__)


def create_app(
    store: Store,
    datasets: DatasetFiles,
    logs: LogFiles,
    tokens: Tokens,
    urls: SignedUrls,
    watches: Watches,
    metrics: Metrics,
    settings: ServerSettings,
) -> FastAPI:
    """The API over a store, its datasets and log files.

    Every route wants a bearer token but the probes, and the content of files, whose addresses are signed.
    """
    app = FastAPI(
        title="Invocations: the local server",
        description="The invocation API on one machine, for development, tests and small set-ups.",
        # FastAPI's docs pages load a script from another host into the origin of the page's sessions.
        docs_url=None,
        redoc_url=None,
    )
    app.add_middleware(BodyLimit, limit=MAX_BODY)
    app.add_middleware(HostCheck, names=(settings.host, *settings.allowed_hosts))
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(InvalidCursorError, _cursor_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(StarletteHTTPException, _http_error)
    for outage in (OSError, MemoryError, OperationalError, PoolTimeoutError):
        app.add_exception_handler(outage, _outage)
    app.add_exception_handler(Exception, _internal_error)

    sessions = Sessions()

    async def authenticate(request: Request) -> Caller:
        authorization = sessions.authorization(request)
        if tokens.needs_look_up(authorization):
            return await run_in_threadpool(tokens.caller, authorization, request.headers)
        return tokens.caller(authorization, request.headers)

    def allows(role: Role, own: OwnCheck | None = None) -> Any:
        """A dependency: the caller, if its token has the role, or is an action's and `own` says so."""
        return Depends(Guard(authenticate, role, own))

    # Invocations first: `v1/actions/{name}` would take `invocations` for an action's name.
    app.include_router(_watch_routes(watches, allows), prefix="/v1/actions/invocations/watch")
    app.include_router(_invocation_routes(store, logs, settings, allows), prefix="/v1/actions/invocations")
    app.include_router(_action_routes(store, settings, allows), prefix="/v1/actions")
    app.include_router(dataset_routes(store, datasets, allows), prefix="/v1/datasets")
    app.include_router(file_routes(datasets, urls, allows), prefix="/v1/files")
    app.include_router(query_routes(RoboqlQueries(store, datasets), allows), prefix="/v1/query")
    app.include_router(org_routes(allows), prefix="/v1/orgs")
    app.include_router(_user_routes(allows), prefix="/v1/users")
    app.include_router(_probe_routes(store, metrics))
    app.include_router(page_routes(store, tokens, sessions))
    return app


def _action_routes(store: Store, settings: ServerSettings, allows: Allows) -> APIRouter:
    router = APIRouter(tags=["actions"], route_class=GuardedRoute)
    Reader = Annotated[Caller, allows(Role.Read)]  # noqa: N806
    OwnReader = Annotated[Caller, allows(Role.Read, own_action)]  # noqa: N806
    Invoker = Annotated[Caller, allows(Role.Invoke)]  # noqa: N806
    Admin = Annotated[Caller, allows(Role.Admin)]  # noqa: N806

    @router.post("")
    def create(request: NamedAction, who: Admin) -> Response:
        return answered(store.actions.create(request, who.org_id, who.user))

    @router.post("/query")
    def query(spec: QueryBody, who: Reader) -> Response:
        return answered(store.actions.query(spec, who.org_id))

    @router.post("/query/actionhub")
    def query_hub(spec: QueryBody, _: Reader) -> Response:
        return answered(store.actions.query_hub(spec))

    @router.get("/{name}")
    def get(name: ActionName, who: OwnReader, digest: str | None = None) -> Response:
        return answered(store.actions.get(name, who.org_id, digest))

    @router.put("/{name}")
    def update(name: ActionName, request: ChangedAction, who: Admin) -> Response:
        return answered(store.actions.update(name, request, who.org_id, who.user))

    @router.put("/{name}/accessibility")
    def set_accessibility(name: ActionName, request: ChangedAccessibility, who: Admin) -> Response:
        return answered(store.actions.set_accessibility(name, request, who.org_id))

    @router.delete("/{name}", status_code=204)
    def delete(name: ActionName, who: Admin) -> Response:
        store.actions.delete(name, who.org_id)
        return Response(status_code=204)

    @router.post("/{name}/invoke")
    def invoke(name: ActionName, request: NewInvocation, who: Invoker, digest: str | None = None) -> Response:
        as_asked = who.role >= Role.Admin or settings.allow_overrides
        check = accept_overrides if as_asked else require_as_registered
        return answered(store.invocations.create(name, request, who.org_id, who.user, digest, check))

    return router


def _invocation_routes(store: Store, logs: LogFiles, settings: ServerSettings, allows: Allows) -> APIRouter:
    router = APIRouter(tags=["invocations"], route_class=GuardedRoute)
    Reader = Annotated[Caller, allows(Role.Read)]  # noqa: N806
    OwnReader = Annotated[Caller, allows(Role.Read, own_invocation)]  # noqa: N806
    OwnInvoker = Annotated[Caller, allows(Role.Invoke, own_invocation)]  # noqa: N806
    Admin = Annotated[Caller, allows(Role.Admin)]  # noqa: N806
    Reporter = Annotated[Caller, allows(Role.Admin, own_invocation)]  # noqa: N806
    Place = Annotated[str | None, Query(max_length=64)]  # noqa: N806

    @router.post("/query")
    def query(spec: QueryBody, who: Reader) -> Response:
        return answered_page(*store.invocations.query_json(spec, who.org_id))

    @router.post("/cancel/all")
    def cancel_all(who: Admin, request: CancelAllRequest | None = None) -> Response:
        before = request.created_before if request else None
        reason = f"cancelled with all others by {who.user}"
        return answered(
            store.aborts.request_all(reason, who.org_id, None if before is None else microseconds(before))
        )

    @router.get("/org-stats")
    def stats(who: Reader, start_time: datetime.datetime, end_time: datetime.datetime) -> Response:
        counted = store.invocations.stats(who.org_id, microseconds(start_time), microseconds(end_time))
        return answered(Page(items=counted))

    @router.get("/{invocation_id}")
    def get(invocation_id: InvocationId, who: OwnReader) -> Response:
        return answered(store.invocations.get(invocation_id, who.org_id))

    @router.post("/{invocation_id}/cancel")
    def cancel(invocation_id: InvocationId, who: OwnInvoker) -> Response:
        store.aborts.request(invocation_id, f"cancelled by {who.user}", who.org_id)
        return answered(store.invocations.get(invocation_id, who.org_id))

    @router.post("/{invocation_id}/status")
    def update_status(invocation_id: InvocationId, update: ReportedStatus, who: Reporter) -> Response:
        # A status report must not end an invocation that waits for this server's runner.
        unless = {InvocationStatus.Queued} if update.status is InvocationStatus.Completed else set()
        store.invocations.set_status(
            invocation_id,
            update.status,
            update.detail,
            f"user-{who.user}",
            who.org_id,
            unless=unless if settings.slots else (),
        )
        return answered(store.invocations.get(invocation_id, who.org_id))

    @router.get("/{invocation_id}/logs")
    def get_logs(invocation_id: InvocationId, who: OwnReader, page_token: Place = None) -> Response:
        page = logs.read(store.invocations.check(invocation_id, who.org_id), page_token)
        next_token = page.last_read if page.has_next else None
        return answered(Page[LogRecord](items=page.items, next_token=next_token))

    @router.get("/{invocation_id}/logs/stream")
    def stream_logs(invocation_id: InvocationId, who: OwnReader, last_read: Place = None) -> Response:
        return answered(logs.read(store.invocations.check(invocation_id, who.org_id), last_read))

    @router.put("/{invocation_id}/logs")
    def set_logs_location(
        invocation_id: InvocationId, location: ReportedLogsLocation, who: Admin
    ) -> Response:
        return answered(store.invocations.set_logs_location(invocation_id, location, who.org_id))

    @router.put("/{invocation_id}/container-info")
    def set_container_info(invocation_id: InvocationId, info: ReportedContainer, who: Admin) -> Response:
        return answered(store.invocations.set_image_digest(invocation_id, info.image_digest, who.org_id))

    @router.get("/{invocation_id}/state")
    def get_state(invocation_id: InvocationId, who: OwnReader) -> Json:
        return {"data": {"state": store.states.get(invocation_id, who.org_id)}}

    @router.put("/{invocation_id}/state")
    def set_state(invocation_id: InvocationId, update: StateUpdate, who: OwnInvoker) -> Json:
        store.states.set(invocation_id, update.state, who.org_id)
        return {"data": {"state": update.state}}

    return router


def _watch_routes(watches: Watches, allows: Allows) -> APIRouter:
    router = APIRouter(tags=["watch"], route_class=GuardedRoute)
    Reader = Annotated[Caller, allows(Role.Read)]  # noqa: N806

    def stream(request: WatchRequest, who: Caller, last_event_id: int | None) -> StreamingResponse:
        watch = Watch(
            org_id=who.org_id,
            token_id=who.token_id,
            action=request.action,
            ids=None if request.ids is None else set(request.ids),
            root=request.root,
            roots_only=request.roots_only,
            statuses=None if request.statuses is None else frozenset(request.statuses),
            states=request.states,
            cursors=dict(request.logs),
        )
        watches.check_room(watch)
        since = last_event_id if last_event_id is not None else request.since
        return StreamingResponse(
            server_sent_events(watches.stream(watch, since)),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )

    LastEventId = Annotated[int | None, Header(ge=0, le=2**62)]  # noqa: N806

    @router.get("")
    async def open_by_query(
        who: Reader,
        ids: Annotated[
            str | None, Query(max_length=65_536, description="Invocation ids, separated by commas.")
        ] = None,
        action: Annotated[
            str | None, Query(max_length=256, description="Only this action's invocations.")
        ] = None,
        logs: Annotated[bool, Query(description="Log lines too, of the invocations named.")] = False,
        last_event_id: LastEventId = None,
    ) -> StreamingResponse:
        """Changes of status as server-sent events: of the ids, else of the whole organisation."""
        named = None if ids is None else [part for part in ids.split(",") if part]
        try:
            request = WatchRequest(ids=named, action=action, logs=dict.fromkeys(named or ()) if logs else {})
        except ValidationError as error:
            raise InvalidRequestError(problems_of(error.errors())) from None
        return stream(request, who, last_event_id)

    @router.post("")
    async def open_by_body(
        request: WatchRequest, who: Reader, last_event_id: LastEventId = None
    ) -> StreamingResponse:
        """The same for more ids than an address can hold, and with cursors for logs."""
        return stream(request, who, last_event_id)

    @router.patch("/{watch_id}")
    async def change(watch_id: WatchId, change: WatchChange, who: Reader) -> Json:
        """Watch more invocations, or fewer, on a stream that is open."""
        count = watches.shrink(watch_id, who.org_id, change.remove)
        if change.add or change.logs:
            if count + len(change.add) > MAX_IDS:
                raise InvalidRequestError(f"a watch names at most {MAX_IDS} invocations")
            count = await watches.extend(watch_id, who.org_id, change.add, change.logs)
        return {"data": {"watching": count}}

    return router


def _user_routes(allows: Allows) -> APIRouter:
    """Who asks, as far as a server of one machine knows people: by name."""
    router = APIRouter(tags=["users"], route_class=GuardedRoute)
    Reader = Annotated[Caller, allows(Role.Read, own_identity)]  # noqa: N806

    @router.get("")
    def caller(who: Reader) -> Json:
        return {"data": {"user_id": who.user, "name": who.user}}

    return router


def _probe_routes(store: Store, metrics: Metrics) -> APIRouter:
    router = APIRouter(tags=["probes"], route_class=GuardedRoute, dependencies=[Depends(open_to_all)])

    @router.get("/healthz")
    async def healthz() -> PlainTextResponse:
        """Whether the process answers at all."""
        return PlainTextResponse("ok\n")

    @router.get("/readyz")
    def readyz() -> PlainTextResponse:
        """Whether it can answer requests: the database can be read."""
        store.events.last_number()
        return PlainTextResponse("ok\n")

    @router.get("/metrics")
    async def read_metrics() -> Response:
        """The numbers, for Prometheus."""
        text = await asyncio.to_thread(metrics.text)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    return router


def _answer(error: ApiError) -> JSONResponse:
    headers = {"WWW-Authenticate": "Bearer"} if isinstance(error, UnauthorizedError) else None
    if isinstance(error, UnavailableError):
        headers = {"Retry-After": str(RETRY_AFTER)}
    return JSONResponse(error.body(), status_code=error.status, headers=headers)


def _api_error(_: Request, error: Exception) -> JSONResponse:
    return _answer(error if isinstance(error, ApiError) else ApiError("internal error"))


def _cursor_error(_: Request, error: Exception) -> JSONResponse:
    return _answer(InvalidRequestError(str(error)))


def _validation_error(_: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, RequestValidationError):
        return _internal_error(_, error)
    return _answer(InvalidRequestError(problems_of(error.errors())))


def _http_error(_: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, StarletteHTTPException):
        return _internal_error(_, error)
    if error.status_code == NotFoundError.status:
        return _answer(NotFoundError("there is no such endpoint in this server"))
    invalid = InvalidRequestError(str(error.detail))
    return JSONResponse(invalid.body(), status_code=error.status_code, headers=error.headers)


def _outage(request: Request, error: Exception) -> JSONResponse:
    if not is_outage(error):
        raise error
    _log.warning("cannot answer %s %s: %s", request.method, request.url.path, error)
    return _answer(UnavailableError("the server is temporarily unavailable; its own log has the reason"))


def _internal_error(_: Request, __: Exception) -> JSONResponse:
    # What went wrong is in the server's own log, with its traceback; a client gets no internals.
    return _answer(ApiError("the server failed to answer this request; its log says why"))
