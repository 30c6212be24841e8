"""The input catalog of invocations on the local server: its datasets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from ..models.dataset import FileRecord, SessionRecord, TopicRecord
from ..runtime.exceptions import PlatformNotFound, PlatformRejected, PlatformUnavailable
from .dataset_storage import Folder
from .datasets import DatasetFiles, Notice
from .errors import ApiError, NotFoundError, UnavailableError


class LocalCatalog:
    """The runtime's InputCatalog of one organisation's datasets.

    :param datasets: the datasets.
    :param org_id: the invocation's organisation.
    :param stop: called before each download; it raises an exception to stop.
    :param notice: called with messages about the input, for the invocation's log.
    """

    def __init__(self, datasets: DatasetFiles, org_id: str, stop: Callable[[], None], notice: Notice) -> None:
        self._datasets = datasets
        self._org_id = org_id
        self._stop = stop
        self._notice = notice
        #: By dataset, as each is looked up only once.
        self._folders: dict[str, Folder] = {}

    def list_files(
        self, dataset_id: str, include_patterns: list[str], exclude_patterns: list[str]
    ) -> list[FileRecord]:
        """Return a dataset's files whose paths match."""
        with _translate_errors():
            return self._datasets.files(
                dataset_id, self._org_id, include_patterns, exclude_patterns, self._notice
            )

    def get_file(self, file_id: str, version: int | None = None) -> FileRecord:
        """Return a file by id."""
        with _translate_errors():
            return self._datasets.file(file_id, self._org_id, version)

    def find_files(self, query: str) -> list[FileRecord]:
        """Return the files that a RoboQL query selects."""
        with _translate_errors():
            return self._datasets.find_files(query, self._org_id, self._notice)

    def get_topic(self, topic_id: str) -> TopicRecord:
        """Raise PlatformRejected."""
        _reject("topic", topic_id)

    def find_topics(self, query: str) -> list[TopicRecord]:
        """Raise PlatformRejected."""
        _reject("topics", query)

    def get_session(self, session_id: str) -> SessionRecord:
        """Raise PlatformRejected."""
        _reject("session", session_id)

    def find_sessions(self, query: str) -> list[SessionRecord]:
        """Raise PlatformRejected."""
        _reject("sessions", query)

    def download_file(self, file: FileRecord, destination: Path) -> None:
        """Copy a file's content, because the action may change the copy."""
        self._stop()
        try:
            self._folder(file.association_id).copy_out(file.relative_path, destination)
        except ValueError as error:
            raise PlatformRejected(str(error)) from None

    def _folder(self, dataset_id: str) -> Folder:
        if dataset_id not in self._folders:
            with _translate_errors():
                self._folders[dataset_id] = self._datasets.folder(dataset_id, self._org_id)
        return self._folders[dataset_id]


@contextmanager
def _translate_errors() -> Iterator[None]:
    try:
        yield
    except NotFoundError as error:
        raise PlatformNotFound(error.message) from None
    except UnavailableError as error:
        raise PlatformUnavailable(error.message) from None
    except ApiError as error:
        raise PlatformRejected(error.message) from None


def _reject(kind: str, what: str) -> NoReturn:
    raise PlatformRejected(f"{kind} {what!r}: the local server has files only, no topics and no sessions")
