"""The platform behind connections of type `roboto`: the invocation API over HTTP."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

import pydantic

from ...invocation_api import SECRET_PREFIX
from ...models import (
    MAX_PAGE_SIZE,
    SOURCE_ID_BEGIN,
    ActionRecord,
    EventFilter,
    InvocationRecord,
    InvocationRequest,
    LogPage,
    SourceFilter,
    StatusSnapshot,
    UnreadableItem,
    is_time,
)
from ...models.base import problems_of
from ...models.dataset import DatasetRecord, FileRecord
from ...models.query import roboql_text
from ..base import Capabilities, EventStream, Platform
from ..errors import (
    ConflictError,
    InvalidRequestError,
    PermanentError,
    RepeatedIdError,
    UnavailableError,
    UnsupportedError,
)
from ..polling import PollingEventStream
from .client import RobotoClient, RobotoSettings, invocation_path, segment
from .events import PushedEvents, RobotoLister
from .records import (
    HAS_ENDED,
    IS_ACTIVE,
    FilePage,
    FileQuery,
    RawPage,
    RecordPage,
    SnapshotPage,
    all_of,
    any_of,
    compare,
    read,
    read_record,
    text_field,
    with_exit_code,
)
from .watch import RobotoWatch

#: Seconds that a query over files may take, and between two requests for its state.
QUERY_TIMEOUT = 900.0
QUERY_INTERVAL = 2.0


class RobotoPlatform(Platform):
    """The invocation API, at Roboto or at a local server."""

    name = "Roboto"
    capabilities = Capabilities(events=True)
    secret_prefix = SECRET_PREFIX

    def __init__(self, settings: RobotoSettings) -> None:
        super().__init__(settings.endpoint)
        self._settings = settings
        self._client = RobotoClient(settings)

    async def open(self) -> None:
        """Make the connection pool."""
        await self._client.pool.open()

    async def close(self) -> None:
        """Close the connection pool."""
        await self._client.pool.close()

    def page_url(self, invocation_id: str) -> str:
        """Return the URL of an invocation's page; the app's host is the API's with `app` for `api`."""
        base = self._settings.link_base or self._settings.endpoint.replace("://api.", "://app.", 1)
        return f"{base.rstrip('/')}/actions/invocations/{segment(invocation_id)}"

    def logs_url(self, invocation_id: str) -> str:
        """Return the URL of an invocation's log, which is a part of the local server's page."""
        url = self.url(invocation_id)
        return url if not url or "://api." in self._settings.endpoint else f"{url}#log"

    async def check(self) -> str:
        """List one action; return a sentence with the address, the token's user and its organisation."""
        data = await self._client.call("POST", "v1/actions/query", body={"limit": 1}, idempotent=True)
        items = data.get("items") if isinstance(data, dict) else None
        if not isinstance(items, list):
            raise UnavailableError(f"{self._settings.endpoint} responds, but not as the invocation API does")
        user = text_field(await self._account("v1/users"), "user_id")
        # Not that of the action, which may belong to another organisation.
        org = self._settings.org_id or ", ".join(await self._organisations())
        whose = f" of {user}" if user else ""
        where = f" in organisation {org}" if org else ""
        return f"{self._settings.endpoint} accepts the token{whose}{where}"

    async def _organisations(self) -> list[str]:
        caller = await self._account("v1/orgs/caller")
        names = [text_field(each, "org_id") for each in caller] if isinstance(caller, list) else []
        return sorted(filter(None, names))

    async def _account(self, path: str) -> Any:
        """Return what the platform says about the token's user; None if it doesn't, or not for this token."""
        try:
            return await self._client.call("GET", path)
        except PermanentError:
            return None

    async def get_action(self, name: str) -> ActionRecord:
        """Return the newest version of an action."""
        return read(ActionRecord, await self._client.call("GET", f"v1/actions/{segment(name)}"))

    async def invoke(self, action: str, request: InvocationRequest) -> InvocationRecord:
        """Start an invocation, or return the one that has the request's `idempotency_id`.

        A platform may answer 409 for a repeated id, or for one with another request. The id is then looked
        up, and the caller compares the requests.

        :raises RepeatedIdError: the id has an invocation.
        """
        path = f"v1/actions/{segment(action)}/invoke"
        idempotent = request.idempotency_id is not None
        try:
            data = await self._client.call("POST", path, body=request.wire(), idempotent=idempotent)
        except ConflictError as conflict:
            record = await self._invoked_under(request.idempotency_id)
            if record is None:
                raise
            raise RepeatedIdError(str(conflict), record) from conflict
        return read_record(data)

    async def _invoked_under(self, idempotency_id: str | None) -> InvocationRecord | None:
        """Return the invocation that has an idempotency id; None: there is none, or no id."""
        if idempotency_id is None:
            return None
        condition = any_of("idempotency_id", [idempotency_id])
        async for page in self._client.pages(RecordPage, {"condition": condition}, 1):
            for record in page.items:
                return await self.get(record.invocation_id)
        return None

    async def get(self, invocation_id: str) -> InvocationRecord:
        """Return an invocation with its history."""
        return read_record(await self._client.call("GET", invocation_path(invocation_id)))

    async def statuses(self, invocation_ids: Collection[str]) -> list[StatusSnapshot]:
        """Return the statuses of up to 1,000 invocations; unknown ids are left out."""
        return await self._snapshots(any_of("invocation_id", invocation_ids))

    async def ended(self, invocation_ids: Collection[str]) -> list[StatusSnapshot]:
        """Like `statuses`, for invocations in a terminal status only."""
        return await self._snapshots(all_of(any_of("invocation_id", invocation_ids), HAS_ENDED))

    async def active(self, idempotency_ids: Collection[str]) -> list[StatusSnapshot]:
        """Return the statuses of the active invocations of up to 1,000 idempotency ids."""
        return await self._snapshots(all_of(any_of("idempotency_id", idempotency_ids), IS_ACTIVE))

    async def find(
        self,
        dag_id: str,
        run_id: str | None,
        task_id: str | None,
        map_index: int | None,
        limit: int | None = None,
        iteration: int | None = None,
    ) -> list[InvocationRecord]:
        """Return the invocations of a DAG, a run or a task, newest first, at most `limit`."""
        wanted = SourceFilter(dag_id, run_id, task_id, map_index, iteration)
        begins = any_of("provenance.source.source_id", wanted.prefixes, "BEGINS_WITH")
        size = MAX_PAGE_SIZE if limit is None else min(limit, MAX_PAGE_SIZE)
        found: list[InvocationRecord] = []
        async for page in self._client.pages(RecordPage, {"condition": begins}, size):
            found += [one for one in page.items if wanted.matches(one.provenance.source.source_id)]
            if limit is not None and len(found) >= limit:
                break
        return [with_exit_code(record) for record in found[:limit]]

    async def find_active(self, limit: int) -> list[InvocationRecord]:
        """Return the active invocations that tasks of any Airflow have started, newest first."""
        begins = compare("provenance.source.source_id", "BEGINS_WITH", SOURCE_ID_BEGIN)
        found: list[InvocationRecord] = []
        query = {"condition": all_of(begins, IS_ACTIVE)}
        async for page in self._client.pages(RecordPage, query, min(limit, MAX_PAGE_SIZE)):
            found += page.items
            if len(found) >= limit:
                break
        return found[:limit]

    async def newest(self, action: str, since: datetime.datetime) -> InvocationRecord | None:
        """Return the invocation of an action that was created last, at `since` or later; None: none was.

        `since` is converted to the platform's clock.
        """
        return await self._client.pool.clock.since(since, partial(self._newest, action))

    async def _newest(self, action: str, since: datetime.datetime) -> InvocationRecord | None:
        named = compare("provenance.action.name", "EQUALS", action)
        recent = compare("created", "GREATER_THAN_OR_EQUAL", since.astimezone(datetime.UTC).isoformat())
        order = {"sort_by": "created", "sort_direction": "DESC"}
        data = await self._client.query({"condition": all_of(named, recent), **order, "limit": 1})
        items = read(RecordPage, data).items
        return with_exit_code(items[0]) if items else None

    @asynccontextmanager
    async def watch(
        self, invocation_ids: Collection[str], logs: Mapping[str, str | None], cursor: int | None
    ) -> AsyncIterator[RobotoWatch]:
        """Open a stream, which the local server has.

        :raises UnsupportedError: on entering: the platform has no stream, or none for this many.
        """
        body = {"ids": list(invocation_ids), "logs": dict(logs), "since": cursor}
        async with self._client.stream(body) as answer:
            yield RobotoWatch(self._client, answer, cursor)

    @asynccontextmanager
    async def events(self, wanted: EventFilter, since: int | None) -> AsyncIterator[EventStream]:
        """Open a stream of events: the platform's own where it has one, else a polled one.

        :raises UnavailableError: on entering, also if `since` is a cursor of the platform's own stream and
            the platform has none any more; a polled stream can't resume from it.
        """
        statuses = None if wanted.statuses is None else sorted(map(int, wanted.statuses))
        body = {"action": wanted.action, "statuses": statuses, "since": since}
        async with AsyncExitStack() as stack:
            stream: EventStream | None = None
            if since is None or not is_time(since):
                try:
                    stream = PushedEvents(await stack.enter_async_context(self._client.stream(body)))
                except UnsupportedError as error:
                    if since is not None:
                        raise UnavailableError(f"{error}, but it had one before") from error
            yield stream or PollingEventStream(RobotoLister(self._items, wanted.action), since)

    async def records(self, invocation_ids: Collection[str]) -> list[InvocationRecord | UnreadableItem]:
        """Return the records of up to 1,000 invocations, in any order; unknown ids are left out."""
        found: list[InvocationRecord | UnreadableItem] = []
        async for item in self._items(any_of("invocation_id", invocation_ids)):
            try:
                found.append(with_exit_code(InvocationRecord.model_validate(item)))
            except pydantic.ValidationError as error:
                found.append(UnreadableItem(problems_of(error.errors()[:3])))
        return found

    async def _items(self, condition: dict[str, Any]) -> AsyncIterator[Any]:
        """Yield all records that match a condition, unread, oldest first."""
        order = {"sort_by": "created", "sort_direction": "ASC"}
        async for page in self._client.pages(RawPage, {"condition": condition, **order}):
            for item in page.items:
                yield item

    async def logs(self, invocation_id: str, cursor: str | None = None) -> LogPage:
        """Return log lines from a cursor on (None: the beginning)."""
        query = {} if cursor is None else {"last_read": cursor}
        path = f"{invocation_path(invocation_id)}/logs/stream"
        return read(LogPage, await self._client.call("GET", path, query=query))

    async def cancel(self, invocation_id: str) -> None:
        """Request the cancel of an invocation and of what it has invoked; a terminal one stays as it is.

        `cascade` is an extension of the local server.
        """
        path = f"{invocation_path(invocation_id)}/cancel"
        await self._client.call("POST", path, query={"cascade": "true"}, idempotent=True)

    async def dataset(self, name: str) -> DatasetRecord:
        """Return the dataset of a name, the oldest if there are several; create it if there is none."""
        body = {"match_roboql_query": f"name = {roboql_text(name)}", "create_request": {"name": name}}
        path = "v1/datasets/create_if_not_exists"
        return read(DatasetRecord, await self._client.call("POST", path, body=body, idempotent=True))

    async def find_files(self, query: str) -> list[FileRecord]:
        """Return the files that a RoboQL query selects."""
        body = {"query": query, "target": "files", "content_mode": "record_with_meta"}
        state = read(FileQuery, await self._client.call("POST", "v1/query/submit/roboql", body=body))
        path = f"v1/query/id/{segment(state.query_id)}"
        async with asyncio.timeout(QUERY_TIMEOUT):
            while state.status != "results_available":
                if state.status == "failed":
                    raise InvalidRequestError(f"the query failed: {query}")
                await asyncio.sleep(QUERY_INTERVAL)
                state = read(FileQuery, await self._client.call("GET", path))
        found: list[FileRecord] = []
        token: dict[str, str] = {}
        while True:
            page = read(FilePage, await self._client.call("GET", f"{path}/results", query=token))
            found += page.items
            if not page.next_token:
                return found
            token = {"next_page_token": page.next_token}

    async def _snapshots(self, condition: dict[str, Any]) -> list[StatusSnapshot]:
        """Return the statuses of all invocations that match a condition."""
        pages = self._client.pages(SnapshotPage, {"condition": condition})
        return [item.snapshot async for page in pages for item in page.items]
