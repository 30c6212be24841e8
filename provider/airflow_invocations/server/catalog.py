"""Where an invocation's inputs are looked up under the local server: its own datasets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from ..models.dataset import FileRecord, SessionRecord, TopicRecord
from ..runtime.exceptions import PlatformNotFound, PlatformRefused, PlatformUnavailable
from .api.errors import ApiError, NotFoundError, UnavailableError
from .dataset_storage import Folder
from .datasets import DatasetFiles, Notice


class LocalCatalog:
    """The runtime's InputCatalog over the datasets of one organisation.

    :param datasets: the datasets.
    :param org_id: the organisation that the invocation belongs to.
    :param stop: called before each download; an exception of its ends the work.
    :param notice: called with what the reader of the invocation's log should know of its input.
    """

    def __init__(self, datasets: DatasetFiles, org_id: str, stop: Callable[[], None], notice: Notice) -> None:
        self._datasets = datasets
        self._org_id = org_id
        self._stop = stop
        self._notice = notice
        #: By dataset: it is looked up once, however many files are copied.
        self._folders: dict[str, Folder] = {}

    def list_files(
        self, dataset_id: str, include_patterns: list[str], exclude_patterns: list[str]
    ) -> list[FileRecord]:
        """A dataset's files whose paths match."""
        with _refusals():
            return self._datasets.files(
                dataset_id, self._org_id, include_patterns, exclude_patterns, self._notice
            )

    def get_file(self, file_id: str, version: int | None = None) -> FileRecord:
        """A file by id."""
        with _refusals():
            return self._datasets.file(file_id, self._org_id, version)

    def find_files(self, query: str) -> list[FileRecord]:
        """The files that a RoboQL query selects."""
        with _refusals():
            return self._datasets.find_files(query, self._org_id, self._notice)

    def get_topic(self, topic_id: str) -> TopicRecord:
        """Refused."""
        _refuse("topic", topic_id)

    def find_topics(self, query: str) -> list[TopicRecord]:
        """Refused."""
        _refuse("topics", query)

    def get_session(self, session_id: str) -> SessionRecord:
        """Refused."""
        _refuse("session", session_id)

    def find_sessions(self, query: str) -> list[SessionRecord]:
        """Refused."""
        _refuse("sessions", query)

    def download_file(self, file: FileRecord, destination: Path) -> None:
        """Copy a file's content: never the original itself, which the action could write to."""
        self._stop()
        try:
            self._folder(file.association_id).copy_out(file.relative_path, destination)
        except ValueError as error:
            raise PlatformRefused(str(error)) from None

    def _folder(self, dataset_id: str) -> Folder:
        if dataset_id not in self._folders:
            with _refusals():
                self._folders[dataset_id] = self._datasets.folder(dataset_id, self._org_id)
        return self._folders[dataset_id]


@contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except NotFoundError as error:
        raise PlatformNotFound(error.message) from None
    except UnavailableError as error:
        raise PlatformUnavailable(error.message) from None
    except ApiError as error:
        raise PlatformRefused(error.message) from None


def _refuse(kind: str, what: str) -> NoReturn:
    raise PlatformRefused(f"{kind} {what!r}: the local server has files only, no topics and no sessions")
