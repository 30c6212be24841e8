"""The datasets of the repository and the files that are known to be in them."""

from __future__ import annotations

import secrets
from collections.abc import Generator, Iterable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from ...models import (
    UNSPECIFIED_DATA_SOURCE,
    InvocationRequest,
    MetadataChangeset,
    Page,
    QuerySpecification,
    UploadDestinationType,
)
from ...models.dataset import (
    DatasetRecord,
    DatasetUpdate,
    FileRecord,
    FileStatus,
    FileUpdate,
    NewDataset,
)
from ..api.errors import ConflictError, InvalidRequestError, NotFoundError, UnsupportedError
from ..dataset_storage import FoundFile
from ..query.file_patterns import FilePatterns, PatternError
from ..query.roboql import read_roboql
from ..query.statements import Queryable, next_token, page_of
from ..timestamps import moment, now
from .database import QUERY_WITHIN, Database
from .tables import datasets, files

_DATASETS = Queryable(
    table=datasets,
    columns={
        "dataset_id": datasets.c.dataset_id,
        "org_id": datasets.c.org_id,
        "name": datasets.c.name,
        "created": datasets.c.created,
        "created_by": datasets.c.created_by,
        "modified": datasets.c.modified,
        "modified_by": datasets.c.modified_by,
    },
    times=frozenset({"created", "modified"}),
    documents=frozenset({"description", "device_id", "metadata", "tags"}),
)

_FILES = Queryable(
    table=files,
    columns={
        "association_id": files.c.dataset_id,
        "dataset_id": files.c.dataset_id,
        "file_id": files.c.file_id,
        "path": files.c.path,
        "relative_path": files.c.path,
        "size": files.c.size,
        "version": files.c.version,
        "created": files.c.created,
        "created_by": files.c.created_by,
        "modified": files.c.modified,
        "modified_by": files.c.modified_by,
    },
    times=frozenset({"created", "modified"}),
    documents=frozenset({"description", "device_id", "metadata", "tags"}),
)

_OF_DATASET = (
    sa.select(files).where(files.c.dataset_id == sa.bindparam("dataset"), files.c.available).order_by("path")
)

_KNOWN = sa.select(
    files.c.number, files.c.path, files.c.size, files.c.written, files.c.version, files.c.available
).where(files.c.dataset_id == sa.bindparam("dataset"))

#: Files that are read at once where a whole dataset is gone through.
_CHUNK = 2000


class Datasets(Database):
    """Reads and writes of datasets, and of what is known of their files."""

    def create_dataset(
        self, request: NewDataset, org_id: str, user: str, folder: str | None = None
    ) -> DatasetRecord:
        """Store a new dataset; `folder` None: the server keeps one for it.

        Raises:
            InvalidRequestError: custom fields are asked for; there are none here.
            ConflictError: a linked folder's name is taken.
        """
        if request.custom_fields:
            raise InvalidRequestError("custom_fields: this server defines none; use metadata")
        about = {"description": request.description, "device_id": request.device_id}
        present = now()
        row = {
            "dataset_id": f"ds_{secrets.token_hex(8)}",
            "org_id": org_id,
            "name": request.name,
            "folder": folder,
            "created": present,
            "created_by": user,
            "modified": present,
            "modified_by": user,
            "record": {
                **about,
                "metadata": request.metadata,
                "tags": list(dict.fromkeys(request.tags)),
            },
        }
        with self._write() as connection:
            if folder is not None:
                _require_free(connection, org_id, request.name)
            connection.execute(datasets.insert().values(row))
            return _dataset_record(_require_dataset(connection, str(row["dataset_id"]), org_id))

    def get_dataset(self, dataset_id: str, org_id: str) -> DatasetRecord:
        """A dataset. Raises NotFoundError."""
        with self._read() as connection:
            return _dataset_record(_require_dataset(connection, dataset_id, org_id))

    def folder_of_dataset(self, dataset_id: str, org_id: str) -> str | None:
        """The folder that a dataset was linked to; None: the server's own. Raises NotFoundError."""
        with self._read() as connection:
            folder: str | None = _require_dataset(connection, dataset_id, org_id).folder
            return folder

    def list_datasets(self, org_id: str) -> list[DatasetRecord]:
        """All datasets, oldest first."""
        wanted = sa.select(datasets).where(datasets.c.org_id == org_id).order_by(datasets.c.number)
        with self._read() as connection:
            return [_dataset_record(row) for row in connection.execute(wanted)]

    def query_datasets(self, spec: QuerySpecification, org_id: str) -> Page[DatasetRecord]:
        """A page of datasets. Raises InvalidRequestError."""
        statement, sort_by = page_of(spec, _DATASETS, datasets.c.org_id == org_id)
        with self._read_bounded() as connection:
            rows = connection.execute(statement).all()
        items = [_dataset_record(row) for row in rows[: spec.limit]]
        return Page(items=items, next_token=next_token(spec, sort_by, rows))

    def update_dataset(
        self, dataset_id: str, updates: Sequence[DatasetUpdate], org_id: str, user: str
    ) -> DatasetRecord:
        """Change a dataset, one update after the other. Raises NotFoundError, InvalidRequestError."""
        with self._write() as connection:
            row = _require_dataset(connection, dataset_id, org_id)
            name, record = row.name, row.record
            for update in updates:
                if update.custom_fields_changeset:
                    raise InvalidRequestError("custom_fields_changeset: this server defines no fields")
                name = update.name if "name" in update.model_fields_set else name
                record = _changed(record, update)
            values = {
                "name": name,
                "record": record,
                "modified": now(),
                "modified_by": user,
                "version": row.version + 1,
            }
            connection.execute(datasets.update().where(datasets.c.number == row.number).values(values))
            return _dataset_record(_require_dataset(connection, dataset_id, org_id))

    def delete_dataset(self, dataset_id: str, org_id: str) -> None:
        """Forget a dataset and its files; nothing on the disk is touched. Raises NotFoundError."""
        with self._write() as connection:
            _require_dataset(connection, dataset_id, org_id)
            connection.execute(files.delete().where(files.c.dataset_id == dataset_id))
            connection.execute(datasets.delete().where(datasets.c.dataset_id == dataset_id))

    def note_files(
        self,
        dataset_id: str,
        org_id: str,
        found: Mapping[str, FoundFile],
        user: str,
        paths: Sequence[str] | None = None,
    ) -> None:
        """Make what is known of a dataset's files what was found; `paths` None: everywhere, else at these."""
        known = _KNOWN if paths is None else _KNOWN.where(files.c.path.in_(paths))
        with self._read() as connection:
            if not any(_differences(connection, known, dataset_id, found)):
                return
        with self._write() as connection:
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
                }
                connection.execute(files.update().where(files.c.number == row.number).values(values))
            if gone:
                forget = files.update().where(files.c.number == sa.bindparam("which")).values(available=False)
                connection.execute(forget, [{"which": row.number} for row in gone])

    def get_file(self, file_id: str, org_id: str) -> FileRecord:
        """A file that is there. Raises NotFoundError."""
        with self._read() as connection:
            return _file_record(_require_file(connection, files.c.file_id == file_id, org_id, file_id))

    def get_file_by_path(self, dataset_id: str, path: str, org_id: str) -> FileRecord:
        """A file that is there, by its dataset and path. Raises NotFoundError."""
        with self._read() as connection:
            _require_dataset(connection, dataset_id, org_id)
            named = (files.c.dataset_id == dataset_id) & (files.c.path == path)
            return _file_record(_require_file(connection, named, org_id, f"{path!r} in {dataset_id}"))

    def files_of(self, dataset_id: str, org_id: str, after: str | None = None) -> Generator[FileRecord]:
        """The files that are there, by path, those beyond `after` only. Raises NotFoundError."""
        beyond = _OF_DATASET if after is None else _OF_DATASET.where(files.c.path > after)
        with self._read() as connection:
            _require_dataset(connection, dataset_id, org_id)
            rows = connection.execute(beyond, {"dataset": dataset_id}).yield_per(_CHUNK)
            for row in rows:
                yield _file_record(row)

    def query_files(
        self, spec: QuerySpecification, org_id: str, within: float = QUERY_WITHIN
    ) -> Page[FileRecord]:
        """A page of the files that are there, of any dataset, found within some seconds.

        Raises:
            InvalidRequestError: it isn't understood, or takes longer.
        """
        statement, sort_by = page_of(spec, _FILES, files.c.org_id == org_id, files.c.available)
        with self._read_bounded(within) as connection:
            rows = connection.execute(statement).all()
        items = [_file_record(row) for row in rows[: spec.limit]]
        return Page(items=items, next_token=next_token(spec, sort_by, rows))

    def update_file(self, file_id: str, update: FileUpdate, org_id: str, user: str) -> FileRecord:
        """Change what is said of a file. Raises NotFoundError, InvalidRequestError."""
        with self._write() as connection:
            row = _require_file(connection, files.c.file_id == file_id, org_id, file_id)
            _put_file(connection, row, [update], user)
            return _file_record(_require_file(connection, files.c.file_id == file_id, org_id, file_id))

    def update_files(
        self, dataset_id: str, updates: Mapping[str, Sequence[FileUpdate]], org_id: str, user: str
    ) -> None:
        """Change what is said of files, by their paths: each file's updates in order, all or none.

        Raises:
            NotFoundError: no such file.
            InvalidRequestError: a change can't be applied.
        """
        with self._write() as connection:
            for path, changes in updates.items():
                named = (files.c.dataset_id == dataset_id) & (files.c.path == path)
                row = _require_file(connection, named, org_id, f"{path!r} in {dataset_id}")
                _put_file(connection, row, changes, user)


def require_inputs(connection: sa.Connection, request: InvocationRequest, org_id: str) -> None:
    """Check what an invocation wants to read and where it wants to write, as far as that is known now.

    Raises:
        InvalidRequestError: a dataset that there isn't, a pattern that cannot be read, a selector that
            this server does not support.
        UnsupportedError: it wants topics or sessions.
    """
    wanted = request.rich_input_data
    if wanted is not None and (wanted.topics or wanted.sessions):
        raise UnsupportedError("rich_input_data: this server has files only, no topics and no sessions")
    _require_patterns("input_data", request.input_data)
    named = {"data_source_id": request.data_source_id}
    if request.input_data and request.data_source_id == UNSPECIFIED_DATA_SOURCE:
        raise InvalidRequestError(
            "input_data: it needs data_source_id, the dataset that its patterns are for"
        )
    if (destination := request.upload_destination) is not None:
        if (
            destination.destination_type is not UploadDestinationType.Dataset
            or not destination.destination_id
        ):
            raise InvalidRequestError("upload_destination: only a dataset can be one here, by its id")
        named["upload_destination"] = destination.destination_id
    selectors = wanted.files if wanted is not None else None
    for selector in selectors if isinstance(selectors, list) else [selectors] if selectors else []:
        _require_patterns("rich_input_data", selector.paths or [])
        if selector.paths and not selector.dataset_id:
            raise InvalidRequestError("rich_input_data: paths need dataset_id, the dataset they are in")
        if selector.dataset_id:
            named["rich_input_data"] = selector.dataset_id
            _require_named(connection, named, org_id)
        if selector.query:
            query = QuerySpecification(condition=read_roboql(selector.query), limit=1)
            page_of(query, _FILES)
    _require_named(connection, named, org_id)


def _require_patterns(field: str, patterns: Sequence[str]) -> None:
    try:
        FilePatterns(patterns)
    except PatternError as error:
        raise InvalidRequestError(f"{field}: cannot read the pattern {error}") from None


def _require_named(connection: sa.Connection, named: Mapping[str, str], org_id: str) -> None:
    for field, dataset_id in named.items():
        if dataset_id == UNSPECIFIED_DATA_SOURCE:
            continue
        try:
            _require_dataset(connection, dataset_id, org_id)
        except NotFoundError:
            raise InvalidRequestError(f"{field}: there is no dataset {dataset_id!r}") from None


def _differences(
    connection: sa.Connection, wanted: sa.Select[Any], dataset_id: str, found: Mapping[str, FoundFile]
) -> tuple[list[str], list[Any], list[Any]]:
    """Paths that aren't known yet, rows with another content now, rows of files that have gone."""
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


def _put_file(connection: sa.Connection, row: sa.Row[Any], updates: Iterable[FileUpdate], user: str) -> None:
    record = row.record
    for update in updates:
        record = _changed(record, update)
    values = {"record": record, "modified": now(), "modified_by": user}
    connection.execute(files.update().where(files.c.number == row.number).values(values))


def _changed(record: dict[str, Any], update: DatasetUpdate | FileUpdate) -> dict[str, Any]:
    """What is said of a dataset or a file after an update. Raises InvalidRequestError."""
    given = {name: getattr(update, name) for name in ("description", "device_id")}
    changed = {**record, **{name: given[name] for name in given if name in update.model_fields_set}}
    if update.metadata_changeset is not None:
        changed |= _with_changeset(changed, update.metadata_changeset)
    return changed


def _with_changeset(record: dict[str, Any], changes: MetadataChangeset) -> dict[str, Any]:
    try:
        metadata = changes.applied_to_metadata(record["metadata"])
    except ValueError as error:
        raise InvalidRequestError(str(error)) from None
    return {"metadata": metadata, "tags": changes.applied_to_tags(record["tags"])}


def _require_free(connection: sa.Connection, org_id: str, name: str | None) -> None:
    taken = sa.select(datasets.c.dataset_id).where(datasets.c.org_id == org_id, datasets.c.name == name)
    if (there := connection.execute(taken).scalar()) is not None:
        raise ConflictError(f"a dataset {name!r} is there already: {there}")


def _require_dataset(connection: sa.Connection, dataset_id: str, org_id: str) -> sa.Row[Any]:
    wanted = sa.select(datasets).where(datasets.c.dataset_id == dataset_id, datasets.c.org_id == org_id)
    row = connection.execute(wanted).one_or_none()
    if row is None:
        raise NotFoundError(f"no dataset {dataset_id!r}")
    return row


def _require_file(
    connection: sa.Connection, named: sa.ColumnElement[bool], org_id: str, what: str
) -> sa.Row[Any]:
    wanted = sa.select(files).where(named, files.c.org_id == org_id, files.c.available)
    row = connection.execute(wanted).one_or_none()
    if row is None:
        raise NotFoundError(f"no file {what}")
    return row


def _dataset_record(row: sa.Row[Any]) -> DatasetRecord:
    return DatasetRecord(
        created=moment(row.created),
        created_by=row.created_by,
        dataset_id=row.dataset_id,
        modified=moment(row.modified),
        modified_by=row.modified_by,
        name=row.name,
        org_id=row.org_id,
        roboto_record_version=row.version,
        **row.record,
    )


def _file_record(row: sa.Row[Any]) -> FileRecord:
    return FileRecord(
        association_id=row.dataset_id,
        created=moment(row.created),
        created_by=row.created_by,
        file_id=row.file_id,
        modified=moment(row.modified),
        modified_by=row.modified_by,
        name=row.path.rpartition("/")[2],
        org_id=row.org_id,
        relative_path=row.path,
        size=row.size,
        status=FileStatus.Available,
        uri=f"invocations://{row.dataset_id}/{row.path}",
        version=row.version,
        **row.record,
    )
