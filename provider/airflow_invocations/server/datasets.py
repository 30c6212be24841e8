"""Datasets with what lies in their folders: the folder decides which files there are, the store the rest."""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from ..models import Condition, ConditionGroup, Page, QuerySpecification, SortDirection
from ..models.dataset import DatasetRecord, DatasetUpdate, FileRecord, FileUpdate, NewDataset
from .api.errors import InvalidRequestError, NotFoundError, UnavailableError
from .dataset_storage import Folder, parts_of
from .db import Store
from .execution.left_out import Kind, LeftOut, summary
from .outages import is_outage
from .query.file_patterns import FilePatterns, PatternError
from .query.roboql import read_roboql

#: Seconds that a query for an invocation's input may take for each page of files: an action should not fail
#: because the machine is busy.
FIND_WITHIN = 600.0

#: Files in one page, unless it asks for fewer.
MAX_FILES = 1000

#: Called with a sentence that the reader of an invocation's log should see.
Notice = Callable[[str], object]

_T = TypeVar("_T")

_log = logging.getLogger(__name__)


class DatasetFiles:
    """Reads and changes datasets and their files.

    Before files are told of, the folder is looked at: what was added, changed or removed there by anybody is
    so in the dataset. A file's content has one version only, the newest.

    :param store: where datasets and files are recorded.
    :param root: the folder of the folders of those datasets that aren't linked to one.
    """

    def __init__(self, store: Store, root: Path) -> None:
        self._store = store
        self._root = root
        self._lock = threading.Lock()
        #: By dataset, what was logged last about it.
        self._warned: dict[str, str] = {}

    def create(self, request: NewDataset, org_id: str, user: str) -> DatasetRecord:
        """Make an empty dataset. Raises InvalidRequestError."""
        return self._store.datasets.create(request, org_id, user)

    def create_unless_there(self, query: str, request: NewDataset, org_id: str, user: str) -> DatasetRecord:
        """The oldest dataset that a RoboQL query selects; a new one if there is none."""
        condition = read_roboql(query)
        oldest = QuerySpecification(condition=condition, limit=1, sort_direction=SortDirection.Ascending)
        found = self._store.datasets.query(oldest, org_id).items
        return found[0] if found else self.create(request, org_id, user)

    def link(
        self, name: str, folder: Path, org_id: str, user: str
    ) -> tuple[DatasetRecord, Sequence[LeftOut]]:
        """Create a dataset from an existing folder, without copying it; also return the entries left out.

        Raises:
            InvalidRequestError: there is no such folder.
            ConflictError: the name is taken.
            UnavailableError: the folder can't be read.
        """
        if not folder.is_dir():
            raise InvalidRequestError(f"there is no folder {folder}")
        with _readable(f"the folder {folder}"):
            survey = Folder(folder.resolve()).survey()
        record = self._store.datasets.create(NewDataset(name=name), org_id, user, str(folder.resolve()))
        self._store.files.record_scan(record.dataset_id, org_id, survey.files, user)
        return record, survey.left_out

    def look_at(self, dataset_id: str, org_id: str, user: str = "local") -> Sequence[LeftOut]:
        """Record the current content of a dataset's folder; return the entries left out.

        Raises:
            NotFoundError: no such dataset.
            UnavailableError: its folder can't be read.
        """
        survey = self._look(dataset_id, org_id, Folder.survey)
        self._store.files.record_scan(dataset_id, org_id, survey.files, user)
        # Unfinished uploads come and go.
        left_out = summary(entry for entry in survey.left_out if entry.kind is not Kind.Draft)
        self._warn(dataset_id, f"left out of dataset {dataset_id}: {left_out}" if left_out else None)
        return survey.left_out

    def _look_at_file(self, dataset_id: str, path: str, org_id: str) -> None:
        """Record what is at one path now; a whole folder may take long to look at."""
        found = self._look(dataset_id, org_id, lambda folder: folder.find(path))
        self._store.files.record_scan(
            dataset_id, org_id, {} if found is None else {path: found}, "local", [path]
        )

    def _look(self, dataset_id: str, org_id: str, look: Callable[[Folder], _T]) -> _T:
        with _readable(f"the folder of dataset {dataset_id!r}"):
            return look(self.folder(dataset_id, org_id))

    def _warn(self, dataset_id: str, warning: str | None) -> None:
        """Log a warning about a dataset, unless it is the one that was logged last."""
        with self._lock:
            last = self._warned.pop(dataset_id, None)
            if warning is not None:
                self._warned[dataset_id] = warning
        if warning not in (None, last):
            _log.warning("%s", warning)

    def folder(self, dataset_id: str, org_id: str) -> Folder:
        """Where a dataset's files lie. Raises NotFoundError, OSError."""
        linked = self._store.datasets.linked_folder(dataset_id, org_id)
        if linked is not None:
            return Folder(Path(linked))
        own = self._root / dataset_id
        own.mkdir(parents=True, exist_ok=True)
        return Folder(own)

    def page_of_files(
        self,
        dataset_id: str,
        org_id: str,
        include: Sequence[str],
        exclude: Sequence[str],
        after: str | None,
        limit: int,
    ) -> Page[FileRecord]:
        """Files by path; the token of the next page is the last path.

        Raises:
            NotFoundError: no such dataset.
            InvalidRequestError: a pattern can't be read.
            UnavailableError: the folder can't be read.
        """
        if after is None:
            self.look_at(dataset_id, org_id)
        matching = self._matching(dataset_id, org_id, include, exclude, after)
        with contextlib.closing(matching):
            items = list(itertools.islice(matching, limit + 1))
        more = len(items) > limit
        return Page(items=items[:limit], next_token=items[limit - 1].relative_path if more else None)

    def files(
        self, dataset_id: str, org_id: str, include: Sequence[str], exclude: Sequence[str], notice: Notice
    ) -> list[FileRecord]:
        """All files whose paths match, by path; `notice` is called if an entry that matches is left out.

        Raises:
            NotFoundError: no such dataset.
            InvalidRequestError: a pattern can't be read.
            UnavailableError: the folder can't be read.
        """
        wanted = _wanted(include, exclude)
        if left_out := [entry for entry in self.look_at(dataset_id, org_id) if wanted(entry.path)]:
            notice(f"left out of the input from dataset {dataset_id}: {summary(left_out)}")
        return list(self._matching(dataset_id, org_id, include, exclude, None))

    def file(self, file_id: str, org_id: str, version: int | None = None) -> FileRecord:
        """A file. Raises NotFoundError, also for a version that isn't the newest: no other is kept."""
        record = self._store.files.get(file_id, org_id)
        self._look_at_file(record.association_id, record.relative_path, org_id)
        return _of_version(self._store.files.get(file_id, org_id), version)

    def file_by_path(self, dataset_id: str, path: str, org_id: str, version: int | None = None) -> FileRecord:
        """A file by its path. Raises as `file` does, and InvalidRequestError for a path with `..`."""
        try:
            parts_of(path)
        except ValueError as error:
            raise InvalidRequestError(str(error)) from None
        self._look_at_file(dataset_id, path, org_id)
        return _of_version(self._store.files.get_by_path(dataset_id, path, org_id), version)

    def query_files(self, spec: QuerySpecification, org_id: str) -> Page[FileRecord]:
        """A page of files of any dataset. Raises InvalidRequestError."""
        if spec.after is None:
            self._look_at_all(org_id)
        return self._store.files.query(spec, org_id)

    def find_files(self, query: str, org_id: str, notice: Notice) -> list[FileRecord]:
        """All files that a RoboQL query selects, by path. Raises InvalidRequestError.

        If a dataset's folder can't be read, the query uses its last known files; `notice` is called.
        """
        condition = read_roboql(query)
        for reason in self._look_at_all(org_id):
            notice(f"the query uses the last known files: {reason}")
        return list(_every(lambda spec: self._store.files.query(spec, org_id, FIND_WITHIN), condition))

    def update_file(self, file_id: str, update: FileUpdate, org_id: str, user: str) -> FileRecord:
        """Change what is said of a file. Raises NotFoundError, InvalidRequestError."""
        return self._store.files.update(file_id, update, org_id, user)

    def uploaded(
        self,
        dataset_id: str,
        org_id: str,
        user: str,
        file_updates: Mapping[str, Sequence[FileUpdate]],
        dataset_updates: Sequence[DatasetUpdate],
    ) -> None:
        """Record files that were put into a dataset's folder, and what is said of them and of it."""
        self.look_at(dataset_id, org_id, user)
        self._store.files.update_many(dataset_id, file_updates, org_id, user)
        if dataset_updates:
            self._store.datasets.update(dataset_id, dataset_updates, org_id, user)

    @contextlib.contextmanager
    def content(self, record: FileRecord) -> Iterator[int]:
        """A file's descriptor, to be read. Raises NotFoundError if it has gone, OSError."""
        try:
            with self.folder(record.association_id, record.org_id).opened(record.relative_path) as file:
                yield file
        except FileNotFoundError:
            raise NotFoundError(f"file {record.relative_path!r} isn't there any more") from None

    def _look_at_all(self, org_id: str) -> list[str]:
        """Scan every dataset; return why some could not be scanned."""
        unreadable: list[str] = []
        for dataset in self._store.datasets.list_all(org_id):
            try:
                self.look_at(dataset.dataset_id, org_id)
            except NotFoundError:  # it was deleted in the meantime
                continue
            except UnavailableError as error:
                unreadable.append(error.message)
                self._warn(dataset.dataset_id, f"queries use the last known files: {error.message}")
        return unreadable

    def _matching(
        self, dataset_id: str, org_id: str, include: Sequence[str], exclude: Sequence[str], after: str | None
    ) -> Generator[FileRecord]:
        wanted = _wanted(include, exclude)
        with contextlib.closing(self._store.files.list_dataset(dataset_id, org_id, after)) as records:
            for record in records:
                if wanted(record.relative_path):
                    yield record


def _wanted(include: Sequence[str], exclude: Sequence[str]) -> Callable[[str], bool]:
    """Whether a path matches. Raises InvalidRequestError for a pattern that can't be read."""
    included, excluded = _patterns(include), _patterns(exclude)

    def wanted(path: str) -> bool:
        return (included is None or included.match(path)) and (excluded is None or not excluded.match(path))

    return wanted


@contextlib.contextmanager
def _readable(what: str) -> Iterator[None]:
    """Turn an OSError into UnavailableError, as it is an outage of the disk and not a wrong request."""
    try:
        yield
    except OSError as error:
        if is_outage(error):
            raise
        raise UnavailableError(f"{what} can't be read: {error.strerror}: {error.filename}") from None


def _patterns(patterns: Sequence[str]) -> FilePatterns | None:
    if not patterns:
        return None
    try:
        return FilePatterns(patterns)
    except PatternError as error:
        raise InvalidRequestError(f"cannot read the pattern {error}") from None


def _of_version(record: FileRecord, version: int | None) -> FileRecord:
    if version not in (None, record.version):
        raise NotFoundError(
            f"version {version} of {record.relative_path!r} isn't kept; the newest is {record.version}"
        )
    return record


def _every(
    page_of: Callable[[QuerySpecification], Page[FileRecord]], condition: Condition | ConditionGroup
) -> Iterator[FileRecord]:
    spec = QuerySpecification(
        condition=condition, sort_by="relative_path", sort_direction=SortDirection.Ascending
    )
    while True:
        page = page_of(spec)
        yield from page.items
        if page.next_token is None:
            return
        spec = spec.model_copy(update={"after": page.next_token})
