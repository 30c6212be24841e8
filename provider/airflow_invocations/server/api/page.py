"""The page: live invocations in a browser, and the sessions of its viewers."""

# No postponed annotations here: the routes' types are made inside functions.

import asyncio
import hashlib
import hmac
import secrets
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple
from urllib.parse import parse_qs, quote

from fastapi import APIRouter, Depends, Query, Request
from fastapi import Path as PathPart
from fastapi.responses import RedirectResponse, Response

from ...models import (
    Comparator,
    Condition,
    ConditionGroup,
    ConditionOperator,
    InvocationRecord,
    InvocationStatus,
    QuerySpecification,
    task_instance_of,
)
from ...ui.shared.renderer import PageRenderer
from ..callers import Caller, Role
from ..db import ID_PREFIX, StatusEvent, Store
from ..errors import ApiError, ForbiddenError, NotFoundError, UnauthorizedError
from ..timestamps import microseconds, to_datetime
from ..tokens import Tokens
from .access import GuardedRoute, open_to_all

#: Invocations that the page lists: the newest.
MAX_ROWS = 200

#: Invocations of a tree that the page shows: the first in depth-first order.
MAX_TREE = 100

#: Sessions of one token, and of all; a further one ends the oldest.
MAX_SESSIONS_OF_TOKEN = 16
MAX_SESSIONS = 256

#: Seconds until a session ends, regardless of use.
SESSION_AGE = 12 * 3600

#: The header in which the page's script sends its half of the session.
SESSION_HEADER = "x-invocations-session"

_ELSEWHERE = frozenset({"cross-site", "same-site"})

InvocationId = Annotated[str, PathPart(max_length=64)]


class NewSession(NamedTuple):
    """The two halves of a session; only the browser stores them."""

    session_id: str
    secret: str


@dataclass(frozen=True, slots=True)
class _Session:
    #: Seconds of the monotonic clock.
    ends: float
    token: str
    secret: bytes


class Sessions:
    """Sessions of browsers, in memory only. A browser holds two random halves, never the token.

    One half is a cookie. Browsers send it to every port of the host, so a program on another port may see and
    repeat it; alone it grants nothing. The other half is in the page's own storage, which is separate for
    each port. The page's script sends it as a header, which no page of another origin can do.

    A session replaces the token in GET requests of the API, and in the page's own request to cancel. The
    token is looked up for each request, so revoking it ends its sessions.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        #: By the hash of the session's id, oldest first.
        self._open: dict[bytes, _Session] = {}

    def open(self, token: str) -> NewSession:
        """Start a session of a valid token."""
        new = NewSession(secrets.token_urlsafe(32), secrets.token_urlsafe(32))
        session = _Session(time.monotonic() + SESSION_AGE, token, _hashed(new.secret))
        with self._lock:
            of_token = [each for each, other in self._open.items() if other.token == token]
            for oldest in of_token[: max(0, len(of_token) - MAX_SESSIONS_OF_TOKEN + 1)]:
                del self._open[oldest]
            while len(self._open) >= MAX_SESSIONS:
                del self._open[next(iter(self._open))]
            self._open[_hashed(new.session_id)] = session
        return new

    def close(self, session_id: str) -> None:
        """End a session; do nothing if there is none."""
        with self._lock:
            self._open.pop(_hashed(session_id), None)

    def authorization(self, request: Request) -> str | None:
        """Return the Authorization of a request: its own, or for a GET that of its session."""
        own = request.headers.get("authorization")
        if own is not None or request.method != "GET":
            return own
        return self.session_authorization(request)

    def session_authorization(self, request: Request) -> str | None:
        """Return the Authorization of a request's session, for any method; None without both its halves."""
        session = self._of(request)
        given = _hashed(request.headers.get(SESSION_HEADER, ""))
        if session is None or not hmac.compare_digest(given, session.secret):
            return None
        return f"Bearer {session.token}"

    def token_of_cookie(self, request: Request) -> str | None:
        """Return the token of a request's cookie. The cookie alone must not grant access to data."""
        session = self._of(request)
        return None if session is None else session.token

    def _of(self, request: Request) -> _Session | None:
        session_id = request.cookies.get(cookie_name(request))
        if session_id is None:
            return None
        with self._lock:
            session = self._open.get(_hashed(session_id))
            if session is not None and session.ends <= time.monotonic():
                del self._open[_hashed(session_id)]
                return None
        return session


def cookie_name(request: Request) -> str:
    """Return the name of the cookie. Cookies are shared by all ports of a host, so it contains the port."""
    return f"invocations_session_{request.url.port or request.url.scheme}"


def _hashed(session_id: str) -> bytes:
    return hashlib.sha256(session_id.encode()).digest()


def page_routes(store: Store, tokens: Tokens, sessions: Sessions) -> APIRouter:
    """Return the routes of the page: the list, one invocation, their parts, cancel, login and logout."""
    router = APIRouter(include_in_schema=False, route_class=GuardedRoute, dependencies=[Depends(open_to_all)])

    def reader(request: Request) -> Caller | None:
        try:
            who = tokens.caller(sessions.authorization(request), request.headers)
        except UnauthorizedError:
            return None
        return who if who.role >= Role.Read else None

    def page(request: Request, invocation_id: str | None) -> Response:
        who = reader(request)
        if who is None:
            token = sessions.token_of_cookie(request)
            if token is None or tokens.holder(token) is None:
                return _login_form(request, invocation_id)
            # A browser opens a URL without the script's half of the session; the script then fetches the
            # data.
            return _PAGES.response("page.html", who=None, rows=[], record=None, invocation_id=invocation_id)
        selected, status = {"record": None}, 200
        if invocation_id is not None:
            try:
                selected = details(invocation_id, who)
            except NotFoundError:
                status = 404
        return _PAGES.response(
            "page.html", status, who=who, rows=newest(who), invocation_id=invocation_id, **selected
        )

    def details(invocation_id: str, who: Caller) -> dict[str, Any]:
        tree = store.invocations.tree(invocation_id, who.org_id)
        return {
            "record": tree[0],
            "invoked": depth_first(tree)[1 : MAX_TREE + 1],
            "invoked_count": len(tree) - 1,
            "attempts": _attempts(store.events.by_invocation(invocation_id, who.org_id)),
            "can_cancel": who.role >= Role.Invoke and any(not each.last_status.is_terminal for each in tree),
        }

    def newest(who: Caller) -> list[InvocationRecord]:
        return store.invocations.query(QuerySpecification(limit=MAX_ROWS), who.org_id).items

    @router.get("/")
    def list_only(request: Request) -> Response:
        return page(request, None)

    @router.get("/actions/invocations/{invocation_id}")
    def list_with_one_selected(request: Request, invocation_id: InvocationId) -> Response:
        return page(request, invocation_id)

    @router.get("/page/rows")
    def rows(request: Request, ids: Annotated[str | None, Query(max_length=8192)] = None) -> Response:
        """Return rows of the table: of these invocations, else of the newest."""
        who = reader(request)
        if who is None:
            return _session_ended()
        found = newest(who) if ids is None else _named(store, ids.split(",")[:MAX_ROWS], who.org_id)
        return _PAGES.response("rows.html", rows=found, invocation_id=None)

    @router.get("/page/invocations/{invocation_id}")
    def facts(request: Request, invocation_id: InvocationId) -> Response:
        """Return one invocation with its attempts and what it has invoked, without its log."""
        who = reader(request)
        if who is None:
            return _session_ended()
        try:
            return _PAGES.response("facts.html", **details(invocation_id, who))
        except ApiError as error:
            return _error(error)

    @router.post("/page/invocations/{invocation_id}/cancel")
    def cancel(request: Request, invocation_id: InvocationId) -> Response:
        """Cancel an invocation and all that it has invoked. Requires both halves of a session."""
        try:
            who = tokens.caller(sessions.session_authorization(request), request.headers)
            if request.headers.get("sec-fetch-site") in _ELSEWHERE or who.role < Role.Invoke:
                raise ForbiddenError("you may not cancel invocations")
            store.aborts.request_tree(invocation_id, f"cancelled by {who.user}", who.org_id)
            return _PAGES.response("facts.html", **details(invocation_id, who))
        except UnauthorizedError:
            return _session_ended()
        except ApiError as error:
            return _error(error)

    @router.get("/page/who")
    def who_is_logged_in(request: Request) -> Response:
        """Return the viewer's name and organisation."""
        who = reader(request)
        if who is None:
            return _session_ended()
        return _PAGES.response("who.html", who=who)

    @router.get("/login")
    def login_page(
        request: Request, invocation_id: Annotated[str | None, Query(max_length=64)] = None
    ) -> Response:
        return _login_form(request, invocation_id, status=200)

    @router.post("/login")
    async def log_in(request: Request) -> Response:
        if request.headers.get("sec-fetch-site") in _ELSEWHERE:
            return _login_form(request, None, "Log in on this page, not from another site.", 403)
        form = await _form_of(request)
        invocation_id = form.get("invocation_id")
        token = form.get("token", "").strip()
        if await asyncio.to_thread(tokens.holder, token) is None:
            return _login_form(request, invocation_id, "The token was rejected. Check it, and try again.")
        sessions.close(request.cookies.get(cookie_name(request), ""))
        place = f"/actions/invocations/{quote(invocation_id, safe='')}" if invocation_id else "/"
        session = sessions.open(token)
        answer = _PAGES.response("logged_in.html", secret=session.secret, place=place)
        answer.set_cookie(
            cookie_name(request),
            session.session_id,
            max_age=SESSION_AGE,
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
        return answer

    @router.post("/logout")
    def log_out(request: Request) -> Response:
        answer = RedirectResponse("/", 303)
        if request.headers.get("sec-fetch-site") not in _ELSEWHERE:
            sessions.close(request.cookies.get(cookie_name(request), ""))
            answer.delete_cookie(cookie_name(request), httponly=True, samesite="strict")
        return answer

    return router


def _named(store: Store, ids: list[str], org_id: str) -> list[InvocationRecord]:
    each = [Condition(field="invocation_id", comparator=Comparator.Equals, value=name) for name in ids]
    any_of_them = ConditionGroup(operator=ConditionOperator.Or, conditions=[*each])
    spec = QuerySpecification(condition=any_of_them, limit=MAX_ROWS)
    return store.invocations.query(spec, org_id).items


async def _form_of(request: Request) -> dict[str, str]:
    """Return the fields of a form; none if the body is not a form."""
    try:
        fields = parse_qs((await request.body()).decode(), max_num_fields=8)
    except ValueError:
        return {}
    return {name: values[-1] for name, values in fields.items()}


def depth_first(tree: list[InvocationRecord]) -> list[tuple[int, InvocationRecord]]:
    """Return a tree in depth-first order, each invocation with its depth; the first one is the root."""
    below: dict[str, list[InvocationRecord]] = {}
    for record in tree[1:]:
        below.setdefault(record.provenance.source.source_id, []).append(record)
    ordered: list[tuple[int, InvocationRecord]] = []
    stack = [(0, tree[0])]
    while stack:
        depth, record = stack.pop()
        ordered.append((depth, record))
        stack += [(depth + 1, each) for each in reversed(below.get(record.invocation_id, []))]
    return ordered


def _attempts(events: list[StatusEvent]) -> list[StatusEvent]:
    """Return the last event of each attempt, oldest first."""
    return list({event.attempt: event for event in events}.values())


def _error(error: ApiError) -> Response:
    return _PAGES.response("shared/message.html", error.status, text=error.message)


def _session_ended() -> Response:
    return _PAGES.response("shared/message.html", 401, text="Your session has ended.")


def _login_form(
    request: Request, invocation_id: str | None, problem: str | None = None, status: int = 401
) -> Response:
    # A link on another site, such as Airflow, doesn't send the cookie, which is SameSite=Strict. The form
    # then reloads itself once, and that request comes from this site.
    again = request.headers.get("sec-fetch-site") == "cross-site" and request.url.query != "again"
    answer = _PAGES.response("login.html", status, invocation_id=invocation_id, problem=problem, again=again)
    if status == UnauthorizedError.status:
        answer.headers["WWW-Authenticate"] = "Bearer"
    return answer


_PAGES = PageRenderer(Path(__file__).with_name("templates"), form_action="self", frame_ancestors="none")
_PAGES.templates.filters.update(microseconds=microseconds, to_datetime=to_datetime)
_PAGES.templates.globals.update(
    ID_PREFIX=ID_PREFIX,
    MAX_ROWS=MAX_ROWS,
    TERMINAL=[status.value for status in InvocationStatus if status.is_terminal],
    task_instance_of=task_instance_of,
)
