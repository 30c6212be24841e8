"""The page for people: invocations live in a browser, and the sessions that its cookie stands for."""

# No postponed annotations here: the routes' types are made inside functions.

import asyncio
import hashlib
import hmac
import secrets
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple
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
from ..db import Store
from ..timestamps import microseconds
from ..tokens import Tokens
from .access import GuardedRoute, open_to_all
from .errors import ApiError, NotFoundError, UnauthorizedError
from .schemas import Caller, Role

#: Invocations that the page lists: the newest.
MAX_ROWS = 200

#: Sessions of one token, and of all; one more ends the oldest.
MAX_SESSIONS_OF_TOKEN = 16
MAX_SESSIONS = 256

#: Seconds that a session lasts, however much it is used.
SESSION_AGE = 12 * 3600

#: The header that the page's script sends the second half of its session in.
SESSION_HEADER = "x-invocations-session"

_ELSEWHERE = frozenset({"cross-site", "same-site"})

InvocationId = Annotated[str, PathPart(max_length=64)]


class NewSession(NamedTuple):
    """The two halves of a session, which only the browser keeps."""

    session_id: str
    secret: str


@dataclass(frozen=True, slots=True)
class _Session:
    #: Monotonic seconds.
    ends: float
    token: str
    secret: bytes


class Sessions:
    """The sessions, in memory only. The browser holds two random halves, never the token.

    One half is a cookie. Browsers send it to every port of the host, so a program on another port may see and
    repeat it; alone it opens nothing. The other half is in the page's own storage, which knows ports, and is
    sent as a header by the page's script.

    A session stands for its token in GET requests and nowhere else, so that no page of somebody else's can
    have a browser change anything. What the token may do is looked up each time: a revoked one is worth
    nothing, session or not.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        #: By the hash of their id, oldest first.
        self._open: dict[bytes, _Session] = {}

    def open(self, token: str) -> NewSession:
        """Begin a session. The token must be known to be good."""
        new = NewSession(secrets.token_urlsafe(32), secrets.token_urlsafe(32))
        session = _Session(time.monotonic() + SESSION_AGE, token, _hashed(new.secret))
        with self._lock:
            theirs = [each for each, other in self._open.items() if other.token == token]
            for oldest in theirs[: max(0, len(theirs) - MAX_SESSIONS_OF_TOKEN + 1)]:
                del self._open[oldest]
            while len(self._open) >= MAX_SESSIONS:
                del self._open[next(iter(self._open))]
            self._open[_hashed(new.session_id)] = session
        return new

    def close(self, session_id: str) -> None:
        """End a session, if there is such a one."""
        with self._lock:
            self._open.pop(_hashed(session_id), None)

    def authorization(self, request: Request) -> str | None:
        """The Authorization that a request has: its own, or for a GET that of its session."""
        own = request.headers.get("authorization")
        if own is not None or request.method != "GET":
            return own
        session = self._of(request)
        given = _hashed(request.headers.get(SESSION_HEADER, ""))
        if session is None or not hmac.compare_digest(given, session.secret):
            return None
        return f"Bearer {session.token}"

    def token_of_cookie(self, request: Request) -> str | None:
        """The token of the session that a request's cookie names; that alone must not open anything."""
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
    """Cookies know hosts and no ports: two servers on one machine need names of their own."""
    return f"invocations_session_{request.url.port or request.url.scheme}"


def _hashed(session_id: str) -> bytes:
    return hashlib.sha256(session_id.encode()).digest()


def page_routes(store: Store, tokens: Tokens, sessions: Sessions) -> APIRouter:
    """`/`, `/actions/invocations/{id}` (the same, with one selected), their parts, login and logout."""
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
            # A browser opens an address without the script's half of the session: the script asks for more.
            return _PAGES.response("page.html", who=None, rows=[], record=None, invocation_id=invocation_id)
        selected, status = None, 200
        if invocation_id is not None:
            try:
                selected = store.invocations.get(invocation_id, who.org_id)
            except NotFoundError:
                status = 404
        return _PAGES.response(
            "page.html", status, who=who, rows=newest(who), record=selected, invocation_id=invocation_id
        )

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
        """Rows of the table: of these invocations, else the newest."""
        who = reader(request)
        if who is None:
            return _session_ended()
        found = newest(who) if ids is None else _named(store, ids.split(",")[:MAX_ROWS], who.org_id)
        return _PAGES.response("rows.html", rows=found, invocation_id=None)

    @router.get("/page/invocations/{invocation_id}")
    def facts(request: Request, invocation_id: InvocationId) -> Response:
        """What is known of one invocation, but for its log."""
        who = reader(request)
        if who is None:
            return _session_ended()
        try:
            record = store.invocations.get(invocation_id, who.org_id)
        except ApiError as error:
            return _PAGES.response("shared/message.html", error.status, text=error.message)
        return _PAGES.response("facts.html", record=record)

    @router.get("/page/who")
    def who_is_logged_in(request: Request) -> Response:
        """Who the page is shown to."""
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
            return _login_form(request, None, "Log in here, not from another page.", 403)
        form = await _form_of(request)
        invocation_id = form.get("invocation_id")
        token = form.get("token", "").strip()
        if await asyncio.to_thread(tokens.holder, token) is None:
            return _login_form(request, invocation_id, "That didn't work. Check the token, and try again.")
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
    """The fields of a form as browsers send it; of what isn't one, nothing."""
    try:
        fields = parse_qs((await request.body()).decode(), max_num_fields=8)
    except ValueError:
        return {}
    return {name: values[-1] for name, values in fields.items()}


def _session_ended() -> Response:
    return _PAGES.response("shared/message.html", 401, text="Your session has ended.")


def _login_form(
    request: Request, invocation_id: str | None, problem: str | None = None, status: int = 401
) -> Response:
    # A link on somebody else's page (Airflow's, say) doesn't bring the cookie along: it is SameSite=Strict.
    # The form asks once more by itself then, and that request is our own page's.
    again = request.headers.get("sec-fetch-site") == "cross-site" and request.url.query != "again"
    answer = _PAGES.response("login.html", status, invocation_id=invocation_id, problem=problem, again=again)
    if status == UnauthorizedError.status:
        answer.headers["WWW-Authenticate"] = "Bearer"
    return answer


_PAGES = PageRenderer(Path(__file__).with_name("templates"), form_action="self", frame_ancestors="none")
_PAGES.templates.filters.update(microseconds=microseconds)
_PAGES.templates.globals.update(
    MAX_ROWS=MAX_ROWS,
    TERMINAL=[status.value for status in InvocationStatus if status.is_terminal],
    task_instance_of=task_instance_of,
)
