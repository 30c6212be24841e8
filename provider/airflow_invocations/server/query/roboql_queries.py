"""Submitted RoboQL queries; each page of results is read when it is requested."""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from ...models import Condition, ConditionGroup, Page, QuerySpecification
from ...models.base import WireModel
from ..datasets import DatasetFiles
from ..db import Store
from ..errors import NotFoundError, UnsupportedError
from ..timestamps import now, to_datetime
from .roboql import read_roboql

#: Number of the latest queries that are kept while the server runs.
MAX_QUERIES = 1000

#: Kinds of records that can be queried.
TARGETS = ("datasets", "files")


@dataclass(frozen=True, slots=True)
class _Query:
    org_id: str
    user: str
    target: str
    condition: Condition | ConditionGroup | None
    submitted: int


class RoboqlQueries:
    """The queries of all users; results are read on request, so a query completes immediately."""

    def __init__(self, store: Store, datasets: DatasetFiles) -> None:
        self._store = store
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
        if target not in TARGETS:
            raise UnsupportedError(f"target {target!r}: this server has {' and '.join(TARGETS)} only")
        condition = read_roboql(query) if query and query.strip() else None
        submitted = _Query(org_id, user, target, condition, now())
        self._page(submitted, QuerySpecification(condition=condition, limit=1))  # rejects unknown fields
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
        return self._page(query, QuerySpecification(condition=query.condition, after=after))

    def _page(self, query: _Query, spec: QuerySpecification) -> Page[Any]:
        if query.target == "files":
            return self._datasets.query_files(spec, query.org_id)
        return self._store.datasets.query(spec, query.org_id)

    def _require(self, query_id: str, org_id: str) -> _Query:
        with self._lock:
            query = self._queries.get(query_id)
        if query is None or query.org_id != org_id:
            raise NotFoundError(f"no query {query_id!r}; the last {MAX_QUERIES} are kept")
        return query


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
