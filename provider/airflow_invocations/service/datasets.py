"""Datasets with what lies in their folders: the folder decides which files there are, the store the rest."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path

from ..model import Condition, ConditionGroup, Page, QuerySpecification, SortDirection
from ..model.dataset import DatasetRecord, DatasetUpdate, FileRecord, FileUpdate, NewDataset
from .errors import InvalidRequestError, NotFoundError
from .file_patterns import FilePatterns, PatternError
from .folders import Folder, FoundFile, parts_of
from .roboql import read_roboql
from .store import Store

#: Files in one page, unless it asks for fewer.
MAX_FILES = 1000


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

    def create(self, request: NewDataset, org_id: str, user: str) -> DatasetRecord:
        """Make an empty dataset. Raises InvalidRequestError."""
        return self._store.create_dataset(request, org_id, user)

    def create_unless_there(self, query: str, request: NewDataset, org_id: str, user: str) -> DatasetRecord:
        """The oldest dataset that a RoboQL query selects; a new one if there is none."""
        condition = read_roboql(query)
        oldest = QuerySpecification(condition=condition, limit=1, sort_direction=SortDirection.Ascending)
        found = self._store.query_datasets(oldest, org_id).items
        return found[0] if found else self.create(request, org_id, user)

    def link(self, name: str, folder: Path, org_id: str, user: str) -> DatasetRecord:
        """Make a dataset of a folder that is there; nothing is copied.

        Raises:
            InvalidRequestError: there is no such folder.
            ConflictError: the name is taken.
        """
        if not folder.is_dir():
            raise InvalidRequestError(f"there is no folder {folder}")
        record = self._store.create_dataset(NewDataset(name=name), org_id, user, str(folder.resolve()))
        self.look_at(record.dataset_id, org_id, user)
        return record

    def look_at(self, dataset_id: str, org_id: str, user: str = "local") -> None:
        """Record what is in a dataset's folder now. Raises NotFoundError, also for a folder that is gone."""
        self._note(dataset_id, org_id, user, Folder.scan)

    def _look_at_file(self, dataset_id: str, path: str, org_id: str) -> None:
        """Record what is at one path now; a whole folder may take long to look at."""

        def find(folder: Folder) -> dict[str, FoundFile]:
            found = folder.find(path)
            return {} if found is None else {path: found}

        self._note(dataset_id, org_id, "local", find, [path])

    def _note(
        self,
        dataset_id: str,
        org_id: str,
        user: str,
        look: Callable[[Folder], Mapping[str, FoundFile]],
        paths: Sequence[str] | None = None,
    ) -> None:
        folder = self.folder(dataset_id, org_id)
        try:
            found = look(folder)
        except FileNotFoundError as error:
            raise NotFoundError(
                f"the folder of dataset {dataset_id!r} isn't there: {error.filename}"
            ) from None
        except OSError as error:
            raise InvalidRequestError(
                f"the folder of dataset {dataset_id!r} can't be read: {error.strerror}: {error.filename}"
            ) from None
        self._store.note_files(dataset_id, org_id, found, user, paths)

    def folder(self, dataset_id: str, org_id: str) -> Folder:
        """Where a dataset's files lie. Raises NotFoundError."""
        linked = self._store.folder_of_dataset(dataset_id, org_id)
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
        """Files by path; the token of the next page is the last path. Raises NotFoundError."""
        if after is None:
            self.look_at(dataset_id, org_id)
        matching = self._matching(dataset_id, org_id, include, exclude, after)
        with contextlib.closing(matching):
            items = list(itertools.islice(matching, limit + 1))
        more = len(items) > limit
        return Page(items=items[:limit], next_token=items[limit - 1].relative_path if more else None)

    def files(
        self, dataset_id: str, org_id: str, include: Sequence[str], exclude: Sequence[str]
    ) -> list[FileRecord]:
        """All files whose paths match, by path. Raises NotFoundError, InvalidRequestError."""
        self.look_at(dataset_id, org_id)
        return list(self._matching(dataset_id, org_id, include, exclude, None))

    def file(self, file_id: str, org_id: str, version: int | None = None) -> FileRecord:
        """A file. Raises NotFoundError, also for a version that isn't the newest: no other is kept."""
        record = self._store.get_file(file_id, org_id)
        self._look_at_file(record.association_id, record.relative_path, org_id)
        return _of_version(self._store.get_file(file_id, org_id), version)

    def file_by_path(self, dataset_id: str, path: str, org_id: str, version: int | None = None) -> FileRecord:
        """A file by its path. Raises as `file` does, and InvalidRequestError for a path with `..`."""
        try:
            parts_of(path)
        except ValueError as error:
            raise InvalidRequestError(str(error)) from None
        self._look_at_file(dataset_id, path, org_id)
        return _of_version(self._store.get_file_by_path(dataset_id, path, org_id), version)

    def query_files(self, spec: QuerySpecification, org_id: str) -> Page[FileRecord]:
        """A page of files of any dataset. Raises InvalidRequestError."""
        if spec.after is None:
            self._look_at_all(org_id)
        return self._store.query_files(spec, org_id)

    def find_files(self, query: str, org_id: str) -> list[FileRecord]:
        """All files that a RoboQL query selects, by path. Raises InvalidRequestError."""
        condition = read_roboql(query)
        self._look_at_all(org_id)
        return list(_every(lambda spec: self._store.query_files(spec, org_id), condition))

    def update_file(self, file_id: str, update: FileUpdate, org_id: str, user: str) -> FileRecord:
        """Change what is said of a file. Raises NotFoundError, InvalidRequestError."""
        return self._store.update_file(file_id, update, org_id, user)

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
        self._store.update_files(dataset_id, file_updates, org_id, user)
        if dataset_updates:
            self._store.update_dataset(dataset_id, dataset_updates, org_id, user)

    @contextlib.contextmanager
    def content(self, record: FileRecord) -> Iterator[int]:
        """A file's descriptor, to be read. Raises NotFoundError if it has gone."""
        try:
            with self.folder(record.association_id, record.org_id).opened(record.relative_path) as file:
                yield file
        except FileNotFoundError:
            raise NotFoundError(f"file {record.relative_path!r} isn't there any more") from None

    def _look_at_all(self, org_id: str) -> None:
        for dataset in self._store.list_datasets(org_id):
            with contextlib.suppress(NotFoundError):  # the folder is away, a disk that isn't mounted, say
                self.look_at(dataset.dataset_id, org_id)

    def _matching(
        self, dataset_id: str, org_id: str, include: Sequence[str], exclude: Sequence[str], after: str | None
    ) -> Generator[FileRecord]:
        included, excluded = _patterns(include), _patterns(exclude)
        with contextlib.closing(self._store.files_of(dataset_id, org_id, after)) as records:
            for record in records:
                path = record.relative_path
                if (included is None or included.match(path)) and not (
                    excluded is not None and excluded.match(path)
                ):
                    yield record


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
