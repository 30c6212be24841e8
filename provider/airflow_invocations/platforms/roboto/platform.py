"""The invocation API over HTTP: Roboto, and the local server, which speaks it too."""

from __future__ import annotations

import asyncio
import datetime
import re
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar
from urllib.parse import quote

import httpx
import pydantic

from ...invocation_api import (
    DEFAULT_TIMEOUT,
    ApiError,
    ApiRequest,
    FailureKind,
    Repeatable,
    client_headers,
    error_of,
    json_of,
    read_data,
    unanswered,
)
from ...models import (
    MAX_PAGE_SIZE,
    ActionRecord,
    CaughtUp,
    CursorLost,
    EventFilter,
    InvocationRecord,
    InvocationRequest,
    InvocationStatus,
    LogPage,
    NewLines,
    SourceFilter,
    StatusSnapshot,
    StreamOpened,
    UnreadableItem,
    UnreadableLog,
    WatchMessage,
    decode_message,
    is_time,
)
from ...models.base import problems_of
from ...models.dataset import DatasetRecord, FileRecord
from ...models.query import roboql_text
from ..base import Capabilities, EventStream, Platform, web_address
from ..clock import PlatformClock
from ..errors import (
    ConflictError,
    InvalidRequestError,
    LimitExceededError,
    NotFoundError,
    PermanentError,
    PlatformError,
    RateLimitedError,
    RepeatedIdError,
    TransientError,
    UnauthorizedError,
    UnavailableError,
    UnsupportedError,
)
from ..http import (
    ACCEPT_ENCODING,
    NO_ANSWER,
    UNSENDABLE,
    TooLargeError,
    body_of,
    cause_of,
    request_error,
    tls_for,
)
from ..polling import PolledEvents
from .events import PushedEvents, RobotoListing
from .server_sent_events import server_sent_events

#: Seconds of silence after which an open stream counts as broken; the local server sends a heartbeat
#: every 15 s.
STREAM_SILENCE = 45.0

#: Seconds that a query over files may take, and between two looks at it.
QUERY_PATIENCE = 900.0
QUERY_INTERVAL = 2.0

#: What a platform without the watch endpoint may answer in its place; also: not for so many invocations.
_NO_WATCH = frozenset({400, 403, 404, 405, 501})

_WATCH = "v1/actions/invocations/watch"

#: The error that each kind of failure is raised as.
_ERRORS: dict[FailureKind, type[PlatformError]] = {
    FailureKind.UNAUTHORIZED: UnauthorizedError,
    FailureKind.NOT_FOUND: NotFoundError,
    FailureKind.INVALID_REQUEST: InvalidRequestError,
    FailureKind.CONFLICT: ConflictError,
    FailureKind.LIMIT_EXCEEDED: LimitExceededError,
    FailureKind.UNSUPPORTED: UnsupportedError,
    FailureKind.REJECTED: PermanentError,
    FailureKind.RATE_LIMITED: RateLimitedError,
    FailureKind.UNAVAILABLE: UnavailableError,
}

#: How the detail of what has failed by its exit code begins.
_EXIT_CODE = re.compile(r"exit code (\d{1,3})\b")

RecordT = TypeVar("RecordT", bound=pydantic.BaseModel)
PageT = TypeVar("PageT", "_SnapshotPage", "_RecordPage", "_RawPage")


@dataclass(frozen=True, slots=True)
class RobotoSettings:
    """Where the API is and how to be let in: what an Airflow connection holds."""

    #: For example https://api.roboto.ai, without a trailing slash.
    endpoint: str
    token: str = field(repr=False)
    #: The organisation to act in; None: the token's own.
    org_id: str | None = None
    #: Verify TLS certificates: True, False, or the path of a CA bundle.
    verify: bool | str = True
    #: Seconds that a connection, and each wait for data, may take.
    timeout: float = DEFAULT_TIMEOUT
    #: Where people look at invocations; None: worked out from the endpoint.
    link_base: str | None = None


class RobotoPlatform(Platform):
    """A client of the invocation API: one connection pool, opened with `async with`.

    Calls are tried again as the platform's own client does: after 429, 502, 503 always; after 408, 500,
    504 and broken connections where a repetition can't do anything twice; Retry-After is honoured, and
    otherwise the pauses have full jitter.

    Raises:
        PlatformError: each method, one of the tree in `platforms.base`.
    """

    name = "Roboto"
    capabilities = Capabilities(events=True)

    def __init__(self, settings: RobotoSettings) -> None:
        super().__init__(settings.endpoint)
        self._settings = settings
        self._client: httpx.AsyncClient | None = None
        self._clock = PlatformClock(settings.endpoint)

    async def open(self) -> None:
        """Make the connection pool."""
        # In a thread: the first client of a process takes a while to import what it needs, and CA bundles
        # take long to read; both would be felt in a triggerer's loop.
        try:
            self._client = await asyncio.to_thread(self._new_client)
        except UNSENDABLE as error:
            raise request_error(self.where, error) from cause_of(error)

    def _new_client(self) -> httpx.AsyncClient:
        settings = self._settings
        headers = client_headers(settings.token, settings.org_id) | {"Accept-Encoding": ACCEPT_ENCODING}
        return httpx.AsyncClient(
            base_url=settings.endpoint,
            headers=headers,
            timeout=settings.timeout,
            verify=tls_for(settings.endpoint, settings.verify),
            event_hooks=self._clock.hooks,
        )

    async def close(self) -> None:
        """Close the connection pool."""
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    def url(self, invocation_id: str) -> str:
        """Where a person can look at an invocation: the app has the API's address, but for one word."""
        base = self._settings.link_base or self._settings.endpoint.replace("://api.", "://app.", 1)
        return web_address(f"{base.rstrip('/')}/actions/invocations/{_segment(invocation_id)}")

    def logs_url(self, invocation_id: str) -> str:
        """Where a person can look at an invocation's log: the local server's page has a part for it."""
        url = self.url(invocation_id)
        return url if not url or "://api." in self._settings.endpoint else f"{url}#log"

    async def check(self) -> str:
        """Ask for one action, and who asks; a sentence about where we are, as whom, in which organisation."""
        data = await self._call("POST", "v1/actions/query", body={"limit": 1}, idempotent=True)
        items = data.get("items") if isinstance(data, dict) else None
        if not isinstance(items, list):
            raise UnavailableError(f"{self._settings.endpoint} answers, but not as the invocation API does")
        user = _named(await self._account("v1/users"), "user_id")
        # An action says its owner, who may be another organisation; the token's own are asked for.
        org = self._settings.org_id or ", ".join(await self._organisations())
        whose = f" of {user}" if user else ""
        where = f" in organisation {org}" if org else ""
        return f"{self._settings.endpoint} accepts the token{whose}{where}"

    async def _organisations(self) -> list[str]:
        caller = await self._account("v1/orgs/caller")
        names = [_named(each, "org_id") for each in caller] if isinstance(caller, list) else []
        return sorted(filter(None, names))

    async def _account(self, path: str) -> Any:
        """What the platform says of the caller; None where it doesn't, or not to this token."""
        try:
            return await self._call("GET", path)
        except PermanentError:
            return None

    async def get_action(self, name: str) -> ActionRecord:
        """An action in its newest version."""
        return _read(ActionRecord, await self._call("GET", f"v1/actions/{_segment(name)}"))

    async def invoke(self, action: str, request: InvocationRequest) -> InvocationRecord:
        """Start an invocation; the one that has the request's `idempotency_id`, if there is one already.

        A platform may answer a repeated id with 409, always or where the request differs: the id is then
        looked up, and who asks compares.

        Raises:
            RepeatedIdError: the id has an invocation.
        """
        path = f"v1/actions/{_segment(action)}/invoke"
        idempotent = request.idempotency_id is not None
        try:
            data = await self._call("POST", path, body=request.wire(), idempotent=idempotent)
        except ConflictError as conflict:
            record = await self._invoked_under(request.idempotency_id)
            if record is None:
                raise
            raise RepeatedIdError(str(conflict), record) from conflict
        return _read_record(data)

    async def _invoked_under(self, idempotency_id: str | None) -> InvocationRecord | None:
        """Return the invocation that has an idempotency id; None: there is none, or no id."""
        if idempotency_id is None:
            return None
        condition = _any_of("idempotency_id", [idempotency_id])
        async for page in self._pages(_RecordPage, {"condition": condition}, 1):
            for record in page.items:
                return await self.get(record.invocation_id)
        return None

    async def get(self, invocation_id: str) -> InvocationRecord:
        """An invocation with its history."""
        return _read_record(await self._call("GET", _invocation(invocation_id)))

    async def statuses(self, invocation_ids: Collection[str]) -> list[StatusSnapshot]:
        """The status of each of up to 1,000 invocations; those that aren't known are left out."""
        return await self._snapshots(_any_of("invocation_id", invocation_ids))

    async def ended(self, invocation_ids: Collection[str]) -> list[StatusSnapshot]:
        """The same of those that have ended only."""
        return await self._snapshots(_both(_any_of("invocation_id", invocation_ids), _HAS_ENDED))

    async def active(self, idempotency_ids: Collection[str]) -> list[StatusSnapshot]:
        """Those invocations under up to 1,000 idempotency ids that haven't ended."""
        return await self._snapshots(_both(_any_of("idempotency_id", idempotency_ids), _IS_UNDER_WAY))

    async def find(
        self,
        dag_id: str,
        run_id: str | None,
        task_id: str | None,
        map_index: int | None,
        limit: int | None = None,
        iteration: int | None = None,
    ) -> list[InvocationRecord]:
        """Return what a DAG, a run or a task of it has invoked, newest first, at most `limit`."""
        wanted = SourceFilter(dag_id, run_id, task_id, map_index, iteration)
        begins = _any_of("provenance.source.source_id", wanted.prefixes, "BEGINS_WITH")
        size = MAX_PAGE_SIZE if limit is None else min(limit, MAX_PAGE_SIZE)
        found: list[InvocationRecord] = []
        async for page in self._pages(_RecordPage, {"condition": begins}, size):
            found += [one for one in page.items if wanted.matches(one.provenance.source.source_id)]
            if limit is not None and len(found) >= limit:
                break
        return [_with_exit_code(record) for record in found[:limit]]

    async def newest(self, action: str, since: datetime.datetime) -> InvocationRecord | None:
        """Return the invocation of an action that was created last, at `since` or later; None: there is none.

        `since` is compared with the platform's times by the platform's own clock.
        """
        return await self._clock.since(since, partial(self._newest, action))

    async def _newest(self, action: str, since: datetime.datetime) -> InvocationRecord | None:
        named = {"field": "provenance.action.name", "comparator": "EQUALS", "value": action}
        recent = {
            "field": "created",
            "comparator": "GREATER_THAN_OR_EQUAL",
            "value": since.astimezone(datetime.UTC).isoformat(),
        }
        body = {
            "condition": _both(named, recent),
            "sort_by": "created",
            "sort_direction": "DESC",
            "limit": 1,
        }
        data = await self._call("POST", "v1/actions/invocations/query", body=body, idempotent=True)
        items = _read(_RecordPage, data).items
        return _with_exit_code(items[0]) if items else None

    @asynccontextmanager
    async def watch(
        self, invocation_ids: Collection[str], logs: Mapping[str, str | None], cursor: int | None
    ) -> AsyncIterator[RobotoWatch]:
        """Open a stream (the local server has it); with `cursor`, what has happened since.

        Raises:
            UnsupportedError: on entering: the platform has no such stream, or none for so many.
        """
        body = {"ids": list(invocation_ids), "logs": dict(logs), "since": cursor}
        async with self._watch(body) as answer:
            yield RobotoWatch(self, answer, cursor)

    @asynccontextmanager
    async def events(self, wanted: EventFilter, since: int | None) -> AsyncIterator[EventStream]:
        """Open a stream of events: pushed where the platform does that, else asked for.

        Raises:
            UnavailableError: on entering, also where a platform that has pushed (`since` says so) doesn't
                any more: where to go on can't be known then.
        """
        statuses = None if wanted.statuses is None else sorted(map(int, wanted.statuses))
        body = {"action": wanted.action, "statuses": statuses, "since": since}
        async with AsyncExitStack() as stack:
            stream: EventStream | None = None
            if since is None or not is_time(since):
                try:
                    stream = PushedEvents(await stack.enter_async_context(self._watch(body)))
                except UnsupportedError as error:
                    if since is not None:
                        raise UnavailableError(f"{error}, but it has had one before") from error
            yield stream or PolledEvents(RobotoListing(self._items, wanted.action), since)

    async def records(self, invocation_ids: Collection[str]) -> list[InvocationRecord | UnreadableItem]:
        """The records of up to 1,000 invocations, in any order; those that aren't known are left out."""
        found: list[InvocationRecord | UnreadableItem] = []
        async for item in self._items(_any_of("invocation_id", invocation_ids)):
            try:
                found.append(_with_exit_code(InvocationRecord.model_validate(item)))
            except pydantic.ValidationError as error:
                found.append(UnreadableItem(problems_of(error.errors()[:3])))
        return found

    async def _items(self, condition: dict[str, Any]) -> AsyncIterator[Any]:
        """All records that a condition holds for, as they came, oldest first."""
        order = {"sort_by": "created", "sort_direction": "ASC"}
        async for page in self._pages(_RawPage, {"condition": condition, **order}):
            for item in page.items:
                yield item

    @asynccontextmanager
    async def _watch(self, body: dict[str, Any]) -> AsyncIterator[httpx.Response]:
        """Open the local server's stream. Raises UnsupportedError on entering: there is none."""
        client = self._opened()
        silence = httpx.Timeout(self._settings.timeout, read=STREAM_SILENCE)
        try:
            request = client.build_request("POST", _WATCH, json=body, timeout=silence)
            async with asyncio.timeout(self._settings.timeout):
                answer = await client.send(request, stream=True)
            try:
                if answer.status_code in _NO_WATCH:
                    raise UnsupportedError(f"{self._settings.endpoint} has no such watch")
                if not answer.is_success:
                    raise _platform_error(error_of(answer, await body_of(answer)))
                if not answer.headers.get("content-type", "").startswith("text/event-stream"):
                    raise UnavailableError(f"{request.url} answered with something that is no stream")
                yield answer
            finally:
                await answer.aclose()
        except (*NO_ANSWER, TimeoutError) as error:
            raise request_error(self.where, error) from cause_of(error)

    async def change_watch(
        self,
        watch_id: str,
        add: Collection[str],
        remove: Collection[str],
        logs: Mapping[str, str | None],
    ) -> None:
        """Change what an open stream is about."""
        body = {"add": list(add), "remove": list(remove), "logs": dict(logs)}
        await self._call("PATCH", f"{_WATCH}/{_segment(watch_id)}", body=body, idempotent=True)

    async def logs(self, invocation_id: str, cursor: str | None = None) -> LogPage:
        """Log lines from `cursor` (None: the beginning) on; `last_read` of the page is the next cursor."""
        query = {} if cursor is None else {"last_read": cursor}
        return _read(
            LogPage, await self._call("GET", f"{_invocation(invocation_id)}/logs/stream", query=query)
        )

    async def cancel(self, invocation_id: str) -> None:
        """Ask for an invocation to be cancelled; one that has ended stays as it is."""
        await self._call("POST", f"{_invocation(invocation_id)}/cancel", idempotent=True)

    async def dataset(self, name: str) -> DatasetRecord:
        """The dataset of a name, the oldest if there are several; it is made where there is none."""
        body = {"match_roboql_query": f"name = {roboql_text(name)}", "create_request": {"name": name}}
        path = "v1/datasets/create_if_not_exists"
        return _read(DatasetRecord, await self._call("POST", path, body=body, idempotent=True))

    async def find_files(self, query: str) -> list[FileRecord]:
        """The files that a RoboQL query selects."""
        body = {"query": query, "target": "files", "content_mode": "record_with_meta"}
        asked = _read(_Query, await self._call("POST", "v1/query/submit/roboql", body=body))
        path = f"v1/query/id/{_segment(asked.query_id)}"
        async with asyncio.timeout(QUERY_PATIENCE):
            while asked.status != "results_available":
                if asked.status == "failed":
                    raise InvalidRequestError(f"the query failed: {query}")
                await asyncio.sleep(QUERY_INTERVAL)
                asked = _read(_Query, await self._call("GET", path))
        found: list[FileRecord] = []
        token: dict[str, str] = {}
        while True:
            page = _read(_FilePage, await self._call("GET", f"{path}/results", query=token))
            found += page.items
            if not page.next_token:
                return found
            token = {"next_page_token": page.next_token}

    async def _snapshots(self, condition: dict[str, Any]) -> list[StatusSnapshot]:
        """The statuses of all invocations that a condition holds for."""
        pages = self._pages(_SnapshotPage, {"condition": condition})
        return [item.snapshot async for page in pages for item in page.items]

    async def _pages(
        self, kind: type[PageT], query: dict[str, Any], size: int = MAX_PAGE_SIZE
    ) -> AsyncIterator[PageT]:
        """All pages of a query over invocations, of up to `size` each; fewer where records are large."""
        body = {**query, "limit": size}
        while True:
            try:
                data = await self._call("POST", "v1/actions/invocations/query", body=body, idempotent=True)
            except TooLargeError:
                if body["limit"] == 1:
                    raise
                body["limit"] = max(1, body["limit"] // 4)
                continue
            page = _read(kind, data)
            yield page
            if page.next_token is None:
                return
            body["after"] = page.next_token

    async def _call(
        self,
        method: str,
        path: str,
        *,
        body: object = None,
        query: dict[str, str] | None = None,
        idempotent: bool | None = None,
    ) -> Any:
        """Return the `data` of the response. GETs are idempotent."""
        request = ApiRequest(method, path, query, body, idempotent)
        attempt = 0
        while True:
            try:
                return await self._send(request)
            except ApiError as error:
                pause = request.pause_after(error, attempt)
                if pause is None:
                    raise _platform_error(error) from error.__cause__
            await asyncio.sleep(pause)
            attempt += 1

    async def _send(self, request: ApiRequest) -> Any:
        client = self._opened()
        try:
            answer = await client.send(request.build(client), stream=True)
            try:
                return read_data(answer, await body_of(answer))
            finally:
                await answer.aclose()
        except TooLargeError:
            raise
        except UnavailableError as error:
            raise ApiError(FailureKind.UNAVAILABLE, str(error), Repeatable.IF_IDEMPOTENT) from None
        except UNSENDABLE as error:
            raise request_error(self.where, error) from None
        except httpx.RequestError as error:
            raise unanswered(self.where, error) from error

    def _opened(self) -> httpx.AsyncClient:
        if self._client is None:
            raise RuntimeError("the platform is used outside of 'async with'")
        return self._client


class RobotoWatch:
    """An open stream of server-sent events (WHATWG HTML, section 9.2)."""

    def __init__(self, platform: RobotoPlatform, answer: httpx.Response, cursor: int | None) -> None:
        self.cursor = cursor
        self._platform = platform
        self._answer = answer
        self._watch_id: str | None = None

    async def __aiter__(self) -> AsyncIterator[WatchMessage]:
        """Yield messages in order.

        Raises:
            TransientError: at its end; streams have none of their own.
        """
        async for name, cursor, text in server_sent_events(self._answer):
            self.cursor = self.cursor if cursor is None else cursor
            try:
                message = decode_message(name, json_of(text), cursor)
            except ValueError as error:
                raise UnavailableError(f"the stream sent a malformed event: {error}") from None
            match message:
                case StreamOpened(watch_id):
                    self._watch_id = watch_id
                case CursorLost(cursor):
                    self.cursor = cursor
                case StatusSnapshot() | NewLines() | UnreadableLog() | CaughtUp():
                    yield message
        raise UnavailableError(f"{self._answer.request.url.host} has ended the stream")

    async def change(
        self, add: Collection[str], remove: Collection[str], logs: Mapping[str, str | None]
    ) -> None:
        """Watch more invocations, or fewer.

        Raises:
            TransientError: the stream isn't open (any more).
            UnsupportedError: not so many.
        """
        if self._watch_id is None:
            raise UnavailableError("the stream isn't open yet")
        try:
            await self._platform.change_watch(self._watch_id, add, remove, logs)
        except NotFoundError as error:
            raise UnavailableError(str(error)) from error
        except InvalidRequestError as error:
            raise UnsupportedError(str(error)) from error


def _platform_error(failure: ApiError) -> PlatformError:
    error = _ERRORS[failure.kind](str(failure))
    if isinstance(error, TransientError):
        error.retry_after = failure.retry_after
    return error


class _Snapshot(pydantic.BaseModel):
    """The status in an InvocationRecord."""

    invocation_id: str
    last_status: InvocationStatus

    @property
    def snapshot(self) -> StatusSnapshot:
        return StatusSnapshot(self.invocation_id, self.last_status)


class _SnapshotPage(pydantic.BaseModel):
    items: list[_Snapshot]
    next_token: str | None


class _RecordPage(pydantic.BaseModel):
    items: list[InvocationRecord]
    next_token: str | None


class _RawPage(pydantic.BaseModel):
    """A page of which each item is read by itself: one that can't be read hides no other."""

    items: list[Any]
    next_token: str | None


class _Query(pydantic.BaseModel):
    query_id: str
    status: str


class _FilePage(pydantic.BaseModel):
    items: list[FileRecord]
    next_token: str | None = None


def _any_of(field: str, values: Collection[str], comparator: str = "EQUALS") -> dict[str, Any]:
    """The condition for a batch: the API has no IN."""
    each = ({"field": field, "comparator": comparator, "value": value} for value in values)
    return {"operator": "OR", "conditions": list(each)}


def _both(*conditions: dict[str, Any]) -> dict[str, Any]:
    return {"operator": "AND", "conditions": list(conditions)}


#: All statuses from Completed on are terminal.
_HAS_ENDED = {
    "field": "last_status",
    "comparator": "GREATER_THAN_OR_EQUAL",
    "value": int(InvocationStatus.Completed),
}
_IS_UNDER_WAY = {**_HAS_ENDED, "comparator": "LESS_THAN"}


def _read(kind: type[RecordT], data: Any) -> RecordT:
    try:
        return kind.model_validate(data)
    except pydantic.ValidationError as error:
        problems = problems_of(error.errors()[:5])
        raise UnavailableError(f"the platform's answer is no {kind.__name__}: {problems}") from None


def _with_exit_code(record: InvocationRecord) -> InvocationRecord:
    """Return a record whose steps have the exit codes that their details state.

    A step of the published invocation API (client 0.62, `InvocationStatusRecord`) has a status, a time and a
    detail, and the exit code stands in the detail only. This is the one place that reads it there, and only
    of a step without the field `exit_code`, which the local server sends.
    """
    for step in record.status:
        if step.exit_code is None and step.status is InvocationStatus.Failed:
            stated = _EXIT_CODE.match(step.detail or "")
            step.exit_code = int(stated[1]) if stated else None
    return record


def _read_record(data: Any) -> InvocationRecord:
    return _with_exit_code(_read(InvocationRecord, data))


def _named(data: object, field: str) -> str:
    """A field of an object that isn't read any further; empty if there is no such thing."""
    value = data.get(field) if isinstance(data, dict) else None
    return value if isinstance(value, str) else ""


def _invocation(invocation_id: str) -> str:
    return f"v1/actions/invocations/{_segment(invocation_id)}"


def _segment(text: str) -> str:
    """One segment of a path, whatever is in it."""
    if text in ("", ".", ".."):
        raise InvalidRequestError(f"{text!r} is no name of an action and no id of an invocation")
    return quote(text, safe="")
