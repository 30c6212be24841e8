"""Resolve an invocation's selectors to files, topics and sessions."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Protocol, TypeVar

from ..models import DataSelector, FileSelector, InvocationInput
from ..models.dataset import ActionInputRecord, FileRecord, SessionRecord, TopicRecord
from ..models.query import roboql_text
from .catalog import PlatformCatalog
from .client import PlatformClient
from .entities import link_target

_log = logging.getLogger(__name__)

#: Files that a selector by paths excludes: those in a hidden folder at the top of the dataset.
HIDDEN_FILES = ".*/**/*"

SelectorT = TypeVar("SelectorT", bound=DataSelector)
RecordT = TypeVar("RecordT")


class InputCatalog(Protocol):
    """Looks up selectors: through the platform's API, or in the local server's database.

    Queries are RoboQL. Each method raises PlatformNotFound for an unknown id, PlatformRejected for an invalid
    query or an unsupported kind of input, and PlatformUnavailable for an outage.
    """

    def list_files(
        self, dataset_id: str, include_patterns: list[str], exclude_patterns: list[str]
    ) -> Iterable[FileRecord]:
        """Yield a dataset's files whose paths match (patterns as in a .gitignore)."""

    def get_file(self, file_id: str, version: int | None = None) -> FileRecord:
        """Return a file by id; version None: the newest."""

    def find_files(self, query: str) -> Iterable[FileRecord]:
        """Yield the files that a query selects."""

    def get_topic(self, topic_id: str) -> TopicRecord:
        """Return a topic by id."""

    def find_topics(self, query: str) -> Iterable[TopicRecord]:
        """Yield the topics that a query selects."""

    def get_session(self, session_id: str) -> SessionRecord:
        """Return a session by id."""

    def find_sessions(self, query: str) -> Iterable[SessionRecord]:
        """Yield the sessions that a query selects."""

    def download_file(self, file: FileRecord, destination: Path) -> None:
        """Write a file's content to a new local file, which the caller may change; its folder exists."""


class ActionInputResolver:
    """Resolves the input of an invocation.

    Args:
        catalog: looks up the selectors.
        notice: called with each warning, which is also logged; None: no calls.
    """

    @classmethod
    def from_env(cls, roboto_client: PlatformClient | None = None) -> ActionInputResolver:
        """Return a resolver that uses a platform; None: the platform of this process's invocation."""
        return cls(PlatformCatalog(roboto_client or PlatformClient.from_env()))

    def __init__(self, catalog: InputCatalog, notice: Callable[[str], object] | None = None) -> None:
        self._catalog = catalog
        self._notice = notice

    def resolve_input_spec(
        self, input_spec: InvocationInput, download: bool = False, download_path: Path | None = None
    ) -> ActionInputRecord:
        """Return the selected items, each once; a selector that matches nothing is no error.

        Args:
            input_spec: the selectors.
            download: whether to download the files too, to FILE_ID/VERSION/NAME in `download_path`; a file
                that exists with the right size isn't downloaded again.
            download_path: None: a new temporary folder.

        Raises:
            PlatformError: a lookup or download failed.
            OSError: a file can't be written.
        """
        resolved = self.resolve(input_spec)
        if not download:
            return resolved
        folder = Path(tempfile.mkdtemp()) if download_path is None else download_path
        return self.download(resolved, lambda file: folder.joinpath(*_store_path(file)))

    def resolve(self, input_spec: InvocationInput) -> ActionInputRecord:
        """Return the selected items without downloading files. Raises PlatformError."""
        files = _unique(_as_list(input_spec.files), self._files, lambda file: file.file_id)
        sessions = _unique(_as_list(input_spec.sessions), self._sessions, lambda session: session.session_id)
        topics = _unique(_as_list(input_spec.topics), self._topics, lambda topic: topic.topic_id)
        for kind, wanted, found in (
            ("files", input_spec.files, files),
            ("sessions", input_spec.sessions, sessions),
            ("topics", input_spec.topics, topics),
        ):
            if wanted and not found:
                self._warn(f"the input's selectors match no {kind}")
        return ActionInputRecord(files=[(file, None) for file in files], sessions=sessions, topics=topics)

    def download(
        self, resolved: ActionInputRecord, path_for: Callable[[FileRecord], Path]
    ) -> ActionInputRecord:
        """Download the resolved files to the paths that `path_for` returns; the result is sorted by dataset.

        Raises:
            PlatformError: a file can't be downloaded.
            OSError: a file can't be written.
        """
        if resolved.topics or resolved.sessions:
            self._warn("topics and sessions aren't downloaded; the action must read their data itself")
        by_dataset: dict[str, list[tuple[FileRecord, Path | None]]] = {}
        for file, _ in resolved.files:
            source = self._catalog.get_file(*link_target(file)) if file.is_link else file
            path = path_for(file)
            if not _exists(path, source.size):
                path.parent.mkdir(parents=True, exist_ok=True)
                self._catalog.download_file(source, path)
            by_dataset.setdefault(source.association_id, []).append((file, path))
        files = [file for downloaded in by_dataset.values() for file in downloaded]
        return resolved.model_copy(update={"files": files})

    def _files(self, selector: FileSelector) -> Iterable[FileRecord]:
        catalog, dataset_id = self._catalog, selector.dataset_id
        if selector.paths and dataset_id:
            yield from catalog.list_files(dataset_id, selector.paths, [HIDDEN_FILES])
        elif selector.paths:
            self._warn(f"paths {selector.paths} match nothing: the selector has no dataset_id")
        if dataset_id and (selector.query or selector.ids or selector.names):
            self._warn(f"dataset_id {dataset_id!r} applies to paths only, not to query, ids and names")
        if selector.query:
            yield from catalog.find_files(selector.query)
        for file_id in selector.ids or []:
            yield catalog.get_file(file_id)
        if selector.names:
            yield from catalog.find_files(_any_of("path LIKE", selector.names))

    def _topics(self, selector: DataSelector) -> Iterable[TopicRecord]:
        self._warn_of_dataset(selector)
        for topic_id in selector.ids or []:
            yield self._catalog.get_topic(topic_id)
        if selector.names:
            yield from self._catalog.find_topics(_any_of("name =", selector.names))
        if selector.query:
            yield from self._catalog.find_topics(selector.query)

    def _sessions(self, selector: DataSelector) -> Iterable[SessionRecord]:
        self._warn_of_dataset(selector)
        for session_id in selector.ids or []:
            yield self._catalog.get_session(session_id)
        if selector.names:
            yield from self._catalog.find_sessions(_any_of("name =", selector.names))
        if selector.query:
            yield from self._catalog.find_sessions(selector.query)

    def _warn_of_dataset(self, selector: DataSelector) -> None:
        if selector.dataset_id:
            self._warn(
                f"dataset_id {selector.dataset_id!r} doesn't apply to topics and sessions; use a query with "
                "dataset.dataset_id = ..."
            )

    def _warn(self, warning: str) -> None:
        _log.warning("%s", warning)
        if self._notice is not None:
            self._notice(warning)


def _exists(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except FileNotFoundError:
        return False


def _as_list(selectors: SelectorT | list[SelectorT] | None) -> Sequence[SelectorT]:
    if selectors is None:
        return []
    return selectors if isinstance(selectors, list) else [selectors]


def _unique(
    selectors: Sequence[SelectorT],
    select: Callable[[SelectorT], Iterable[RecordT]],
    identity: Callable[[RecordT], str],
) -> list[RecordT]:
    found: dict[str, RecordT] = {}
    for selector in selectors:
        for record in select(selector):
            found.setdefault(identity(record), record)
    return list(found.values())


def _any_of(comparison: str, values: Iterable[str]) -> str:
    """Return RoboQL that is true if the comparison is true for one of the values."""
    return " OR ".join(f"{comparison} {roboql_text(value)}" for value in values)


def _store_path(file: FileRecord) -> tuple[str, str, str]:
    return file.file_id, str(file.version), PurePosixPath(file.relative_path).name
