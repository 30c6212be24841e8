"""Files of datasets, as the last scan of each folder found them."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from ...models import Page, QuerySpecification
from ...models.dataset import FileRecord, FileStatus, FileUpdate
from ..dataset_storage import FoundFile
from ..errors import NotFoundError
from ..query.statements import next_token, page_of
from ..storage_credentials import BUCKET
from ..timestamps import now, to_datetime
from .database import QUERY_TIMEOUT, Database
from .datasets import apply_update, require_dataset
from .queryables import FILES
from .tables import files

_OF_DATASET = (
    sa.select(files).where(files.c.dataset_id == sa.bindparam("dataset"), files.c.available).order_by("path")
)

_KNOWN = sa.select(
    files.c.number, files.c.path, files.c.size, files.c.written, files.c.version, files.c.available
).where(files.c.dataset_id == sa.bindparam("dataset"))

#: The record of a file whose content has changed: a new version isn't ingested.
_NOT_INGESTED = sa.func.json_remove(files.c.record, "$.ingestion_status", "$.ingestable")

#: Rows that are read at a time when listing a whole dataset.
_CHUNK = 2000


class FileRepository:
    """Reads and writes the records of files."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def record_scan(
        self,
        dataset_id: str,
        org_id: str,
        found: Mapping[str, FoundFile],
        user: str,
        paths: Sequence[str] | None = None,
    ) -> None:
        """Record the files that a scan of a dataset's folder found.

        :param found: the files by path.
        :param paths: the paths that were scanned; None: the whole folder.
        """
        known = _KNOWN if paths is None else _KNOWN.where(files.c.path.in_(paths))
        with self._database.read() as connection:
            if not any(_differences(connection, known, dataset_id, found)):
                return
        with self._database.write() as connection:
            new, changed, gone = _differences(connection, known, dataset_id, found)
            if new:
                rows = [_new_file(path, found[path], dataset_id, org_id, user) for path in new]
                connection.execute(files.insert(), rows)
            for row in changed:
                file = found[row.path]
                values = {
                    "size": file.size,
                    "written": file.written,
                    "version": row.version + 1,
                    "available": True,
                    "modified": file.written // 1000,
                    "modified_by": user,
                    "record": _NOT_INGESTED,
                }
                connection.execute(files.update().where(files.c.number == row.number).values(values))
            if gone:
                forget = files.update().where(files.c.number == sa.bindparam("which")).values(available=False)
                connection.execute(forget, [{"which": row.number} for row in gone])

    def get(self, file_id: str, org_id: str) -> FileRecord:
        """Return an existing file. Raises NotFoundError."""
        with self._database.read() as connection:
            return _to_record(_require_file(connection, files.c.file_id == file_id, org_id, file_id))

    def get_by_path(self, dataset_id: str, path: str, org_id: str) -> FileRecord:
        """Return an existing file by its dataset and path. Raises NotFoundError."""
        with self._database.read() as connection:
            require_dataset(connection, dataset_id, org_id)
            named = (files.c.dataset_id == dataset_id) & (files.c.path == path)
            return _to_record(_require_file(connection, named, org_id, f"{path!r} in {dataset_id}"))

    def list_dataset(self, dataset_id: str, org_id: str, after: str | None = None) -> Generator[FileRecord]:
        """Yield the existing files of a dataset by path, from after a path on. Raises NotFoundError."""
        beyond = _OF_DATASET if after is None else _OF_DATASET.where(files.c.path > after)
        with self._database.read() as connection:
            require_dataset(connection, dataset_id, org_id)
            rows = connection.execute(beyond, {"dataset": dataset_id}).yield_per(_CHUNK)
            for row in rows:
                yield _to_record(row)

    def query(
        self, spec: QuerySpecification, org_id: str, timeout: float = QUERY_TIMEOUT
    ) -> Page[FileRecord]:
        """Return a page of the existing files of all datasets.

        :param timeout: seconds that the query may take.
        :raises InvalidRequestError: the query is invalid or takes longer.
        """
        statement, sort_by = page_of(spec, FILES, files.c.org_id == org_id, files.c.available)
        with self._database.query(timeout) as connection:
            rows = connection.execute(statement).all()
        items = [_to_record(row) for row in rows[: spec.limit]]
        return Page(items=items, next_token=next_token(spec, sort_by, rows))

    def update(self, file_id: str, update: FileUpdate, org_id: str, user: str) -> FileRecord:
        """Change a file's metadata. Raises NotFoundError, InvalidRequestError."""
        with self._database.write() as connection:
            row = _require_file(connection, files.c.file_id == file_id, org_id, file_id)
            _update(connection, row, [update], user)
            return _to_record(_require_file(connection, files.c.file_id == file_id, org_id, file_id))

    def rename(self, file_id: str, path: str, org_id: str, user: str, move: Callable[[], None]) -> FileRecord:
        """Record a file at another path of its dataset, and move its content.

        :param move: moves the content; if it fails, nothing is recorded.
        :raises NotFoundError: no such file.
        """
        with self._database.write() as connection:
            row = _require_file(connection, files.c.file_id == file_id, org_id, file_id)
            former = (files.c.dataset_id == row.dataset_id) & (files.c.path == path) & ~files.c.available
            connection.execute(files.delete().where(former))
            values = {"path": path, "modified": now(), "modified_by": user}
            connection.execute(files.update().where(files.c.number == row.number).values(values))
            move()
            return _to_record(_require_file(connection, files.c.file_id == file_id, org_id, file_id))

    def rename_folder(
        self, dataset_id: str, old_path: str, new_path: str, user: str, move: Callable[[], None]
    ) -> None:
        """Record the files of a folder at its new path, and move the folder.

        :param move: moves the folder; if it fails, nothing is recorded.
        """
        of_dataset = files.c.dataset_id == dataset_id
        former = of_dataset & files.c.path.startswith(f"{new_path}/", autoescape=True) & ~files.c.available
        inside = of_dataset & files.c.path.startswith(f"{old_path}/", autoescape=True) & files.c.available
        path = sa.literal(new_path) + sa.func.substr(files.c.path, len(old_path) + 1)
        with self._database.write() as connection:
            connection.execute(files.delete().where(former))
            values = {"path": path, "modified": now(), "modified_by": user}
            connection.execute(files.update().where(inside).values(values))
            move()

    def update_many(
        self, dataset_id: str, updates: Mapping[str, Sequence[FileUpdate]], org_id: str, user: str
    ) -> None:
        """Change the metadata of files, all or none.

        :param updates: by path, the updates in the order to apply them.
        :raises NotFoundError: no such file.
        :raises InvalidRequestError: a change can't be applied.
        """
        with self._database.write() as connection:
            for path, changes in updates.items():
                named = (files.c.dataset_id == dataset_id) & (files.c.path == path)
                row = _require_file(connection, named, org_id, f"{path!r} in {dataset_id}")
                _update(connection, row, changes, user)


def _differences(
    connection: sa.Connection, wanted: sa.Select[Any], dataset_id: str, found: Mapping[str, FoundFile]
) -> tuple[list[str], list[Any], list[Any]]:
    """Return the new paths, the rows of changed files, and the rows of files that are gone."""
    known = {row.path: row for row in connection.execute(wanted, {"dataset": dataset_id})}
    new = [path for path in found if path not in known]
    gone = [row for path, row in known.items() if row.available and path not in found]
    changed = [
        row
        for path, row in known.items()
        if (file := found.get(path)) is not None
        and (row.size, row.written, row.available) != (file.size, file.written, True)
    ]
    return new, changed, gone


def _new_file(path: str, file: FoundFile, dataset_id: str, org_id: str, user: str) -> dict[str, Any]:
    written = file.written // 1000
    return {
        "file_id": f"fl_{secrets.token_hex(8)}",
        "org_id": org_id,
        "dataset_id": dataset_id,
        "path": path,
        "size": file.size,
        "written": file.written,
        "version": 1,
        "available": True,
        "created": written,
        "created_by": user,
        "modified": written,
        "modified_by": user,
        "record": {"description": None, "device_id": None, "metadata": {}, "tags": []},
    }


def _update(connection: sa.Connection, row: sa.Row[Any], updates: Iterable[FileUpdate], user: str) -> None:
    record = row.record
    for update in updates:
        record = apply_update(record, update)
    values = {"record": record, "modified": now(), "modified_by": user}
    connection.execute(files.update().where(files.c.number == row.number).values(values))


def _require_file(
    connection: sa.Connection, named: sa.ColumnElement[bool], org_id: str, what: str
) -> sa.Row[Any]:
    wanted = sa.select(files).where(named, files.c.org_id == org_id, files.c.available)
    row = connection.execute(wanted).one_or_none()
    if row is None:
        raise NotFoundError(f"no file {what}")
    return row


def _to_record(row: sa.Row[Any]) -> FileRecord:
    return FileRecord(
        association_id=row.dataset_id,
        created=to_datetime(row.created),
        created_by=row.created_by,
        file_id=row.file_id,
        modified=to_datetime(row.modified),
        modified_by=row.modified_by,
        name=row.path.rpartition("/")[2],
        org_id=row.org_id,
        relative_path=row.path,
        size=row.size,
        status=FileStatus.Available,
        uri=f"s3://{BUCKET}/{row.dataset_id}/{row.file_id}",
        version=row.version,
        **row.record,
    )
