"""Submitted RoboQL queries; each page of results is read when it is requested."""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from ...models import Page, QuerySpecification
from ...models.base import MAX_PAGE_SIZE, WireModel
from ..datasets import DatasetFiles
from ..errors import InvalidRequestError, NotFoundError, UnsupportedError
from ..timestamps import now, to_datetime
from .roboql import RoboqlQuery, read_roboql

#: Number of the latest queries that are kept while the server runs.
MAX_QUERIES = 1000

#: Kinds of records that can be queried.
TARGETS = ("datasets", "files")

#: Those that the platform has besides.
_PLATFORM_TARGETS = ("collections", "devices", "events", "sessions", "topic_message_paths", "topics")


@dataclass(frozen=True, slots=True)
class _Query:
    org_id: str
    user: str
    target: str
    wanted: RoboqlQuery
    submitted: int


class RoboqlQueries:
    """The queries of all users; results are read on request, so a query completes immediately."""

    def __init__(self, datasets: DatasetFiles) -> None:
        self._datasets = datasets
        self._lock = threading.Lock()
        self._queries: OrderedDict[str, _Query] = OrderedDict()

    def submit(self, target: str, query: str | None, org_id: str, user: str) -> dict[str, Any]:
        """Store a query and return its record.

        :param target: one of TARGETS.
        :param query: the RoboQL text; empty: all records.
        :raises InvalidRequestError: the query is invalid or has an unknown field.
        :raises UnsupportedError: this server doesn't have such records.
        """
        return self.submit_parsed(target, read_roboql(query or ""), org_id, user)

    def submit_parsed(self, target: str, wanted: RoboqlQuery, org_id: str, user: str) -> dict[str, Any]:
        """Store a query that needs no parsing, and return its record.

        :param target: one of TARGETS.
        :param wanted: the conditions, the order and the limit.
        :raises InvalidRequestError: the query is invalid or has an unknown field.
        :raises UnsupportedError: this server doesn't have such records.
        """
        if target in _PLATFORM_TARGETS:
            raise UnsupportedError(f"target {target!r}: this server has {' and '.join(TARGETS)} only")
        if target not in TARGETS:
            raise InvalidRequestError(f"target {target!r}: allowed: {', '.join(TARGETS)}")
        submitted = _Query(org_id, user, target, wanted, now())
        self._page(submitted, wanted.page(size=1))  # rejects unknown fields
        query_id = f"qr_{secrets.token_hex(8)}"
        with self._lock:
            self._queries[query_id] = submitted
            while len(self._queries) > MAX_QUERIES:
                self._queries.popitem(last=False)
        return _record(query_id, submitted)

    def get(self, query_id: str, org_id: str) -> dict[str, Any]:
        """Return a query's record. Raises NotFoundError."""
        return _record(query_id, self._require(query_id, org_id))

    def results(self, query_id: str, org_id: str, after: str | None) -> WireModel:
        """Return a page of a query's results. Raises NotFoundError, InvalidRequestError."""
        query = self._require(query_id, org_id)
        wanted = query.wanted
        if wanted.limit is None:
            return self._page(query, wanted.page(after=after))
        # The token counts the results so far, because the limit is of all pages together.
        before, position = _read_token(after)
        left = wanted.limit - before
        if left <= 0:
            return Page[Any](items=[], next_token=None)
        page = self._page(query, wanted.page(min(left, MAX_PAGE_SIZE), position))
        read = before + len(page.items)
        more = page.next_token is not None and read < wanted.limit
        return Page(items=page.items, next_token=f"{read}:{page.next_token}" if more else None)

    def _page(self, query: _Query, spec: QuerySpecification) -> Page[Any]:
        if query.target == "files":
            return self._datasets.query_files(spec, query.org_id)
        return self._datasets.query_datasets(spec, query.org_id)

    def _require(self, query_id: str, org_id: str) -> _Query:
        with self._lock:
            query = self._queries.get(query_id)
        if query is None or query.org_id != org_id:
            raise NotFoundError(f"no query {query_id!r}; the last {MAX_QUERIES} are kept")
        return query


def _read_token(after: str | None) -> tuple[int, str | None]:
    """Return how many results the pages before had, and the position after them."""
    if after is None:
        return 0, None
    count, _, position = after.partition(":")
    if not (count.isascii() and count.isdigit() and len(count) < 10 and position):
        raise InvalidRequestError("'next_page_token' is not a page token of this query")
    return int(count), position


def _record(query_id: str, query: _Query) -> dict[str, Any]:
    submitted = to_datetime(query.submitted).isoformat()
    return {
        "modified": submitted,
        "org_id": query.org_id,
        "query_id": query_id,
        "query_ctx": {"query_scheme": "query_spec_v1", "query": {}},
        "result_count": 0,
        "status": "results_available",
        "submitted": submitted,
        "submitted_by": query.user,
        "target": query.target,
    }
