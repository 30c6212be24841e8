"""Datasets and their files: the folder decides which files exist, the database holds their metadata."""

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
from .dataset_storage import Folder, parts_of
from .db import Store
from .errors import ConflictError, InvalidRequestError, NotFoundError, UnavailableError
from .outages import is_outage
from .query.file_patterns import FilePatterns, PatternError
from .query.roboql import RoboqlQuery, read_roboql
from .skipped_entries import EntryKind, SkippedEntry, summarize

#: Seconds that a query for an invocation's input may take per page of files, so that an action doesn't fail
#: because the machine is busy.
FIND_TIMEOUT = 600.0

#: Files in one page, at most.
MAX_FILES = 1000

#: Called with a message for an invocation's log.
Notice = Callable[[str], object]

_T = TypeVar("_T")

_log = logging.getLogger(__name__)


class DatasetFiles:
    """Reads and changes datasets and their files.

    The folder of a dataset is scanned before its files are returned, so that the dataset has every change
    that was made in the folder. Only the latest version of a file's content is kept.

    :param store: where datasets and files are recorded.
    :param root: the folder that contains the folders of datasets without a linked folder.
    """

    def __init__(self, store: Store, root: Path) -> None:
        self._store = store
        self._root = root
        self._lock = threading.Lock()
        #: The last warning that was logged, by dataset.
        self._warned: dict[str, str] = {}

    def create(self, request: NewDataset, org_id: str, user: str) -> DatasetRecord:
        """Create an empty dataset. Raises InvalidRequestError."""
        return self._store.datasets.create(request, org_id, user)

    def find_or_create(self, query: str, request: NewDataset, org_id: str, user: str) -> DatasetRecord:
        """Return the oldest dataset that a RoboQL query selects; create one if there is none."""
        wanted = read_roboql(query).page(size=1)
        if wanted.sort_by is None:
            wanted = wanted.model_copy(update={"sort_direction": SortDirection.Ascending})
        found = self._store.datasets.query(wanted, org_id).items
        return found[0] if found else self.create(request, org_id, user)

    def link(
        self, name: str, folder: Path, org_id: str, user: str
    ) -> tuple[DatasetRecord, Sequence[SkippedEntry]]:
        """Create a dataset from an existing folder, without copying it.

        :return: the dataset, and the skipped entries of the folder.
        :raises InvalidRequestError: there is no such folder.
        :raises ConflictError: the name is taken.
        :raises UnavailableError: the folder can't be read.
        """
        if not folder.is_dir():
            raise InvalidRequestError(f"there is no folder {folder}")
        with _readable(f"the folder {folder}"):
            found = Folder(folder.resolve()).scan()
        record = self._store.datasets.create(NewDataset(name=name), org_id, user, str(folder.resolve()))
        self._store.files.record_scan(record.dataset_id, org_id, found.files, user)
        return record, found.skipped

    def scan(self, dataset_id: str, org_id: str, user: str = "local") -> Sequence[SkippedEntry]:
        """Record the current content of a dataset's folder; return the skipped entries.

        :raises NotFoundError: no such dataset.
        :raises UnavailableError: its folder can't be read.
        """
        found = self._read_folder(dataset_id, org_id, Folder.scan)
        self._store.files.record_scan(dataset_id, org_id, found.files, user)
        # Unfinished uploads are temporary, so they aren't worth a warning.
        skipped = summarize(entry for entry in found.skipped if entry.kind is not EntryKind.Draft)
        self._warn(dataset_id, f"left out of dataset {dataset_id}: {skipped}" if skipped else None)
        return found.skipped

    def _scan_file(self, dataset_id: str, path: str, org_id: str) -> None:
        """Record the file at one path, as the scan of a whole folder may take long."""
        found = self._read_folder(dataset_id, org_id, lambda folder: folder.find(path))
        self._store.files.record_scan(
            dataset_id, org_id, {} if found is None else {path: found}, "local", [path]
        )

    def _read_folder(self, dataset_id: str, org_id: str, read: Callable[[Folder], _T]) -> _T:
        with _readable(f"the folder of dataset {dataset_id!r}"):
            return read(self.folder(dataset_id, org_id))

    def _warn(self, dataset_id: str, warning: str | None) -> None:
        """Log a warning about a dataset, unless it equals the last one."""
        with self._lock:
            last = self._warned.pop(dataset_id, None)
            if warning is not None:
                self._warned[dataset_id] = warning
        if warning not in (None, last):
            _log.warning("%s", warning)

    def folder(self, dataset_id: str, org_id: str) -> Folder:
        """Return the folder of a dataset's files. Raises NotFoundError, OSError."""
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
        """Return a page of a dataset's files, by path.

        :param include: patterns of the files to return; empty: all files.
        :param exclude: patterns of files to leave out.
        :param after: the token of the previous page, which is its last path.
        :param limit: files in the page, at most.
        :raises NotFoundError: no such dataset.
        :raises InvalidRequestError: a pattern is invalid.
        :raises UnavailableError: the folder can't be read.
        """
        if after is None:
            self.scan(dataset_id, org_id)
        matching = self._matching(dataset_id, org_id, include, exclude, after)
        with contextlib.closing(matching):
            items = list(itertools.islice(matching, limit + 1))
        more = len(items) > limit
        return Page(items=items[:limit], next_token=items[limit - 1].relative_path if more else None)

    def files(
        self, dataset_id: str, org_id: str, include: Sequence[str], exclude: Sequence[str], notice: Notice
    ) -> list[FileRecord]:
        """Return all files whose paths match, by path.

        :param notice: called if an entry that matches is skipped.
        :raises NotFoundError: no such dataset.
        :raises InvalidRequestError: a pattern is invalid.
        :raises UnavailableError: the folder can't be read.
        """
        matches = _matcher(include, exclude)
        if skipped := [entry for entry in self.scan(dataset_id, org_id) if matches(entry.path)]:
            notice(f"left out of the input from dataset {dataset_id}: {summarize(skipped)}")
        return list(self._matching(dataset_id, org_id, include, exclude, None))

    def file(self, file_id: str, org_id: str, version: int | None = None) -> FileRecord:
        """Return a file. Raises NotFoundError, also for a version that isn't the latest one."""
        record = self._store.files.get(file_id, org_id)
        self._scan_file(record.association_id, record.relative_path, org_id)
        return _of_version(self._store.files.get(file_id, org_id), version)

    def file_by_path(self, dataset_id: str, path: str, org_id: str, version: int | None = None) -> FileRecord:
        """Return a file by path. Raises as `file` does, and InvalidRequestError for a path with `..`."""
        try:
            parts_of(path)
        except ValueError as error:
            raise InvalidRequestError(str(error)) from None
        self._scan_file(dataset_id, path, org_id)
        return _of_version(self._store.files.get_by_path(dataset_id, path, org_id), version)

    def query_files(self, spec: QuerySpecification, org_id: str) -> Page[FileRecord]:
        """Return a page of the files of all datasets. Raises InvalidRequestError."""
        if spec.after is None:
            self._scan_all(org_id)
        return self._store.files.query(spec, org_id)

    def query_datasets(self, spec: QuerySpecification, org_id: str) -> Page[DatasetRecord]:
        """Return a page of datasets. Raises InvalidRequestError."""
        if spec.after is None and _refers_to_files(spec.condition):
            self._scan_all(org_id)
        return self._store.datasets.query(spec, org_id)

    def find_files(self, query: str, org_id: str, notice: Notice) -> list[FileRecord]:
        """Return all files that a RoboQL query selects, in its order. Raises InvalidRequestError.

        A query without SORT BY is in the order of paths.

        If a dataset's folder can't be read, the query uses its last known files.

        :param notice: called if a folder can't be read.
        """
        wanted = read_roboql(query)
        for reason in self._scan_all(org_id):
            notice(f"the query uses the last known files: {reason}")
        found = _all_pages(lambda spec: self._store.files.query(spec, org_id, FIND_TIMEOUT), wanted)
        return list(itertools.islice(found, wanted.limit))

    def update_file(self, file_id: str, update: FileUpdate, org_id: str, user: str) -> FileRecord:
        """Change a file's metadata. Raises NotFoundError, InvalidRequestError."""
        return self._store.files.update(file_id, update, org_id, user)

    def record_upload(
        self,
        dataset_id: str,
        org_id: str,
        user: str,
        file_updates: Mapping[str, Sequence[FileUpdate]],
        dataset_updates: Sequence[DatasetUpdate],
    ) -> None:
        """Record files that were added to a dataset's folder, and metadata of them and of the dataset."""
        self.scan(dataset_id, org_id, user)
        self._store.files.update_many(dataset_id, file_updates, org_id, user)
        if dataset_updates:
            self._store.datasets.update(dataset_id, dataset_updates, org_id, user)

    def add(
        self,
        dataset_id: str,
        org_id: str,
        user: str,
        contents: Mapping[str, Path],
        updates: Mapping[str, Sequence[FileUpdate]],
    ) -> dict[str, str]:
        """Move files into a dataset's folder.

        :param contents: the files by their paths in the dataset.
        :param updates: metadata to record, by path.
        :return: the id of each file, by path.
        :raises InvalidRequestError: a path is a folder of the dataset.
        :raises NotFoundError: no such dataset.
        """
        folder = self.folder(dataset_id, org_id)
        for path, content in contents.items():
            with _possible(path):
                folder.move_in(content, path)
        found = {path: file for path in contents if (file := folder.find(path)) is not None}
        self._store.files.record_scan(dataset_id, org_id, found, user, list(contents))
        self._store.files.update_many(dataset_id, updates, org_id, user)
        return {path: self._store.files.get_by_path(dataset_id, path, org_id).file_id for path in contents}

    def get(self, dataset_id: str, org_id: str) -> DatasetRecord:
        """Return a dataset. Raises NotFoundError."""
        return self._store.datasets.get(dataset_id, org_id)

    def directories(self, dataset_id: str, org_id: str) -> list[str]:
        """Return the paths of a dataset's directories. Raises NotFoundError, UnavailableError."""
        return self._read_folder(dataset_id, org_id, Folder.folders)

    def create_directory(
        self, dataset_id: str, path: str, org_id: str, *, may_exist: bool, with_parents: bool
    ) -> None:
        """Create a directory.

        :raises NotFoundError: no such dataset.
        :raises ConflictError: it exists, and may not.
        :raises InvalidRequestError: the path can't be a directory, or its parent doesn't exist.
        """
        folder = self.folder(dataset_id, org_id)
        try:
            with _possible(path):
                folder.make_folder(path, with_parents=with_parents)
        except InvalidRequestError:
            if path not in folder.folders():
                raise
            if not may_exist:
                raise ConflictError(f"dataset {dataset_id} has a directory {path!r} already") from None

    def rename_directory(self, dataset_id: str, old_path: str, new_path: str, org_id: str, user: str) -> None:
        """Move a directory within its dataset; its files keep their ids.

        :raises NotFoundError: no such dataset or directory.
        :raises InvalidRequestError: the new path exists, is in the directory itself, or isn't valid.
        """
        self.scan(dataset_id, org_id)
        folder = self.folder(dataset_id, org_id)
        known = folder.folders()
        if old_path not in known:
            raise NotFoundError(f"dataset {dataset_id} has no directory {old_path!r}")
        with _possible(new_path):
            if new_path in known or folder.find(new_path) is not None:
                raise InvalidRequestError(f"dataset {dataset_id} has {new_path!r} already")
        if new_path.startswith(f"{old_path}/"):
            raise InvalidRequestError(f"{new_path!r} is in the directory {old_path!r} itself")

        def move() -> None:
            with _possible(new_path):
                folder.rename(old_path, new_path)

        self._store.files.rename_folder(dataset_id, old_path, new_path, user, move)

    def delete_directories(self, dataset_id: str, paths: Sequence[str], org_id: str, user: str) -> None:
        """Delete directories with all their files. Raises NotFoundError, InvalidRequestError."""
        folder = self.folder(dataset_id, org_id)
        for path in paths:
            with _possible(path), contextlib.suppress(FileNotFoundError):
                folder.delete_folder(path)
        self.scan(dataset_id, org_id, user)

    def delete_file(self, file_id: str, org_id: str) -> None:
        """Delete a file from its dataset's folder. Raises NotFoundError."""
        record = self.file(file_id, org_id)
        folder = self.folder(record.association_id, org_id)
        with contextlib.suppress(FileNotFoundError):
            folder.delete(record.relative_path)
        self._scan_file(record.association_id, record.relative_path, org_id)

    def rename_file(self, file_id: str, new_path: str, org_id: str, user: str) -> FileRecord:
        """Move a file within its dataset; it keeps its id.

        :raises NotFoundError: no such file.
        :raises InvalidRequestError: the path is none below a folder, or is a folder.
        :raises ConflictError: the dataset has a file of the new path.
        """
        record = self.file(file_id, org_id)
        folder = self.folder(record.association_id, org_id)
        with _possible(new_path):
            if folder.find(new_path) is not None:
                raise ConflictError(f"dataset {record.association_id} has a file {new_path!r} already")

        def move() -> None:
            with _possible(new_path):
                folder.rename(record.relative_path, new_path)

        return self._store.files.rename(file_id, new_path, org_id, user, move)

    @contextlib.contextmanager
    def content(self, record: FileRecord) -> Iterator[int]:
        """Yield a descriptor to read a file. Raises NotFoundError if it has disappeared, OSError."""
        try:
            with self.folder(record.association_id, record.org_id).opened(record.relative_path) as file:
                yield file
        except FileNotFoundError:
            raise NotFoundError(f"file {record.relative_path!r} no longer exists") from None

    def _scan_all(self, org_id: str) -> list[str]:
        """Scan every dataset; return why some could not be scanned."""
        unreadable: list[str] = []
        for dataset in self._store.datasets.list_all(org_id):
            try:
                self.scan(dataset.dataset_id, org_id)
            except NotFoundError:  # the dataset was deleted in the meantime
                continue
            except UnavailableError as error:
                unreadable.append(error.message)
                self._warn(dataset.dataset_id, f"queries use the last known files: {error.message}")
        return unreadable

    def _matching(
        self, dataset_id: str, org_id: str, include: Sequence[str], exclude: Sequence[str], after: str | None
    ) -> Generator[FileRecord]:
        matches = _matcher(include, exclude)
        with contextlib.closing(self._store.files.list_dataset(dataset_id, org_id, after)) as records:
            for record in records:
                if matches(record.relative_path):
                    yield record


def _refers_to_files(condition: Condition | ConditionGroup | None) -> bool:
    if isinstance(condition, ConditionGroup):
        return any(_refers_to_files(part) for part in condition.conditions)
    return condition is not None and condition.field.startswith(("file.", "file[", "files.", "files["))


def _matcher(include: Sequence[str], exclude: Sequence[str]) -> Callable[[str], bool]:
    """Return a function that matches a path. Raises InvalidRequestError for an invalid pattern."""
    included, excluded = _patterns(include), _patterns(exclude)

    def matches(path: str) -> bool:
        return (included is None or included.match(path)) and (excluded is None or not excluded.match(path))

    return matches


@contextlib.contextmanager
def _readable(what: str) -> Iterator[None]:
    """Raise UnavailableError for an OSError of a folder, unless it is an outage of the server itself."""
    try:
        yield
    except OSError as error:
        if is_outage(error):
            raise
        raise UnavailableError(f"{what} can't be read: {error.strerror}: {error.filename}") from None


@contextlib.contextmanager
def _possible(path: str) -> Iterator[None]:
    """Raise InvalidRequestError for a path that the folder can't have."""
    try:
        yield
    except ValueError as error:
        raise InvalidRequestError(str(error)) from None
    except OSError as error:
        if is_outage(error):
            raise
        raise InvalidRequestError(f"{path!r} can't be written: {error.strerror}") from None


def _patterns(patterns: Sequence[str]) -> FilePatterns | None:
    if not patterns:
        return None
    try:
        return FilePatterns(patterns)
    except PatternError as error:
        raise InvalidRequestError(f"invalid pattern {error}") from None


def _of_version(record: FileRecord, version: int | None) -> FileRecord:
    if version not in (None, record.version):
        raise NotFoundError(
            f"version {version} of {record.relative_path!r} is not available; the newest is {record.version}"
        )
    return record


def _all_pages(
    page_of: Callable[[QuerySpecification], Page[FileRecord]], wanted: RoboqlQuery
) -> Iterator[FileRecord]:
    spec = wanted.page()
    if spec.sort_by is None:
        by_path = {"sort_by": "relative_path", "sort_direction": SortDirection.Ascending}
        spec = spec.model_copy(update=by_path)
    while True:
        page = page_of(spec)
        yield from page.items
        if page.next_token is None:
            return
        spec = spec.model_copy(update={"after": page.next_token})
