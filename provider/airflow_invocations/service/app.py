"""The HTTP routes of the invocation API, nothing else (facts: Endpoints)."""

# No postponed annotations here: the routes' types are made inside functions.

from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Path, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as StarletteHTTPException

from ..model import (
    ActionRecord,
    InvocationRecord,
    LogRecord,
    Page,
    QuerySpecification,
)
from .body_limit import BodyLimit
from .errors import ApiError, InvalidRequestError, NotFoundError, UnauthorizedError
from .logs import InvalidCursorError, LogFiles
from .requests import Caller, NamedAction, NewInvocation, StatusUpdate
from .settings import MAX_BODY
from .store import Store
from .tokens import Tokens

Json = dict[str, Any]
ActionName = Annotated[str, Path(max_length=256)]
InvocationId = Annotated[str, Path(max_length=64)]


def create_app(store: Store, logs: LogFiles, tokens: Tokens) -> FastAPI:
    """The API over a store and its log files; every route wants a bearer token."""
    app = FastAPI(
        title="Invocations: the local service",
        description="The invocation API on one machine, for development, tests and small set-ups.",
    )
    app.add_middleware(BodyLimit, limit=MAX_BODY)
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(InvalidCursorError, _cursor_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(StarletteHTTPException, _http_error)
    app.add_exception_handler(Exception, _internal_error)

    def caller(request: Request) -> Caller:
        return tokens.caller(request.headers.get("authorization"), request.headers)

    # Invocations first: `v1/actions/{name}` would take `invocations` for an action's name.
    app.include_router(_invocation_routes(store, logs, caller), prefix="/v1/actions/invocations")
    app.include_router(_action_routes(store, caller), prefix="/v1/actions")
    return app


def _action_routes(store: Store, caller: Any) -> APIRouter:
    router = APIRouter(tags=["actions"])
    Who = Annotated[Caller, Depends(caller)]  # noqa: N806

    @router.post("")
    def create(request: NamedAction, who: Who) -> Json:
        return _data(store.create_action(request, who.org_id, who.user))

    @router.post("/query")
    def query(spec: QuerySpecification, who: Who) -> Json:
        return _page(store.query_actions(spec, who.org_id))

    @router.get("/{name}")
    def get(name: ActionName, who: Who, digest: str | None = None) -> Json:
        return _data(store.get_action(name, who.org_id, digest))

    @router.post("/{name}/invoke")
    def invoke(name: ActionName, request: NewInvocation, who: Who, digest: str | None = None) -> Json:
        return _data(store.invoke(name, request, who.org_id, who.user, digest))

    return router


def _invocation_routes(store: Store, logs: LogFiles, caller: Any) -> APIRouter:
    router = APIRouter(tags=["invocations"])
    Who = Annotated[Caller, Depends(caller)]  # noqa: N806
    Place = Annotated[str | None, Query(max_length=64)]  # noqa: N806

    @router.post("/query")
    def query(spec: QuerySpecification, who: Who) -> Json:
        return _page(store.query_invocations(spec, who.org_id))

    @router.get("/{invocation_id}")
    def get(invocation_id: InvocationId, who: Who) -> Json:
        return _data(store.get_invocation(invocation_id, who.org_id))

    @router.post("/{invocation_id}/cancel")
    def cancel(invocation_id: InvocationId, who: Who) -> Json:
        store.request_abort(invocation_id, f"cancelled by {who.user}", who.org_id)
        return _data(store.get_invocation(invocation_id, who.org_id))

    @router.post("/{invocation_id}/status")
    def update_status(invocation_id: InvocationId, update: StatusUpdate, who: Who) -> Json:
        store.set_status(invocation_id, update.status, update.detail, f"user-{who.user}", who.org_id)
        return _data(store.get_invocation(invocation_id, who.org_id))

    @router.get("/{invocation_id}/logs")
    def get_logs(invocation_id: InvocationId, who: Who, page_token: Place = None) -> Json:
        store.get_invocation(invocation_id, who.org_id)
        page = logs.read(invocation_id, page_token)
        next_token = page.last_read if page.has_next else None
        return _page(Page[LogRecord](items=page.items, next_token=next_token))

    @router.get("/{invocation_id}/logs/stream")
    def stream_logs(invocation_id: InvocationId, who: Who, last_read: Place = None) -> Json:
        store.get_invocation(invocation_id, who.org_id)
        return {"data": logs.read(invocation_id, last_read).model_dump(mode="json")}

    return router


def _data(record: ActionRecord | InvocationRecord) -> Json:
    return {"data": record.model_dump(mode="json")}


def _page(page: Page[Any]) -> Json:
    return {"data": page.model_dump(mode="json")}


def _answer(error: ApiError) -> JSONResponse:
    headers = {"WWW-Authenticate": "Bearer"} if isinstance(error, UnauthorizedError) else None
    return JSONResponse(error.body(), status_code=error.status, headers=headers)


def _api_error(_: Request, error: Exception) -> JSONResponse:
    return _answer(error if isinstance(error, ApiError) else ApiError("internal error"))


def _cursor_error(_: Request, error: Exception) -> JSONResponse:
    return _answer(InvalidRequestError(str(error)))


def _validation_error(_: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, RequestValidationError):
        return _internal_error(_, error)
    problems = [f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors()]
    return _answer(InvalidRequestError("; ".join(problems)))


def _http_error(_: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, StarletteHTTPException):
        return _internal_error(_, error)
    if error.status_code == NotFoundError.status:
        return _answer(NotFoundError("there is no such endpoint in this service"))
    invalid = InvalidRequestError(str(error.detail))
    return JSONResponse(invalid.body(), status_code=error.status_code, headers=error.headers)


def _internal_error(_: Request, __: Exception) -> JSONResponse:
    # What went wrong is in the service's own log, with its traceback; a client gets no internals.
    return _answer(ApiError("the service failed to answer this request; its log says why"))
