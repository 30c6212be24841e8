"""The platform as an input catalog: look up selectors through its API."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..models.dataset import FileRecord, SessionRecord, TopicRecord
from .client import PlatformClient
from .entities import File, file_records
from .exceptions import PlatformRejected, PlatformUnavailable

#: Longest duration of a query, and the interval between two polls of it, in seconds.
QUERY_TIMEOUT = 900.0
QUERY_INTERVAL = 2.0


class PlatformCatalog:
    """The InputCatalog of a platform; each method raises PlatformError."""

    def __init__(self, client: PlatformClient) -> None:
        self._client = client

    def list_files(
        self, dataset_id: str, include_patterns: list[str], exclude_patterns: list[str]
    ) -> Iterator[FileRecord]:
        """Yield a dataset's files whose paths match (patterns as in a .gitignore)."""
        return file_records(self._client, dataset_id, include_patterns, exclude_patterns)

    def get_file(self, file_id: str, version: int | None = None) -> FileRecord:
        """Return a file by id; version None: the newest."""
        return File.from_id(file_id, version, self._client).record

    def find_files(self, query: str) -> Iterator[FileRecord]:
        """Yield the files that a query selects."""
        return (FileRecord.model_validate(item) for item in self._query("files", query))

    def get_topic(self, topic_id: str) -> TopicRecord:
        """Return a topic by id."""
        return TopicRecord.model_validate(self._client.get(f"v1/topics/id/{topic_id}"))

    def find_topics(self, query: str) -> Iterator[TopicRecord]:
        """Yield the topics that a query selects."""
        return (TopicRecord.model_validate(item) for item in self._query("topics", query))

    def get_session(self, session_id: str) -> SessionRecord:
        """Return a session by id."""
        return SessionRecord.model_validate(self._client.get(f"v1/sessions/id/{session_id}"))

    def find_sessions(self, query: str) -> Iterator[SessionRecord]:
        """Yield the sessions that a query selects."""
        return (SessionRecord.model_validate(item) for item in self._query("sessions", query))

    def download_file(self, file: FileRecord, destination: Path) -> None:
        """Write a file's content to a path. Raises OSError too."""
        File(file, self._client).download(destination)

    def _query(self, target: str, query: str) -> Iterator[Any]:
        submitted = self._client.post(
            "v1/query/submit/roboql",
            {"query": query, "target": target, "content_mode": "record_with_meta"},
        )
        self._wait_for_results(submitted)
        results = f"v1/query/id/{submitted['query_id']}/results"
        token: str | None = None
        while True:
            page = self._client.get(results, {"next_page_token": token} if token else None)
            yield from page["items"]
            token = page.get("next_token")
            if not token:
                return

    def _wait_for_results(self, query: dict[str, Any]) -> None:
        deadline = time.monotonic() + QUERY_TIMEOUT
        while query["status"] != "results_available":
            if query["status"] == "failed":
                raise PlatformRejected(f"query {query['query_id']} failed")
            if time.monotonic() > deadline:
                raise PlatformUnavailable(
                    f"query {query['query_id']} has no results after {QUERY_TIMEOUT:g} s"
                )
            time.sleep(QUERY_INTERVAL)
            query = self._client.get(f"v1/query/id/{query['query_id']}")
