"""HTTP routes of the invocation API; the watch, events and trees are extensions of this server."""

# No postponed annotations here: the routes' types are made inside functions.

import asyncio
import datetime
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Header, Path, Query, Request
from fastapi.responses import PlainTextResponse, Response, StreamingResponse
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool

from ...models import MAX_PAGE_SIZE, CancelAllRequest, InvocationStatus, LogRecord, Page
from ...models.base import problems_of
from ..callers import Caller, Role
from ..datasets import DatasetFiles
from ..db import StatusEvent, Store
from ..errors import InvalidRequestError, NotFoundError
from ..execution.logs import LogFiles
from ..execution.overrides import accept_overrides, require_as_registered
from ..metrics import Metrics
from ..query.roboql_queries import RoboqlQueries
from ..secrets import Secrets
from ..settings import MAX_BODY, ServerSettings
from ..signed_urls import SignedUrls
from ..storage_credentials import StorageCredentials
from ..timestamps import microseconds, now, timestamp
from ..tokens import Tokens
from ..uploads import Uploads
from ..watch import Watch
from ..watch_hub import WatchHub
from .access import (
    Guard,
    GuardedRoute,
    OwnCheck,
    open_to_all,
    own_action,
    own_identity,
    own_invocation,
)
from .dataset_routes import dataset_routes, file_routes, org_record, org_routes, query_routes
from .directory_routes import directory_routes
from .host_check import HostCheck
from .page import Sessions, depth_first, page_routes
from .request_body import BodyLimit
from .responses import add_error_handlers, data_response, json_response, page_response
from .s3_routes import s3_routes
from .schemas import (
    MAX_IDS,
    ChangeWatchBody,
    CreateActionBody,
    InvokeBody,
    OpenWatchBody,
    QueryBody,
    ReportStatusBody,
    SetAccessibilityBody,
    SetContainerBody,
    SetLogsLocationBody,
    SetStateBody,
    UpdateActionBody,
)
from .secret_routes import secret_routes, secrets_manager_routes
from .sse import server_sent_events
from .upload_routes import credential_routes, upload_routes

#: Invocations of a tree in one response: the first in depth-first order.
MAX_TREE = 1000

Json = dict[str, Any]
ActionName = Annotated[str, Path(max_length=256)]
InvocationId = Annotated[str, Path(max_length=64)]
WatchId = Annotated[str, Path(max_length=64)]
UserId = Annotated[str, Path(max_length=256)]
Allows = Callable[..., Any]


def create_app(
    store: Store,
    datasets: DatasetFiles,
    logs: LogFiles,
    tokens: Tokens,
    urls: SignedUrls,
    uploads: Uploads,
    credentials: StorageCredentials,
    secrets: Secrets,
    watches: WatchHub,
    metrics: Metrics,
    settings: ServerSettings,
) -> FastAPI:
    """Return the application: the API and the page.

    Every route of the API requires a bearer token, except the probes, the content of files at
    signed URLs, and requests that are signed with temporary credentials.
    """
    app = FastAPI(
        title="Invocations: the local server",
        description="The invocation API on one machine, for development, tests and small set-ups.",
        # FastAPI's pages of documentation load a script of another host into the origin of the page's
        # sessions.
        docs_url=None,
        redoc_url=None,
    )
    app.add_middleware(BodyLimit, limit=MAX_BODY)
    app.add_middleware(HostCheck, names=(settings.host, *settings.allowed_hosts))
    add_error_handlers(app)

    sessions = Sessions()

    async def authenticate(request: Request) -> Caller:
        authorization = sessions.authorization(request)
        if tokens.needs_look_up(authorization):
            return await run_in_threadpool(tokens.caller, authorization, request.headers)
        return tokens.caller(authorization, request.headers)

    def allows(role: Role, own: OwnCheck | None = None) -> Any:
        """Return a dependency that returns the caller, or rejects the request; see `Guard`."""
        return Depends(Guard(authenticate, role, own))

    # Invocations first: `v1/actions/{name}` would match `invocations` as an action's name.
    app.include_router(_watch_routes(watches, allows), prefix="/v1/actions/invocations/watch")
    app.include_router(_invocation_routes(store, logs, settings, allows), prefix="/v1/actions/invocations")
    app.include_router(_action_routes(store, settings, allows), prefix="/v1/actions")
    app.include_router(dataset_routes(store, datasets, allows), prefix="/v1/datasets")
    app.include_router(credential_routes(store, credentials, allows))
    app.include_router(directory_routes(datasets, allows))
    app.include_router(upload_routes(uploads, credentials, allows), prefix="/v1/files/upload")
    app.include_router(file_routes(datasets, urls, allows), prefix="/v1/files")
    app.include_router(query_routes(RoboqlQueries(datasets), allows), prefix="/v1/query")
    app.include_router(org_routes(allows), prefix="/v1/orgs")
    app.include_router(_user_routes(allows), prefix="/v1/users")
    app.include_router(_probe_routes(store, metrics))
    app.include_router(page_routes(store, tokens, sessions))
    app.include_router(secret_routes(secrets, credentials, allows), prefix="/v1/secrets")
    app.include_router(secrets_manager_routes(secrets, credentials))
    app.include_router(s3_routes(datasets, uploads, credentials))
    return app


def _action_routes(store: Store, settings: ServerSettings, allows: Allows) -> APIRouter:
    router = APIRouter(tags=["actions"], route_class=GuardedRoute)
    Reader = Annotated[Caller, allows(Role.Read)]  # noqa: N806
    OwnReader = Annotated[Caller, allows(Role.Read, own_action)]  # noqa: N806
    Invoker = Annotated[Caller, allows(Role.Invoke)]  # noqa: N806
    Admin = Annotated[Caller, allows(Role.Admin)]  # noqa: N806

    @router.post("")
    def create(request: CreateActionBody, who: Admin) -> Response:
        return data_response(store.actions.create(request, who.org_id, who.user))

    @router.post("/query")
    def query(spec: QueryBody, who: Reader) -> Response:
        return data_response(store.actions.query(spec, who.org_id))

    @router.post("/query/actionhub")
    def query_hub(spec: QueryBody, _: Reader) -> Response:
        return data_response(store.actions.query_hub(spec))

    @router.get("/{name}")
    def get(name: ActionName, who: OwnReader, digest: str | None = None) -> Response:
        return data_response(store.actions.get(name, who.org_id, digest))

    @router.put("/{name}")
    def update(name: ActionName, request: UpdateActionBody, who: Admin) -> Response:
        return data_response(store.actions.update(name, request, who.org_id, who.user))

    @router.put("/{name}/accessibility")
    def set_accessibility(name: ActionName, request: SetAccessibilityBody, who: Admin) -> Response:
        return data_response(store.actions.set_accessibility(name, request, who.org_id))

    @router.delete("/{name}", status_code=204)
    def delete(name: ActionName, who: Admin) -> Response:
        store.actions.delete(name, who.org_id)
        return Response(status_code=204)

    @router.post("/{name}/invoke")
    def invoke(name: ActionName, request: InvokeBody, who: Invoker, digest: str | None = None) -> Response:
        may_override = who.role >= Role.Admin or settings.allow_overrides
        check = accept_overrides if may_override else require_as_registered
        return data_response(store.invocations.create(name, request, who.org_id, who.user, digest, check))

    return router


def _invocation_routes(store: Store, logs: LogFiles, settings: ServerSettings, allows: Allows) -> APIRouter:
    router = APIRouter(tags=["invocations"], route_class=GuardedRoute)
    Reader = Annotated[Caller, allows(Role.Read)]  # noqa: N806
    OwnReader = Annotated[Caller, allows(Role.Read, own_invocation)]  # noqa: N806
    OwnInvoker = Annotated[Caller, allows(Role.Invoke, own_invocation)]  # noqa: N806
    Admin = Annotated[Caller, allows(Role.Admin)]  # noqa: N806
    Reporter = Annotated[Caller, allows(Role.Admin, own_invocation)]  # noqa: N806
    LogCursor = Annotated[str | None, Query(max_length=64)]  # noqa: N806

    @router.post("/query")
    def query(spec: QueryBody, who: Reader) -> Response:
        return page_response(*store.invocations.query_json(spec, who.org_id))

    @router.post("/cancel/all")
    def cancel_all(who: Admin, request: CancelAllRequest | None = None) -> Response:
        before = request.created_before if request else None
        reason = f"cancelled with all others by {who.user}"
        return data_response(
            store.aborts.request_all(reason, who.org_id, None if before is None else microseconds(before))
        )

    @router.get("/org-stats")
    def stats(who: Reader, start_time: datetime.datetime, end_time: datetime.datetime) -> Response:
        counted = store.invocations.stats(who.org_id, microseconds(start_time), microseconds(end_time))
        return data_response(Page(items=counted))

    @router.get("/roots")
    def list_roots(
        who: Reader,
        since: Annotated[
            datetime.datetime | None, Query(description="Created at this time or later.")
        ] = None,
        until: Annotated[datetime.datetime | None, Query(description="Created before this time.")] = None,
        limit: Annotated[int, Query(ge=1, le=MAX_PAGE_SIZE)] = 100,
    ) -> Response:
        """Return the newest invocations that no other one has invoked."""
        begin = 0 if since is None else microseconds(since)
        end = now() + 1 if until is None else microseconds(until)
        return page_response(store.invocations.roots_json(who.org_id, begin, end, limit), None)

    @router.get("/{invocation_id}")
    def get(invocation_id: InvocationId, who: OwnReader) -> Response:
        return data_response(store.invocations.get(invocation_id, who.org_id))

    @router.get("/{invocation_id}/events")
    def list_events(
        invocation_id: InvocationId,
        who: OwnReader,
        attempt: Annotated[int | None, Query(ge=1, description="Only of this attempt.")] = None,
        after: Annotated[int, Query(ge=0, description="Only after the event of this number.")] = 0,
    ) -> Response:
        """Return the status events of an invocation by attempt, oldest first."""
        if attempt is None:
            events = store.events.by_invocation(invocation_id, who.org_id)
            events = [event for event in events if event.number > after]
        else:
            events = store.events.by_attempt(invocation_id, who.org_id, attempt, after)
        return json_response({"items": [_event_json(event) for event in events]})

    @router.get("/{invocation_id}/tree")
    def get_tree(invocation_id: InvocationId, who: Reader) -> Response:
        """Return an invocation and all that it has invoked, depth first, each with its depth."""
        tree = depth_first(store.invocations.tree(invocation_id, who.org_id))[:MAX_TREE]
        items = [{"depth": depth, "invocation": record.model_dump(mode="json")} for depth, record in tree]
        return json_response({"items": items})

    @router.post("/{invocation_id}/cancel")
    def cancel(
        invocation_id: InvocationId,
        who: OwnInvoker,
        cascade: Annotated[bool, Query(description="Also cancel all that it has invoked.")] = False,
    ) -> Response:
        reason = f"cancelled by {who.user}"
        if cascade:
            store.aborts.request_tree(invocation_id, reason, who.org_id)
        else:
            store.aborts.request(invocation_id, reason, who.org_id)
        return data_response(store.invocations.get(invocation_id, who.org_id))

    @router.post("/{invocation_id}/status")
    def update_status(invocation_id: InvocationId, update: ReportStatusBody, who: Reporter) -> Response:
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
        return data_response(store.invocations.get(invocation_id, who.org_id))

    @router.get("/{invocation_id}/logs")
    def get_logs(invocation_id: InvocationId, who: OwnReader, page_token: LogCursor = None) -> Response:
        page = logs.read(store.invocations.check(invocation_id, who.org_id), page_token)
        next_token = page.last_read if page.has_next else None
        return data_response(Page[LogRecord](items=page.items, next_token=next_token))

    @router.get("/{invocation_id}/logs/stream")
    def stream_logs(invocation_id: InvocationId, who: OwnReader, last_read: LogCursor = None) -> Response:
        return data_response(logs.read(store.invocations.check(invocation_id, who.org_id), last_read))

    @router.put("/{invocation_id}/logs")
    def set_logs_location(invocation_id: InvocationId, location: SetLogsLocationBody, who: Admin) -> Response:
        return data_response(store.invocations.set_logs_location(invocation_id, location, who.org_id))

    @router.put("/{invocation_id}/container-info")
    def set_container_info(invocation_id: InvocationId, info: SetContainerBody, who: Admin) -> Response:
        return data_response(store.invocations.set_image_digest(invocation_id, info.image_digest, who.org_id))

    @router.get("/{invocation_id}/state")
    def get_state(invocation_id: InvocationId, who: OwnReader) -> Json:
        return {"data": {"state": store.states.get(invocation_id, who.org_id)}}

    @router.put("/{invocation_id}/state")
    def set_state(invocation_id: InvocationId, update: SetStateBody, who: OwnInvoker) -> Json:
        store.states.set(invocation_id, update.state, who.org_id)
        return {"data": {"state": update.state}}

    return router


def _event_json(event: StatusEvent) -> Json:
    return {
        "number": event.number,
        "attempt": event.attempt,
        "status": event.status.value,
        "detail": event.detail,
        "exit_code": event.exit_code,
        "timestamp": timestamp(event.timestamp),
    }


def _watch_routes(watches: WatchHub, allows: Allows) -> APIRouter:
    router = APIRouter(tags=["watch"], route_class=GuardedRoute)
    Reader = Annotated[Caller, allows(Role.Read)]  # noqa: N806

    def stream(request: OpenWatchBody, who: Caller, last_event_id: int | None) -> StreamingResponse:
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
        root: Annotated[
            str | None, Query(max_length=64, description="Only the tree of this root invocation.")
        ] = None,
        logs: Annotated[bool, Query(description="Also log lines of the invocations in `ids`.")] = False,
        last_event_id: LastEventId = None,
    ) -> StreamingResponse:
        """Send changes of status as server-sent events: of these ids, else of the whole organisation."""
        named = None if ids is None else [part for part in ids.split(",") if part]
        cursors = dict.fromkeys(named or ()) if logs else {}
        try:
            request = OpenWatchBody(ids=named, action=action, root=root, logs=cursors)
        except ValidationError as error:
            raise InvalidRequestError(problems_of(error.errors())) from None
        return stream(request, who, last_event_id)

    @router.post("")
    async def open_by_body(
        request: OpenWatchBody, who: Reader, last_event_id: LastEventId = None
    ) -> StreamingResponse:
        """Do the same for more ids than a URL can hold, and from given cursors of logs."""
        return stream(request, who, last_event_id)

    @router.patch("/{watch_id}")
    async def change(watch_id: WatchId, change: ChangeWatchBody, who: Reader) -> Json:
        """Add invocations to an open watch, and remove others."""
        count = watches.shrink(watch_id, who.org_id, change.remove)
        if change.add or change.logs:
            if count + len(change.add) > MAX_IDS:
                raise InvalidRequestError(f"a watch names at most {MAX_IDS} invocations")
            count = await watches.extend(watch_id, who.org_id, change.add, change.logs)
        return {"data": {"watching": count}}

    return router


def _user_routes(allows: Allows) -> APIRouter:
    """Return the routes of the caller's user; a user is a token's name."""
    router = APIRouter(tags=["users"], route_class=GuardedRoute)
    Reader = Annotated[Caller, allows(Role.Read, own_identity)]  # noqa: N806

    @router.get("")
    def caller(who: Reader) -> Json:
        return {"data": _user(who)}

    @router.get("/whoami")
    def identity(who: Reader) -> Json:
        """Return the user of the token, its organisation and its role."""
        role = who.role.name.lower()
        return {"data": {**_user(who), "org_id": who.org_id, "role": role}}

    @router.get("/id/{user_id}")
    def get(user_id: UserId, who: Reader) -> Json:
        _require_self(user_id, who)
        return {"data": _user(who)}

    @router.get("/id/{user_id}/orgs")
    def orgs(user_id: UserId, who: Reader) -> Response:
        _require_self(user_id, who)
        return json_response([org_record(who.org_id).model_dump(mode="json")])

    return router


def _user(who: Caller) -> Json:
    return {"user_id": who.user, "name": who.user, "is_service_user": who.own is not None}


def _require_self(user_id: str, who: Caller) -> None:
    """Raise NotFoundError for another user; a token may look up only its own."""
    if user_id != who.user:
        raise NotFoundError(f"no user {user_id!r}; this token can look up only its own, {who.user!r}")


def _probe_routes(store: Store, metrics: Metrics) -> APIRouter:
    router = APIRouter(tags=["probes"], route_class=GuardedRoute, dependencies=[Depends(open_to_all)])

    @router.get("/healthz")
    async def healthz() -> PlainTextResponse:
        """Respond if the process is alive."""
        return PlainTextResponse("ok\n")

    @router.get("/readyz")
    def readyz() -> PlainTextResponse:
        """Respond if the database can be read."""
        store.events.last_number()
        return PlainTextResponse("ok\n")

    @router.get("/metrics")
    async def read_metrics() -> Response:
        """Return the metrics for Prometheus."""
        text = await asyncio.to_thread(metrics.text)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    return router
