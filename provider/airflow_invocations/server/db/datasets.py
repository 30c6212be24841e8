"""Datasets: metadata and tags for the files of a folder."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from ...models import MetadataChangeset, Page, QuerySpecification
from ...models.dataset import DatasetRecord, DatasetUpdate, FileUpdate, IngestionStatus, NewDataset
from ..errors import ConflictError, InvalidRequestError, NotFoundError
from ..query.statements import next_token, page_of
from ..timestamps import now, to_datetime
from .database import Database
from .queryables import DATASETS
from .tables import datasets, files


class DatasetRepository:
    """Reads and writes datasets."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, request: NewDataset, org_id: str, user: str, folder: str | None = None) -> DatasetRecord:
        """Store a new dataset.

        :param folder: the linked folder; None: the server manages the folder.
        :raises InvalidRequestError: the request has custom fields, which this server doesn't support.
        :raises ConflictError: the name of a dataset with a linked folder is taken.
        """
        if request.custom_fields:
            raise InvalidRequestError("custom_fields: this server defines none; use metadata")
        current = now()
        row = {
            "dataset_id": f"ds_{secrets.token_hex(8)}",
            "org_id": org_id,
            "name": request.name,
            "folder": folder,
            "created": current,
            "created_by": user,
            "modified": current,
            "modified_by": user,
            "record": {
                "description": request.description,
                "device_id": request.device_id,
                "metadata": request.metadata,
                "tags": list(dict.fromkeys(request.tags)),
            },
        }
        with self._database.write() as connection:
            if folder is not None:
                _require_free(connection, org_id, request.name)
            connection.execute(datasets.insert().values(row))
            return _to_record(require_dataset(connection, str(row["dataset_id"]), org_id))

    def get(self, dataset_id: str, org_id: str) -> DatasetRecord:
        """Return a dataset. Raises NotFoundError."""
        with self._database.read() as connection:
            return _to_record(require_dataset(connection, dataset_id, org_id))

    def linked_folder(self, dataset_id: str, org_id: str) -> str | None:
        """Return a dataset's linked folder; None: the server manages it. Raises NotFoundError."""
        with self._database.read() as connection:
            folder: str | None = require_dataset(connection, dataset_id, org_id).folder
            return folder

    def list_all(self, org_id: str) -> list[DatasetRecord]:
        """Return all datasets of an organisation, oldest first."""
        selected = sa.select(datasets).where(datasets.c.org_id == org_id).order_by(datasets.c.number)
        with self._database.read() as connection:
            return [_to_record(row) for row in connection.execute(selected)]

    def query(self, spec: QuerySpecification, org_id: str) -> Page[DatasetRecord]:
        """Return a page of datasets. Raises InvalidRequestError."""
        statement, sort_by = page_of(spec, DATASETS, datasets.c.org_id == org_id)
        with self._database.query() as connection:
            rows = connection.execute(statement).all()
        items = [_to_record(row) for row in rows[: spec.limit]]
        return Page(items=items, next_token=next_token(spec, sort_by, rows))

    def update(
        self, dataset_id: str, updates: Sequence[DatasetUpdate], org_id: str, user: str
    ) -> DatasetRecord:
        """Apply updates to a dataset in order. Raises NotFoundError, InvalidRequestError."""
        with self._database.write() as connection:
            row = require_dataset(connection, dataset_id, org_id)
            name, record = row.name, row.record
            for update in updates:
                if update.custom_fields_changeset:
                    raise InvalidRequestError("custom_fields_changeset: this server defines no fields")
                name = update.name if "name" in update.model_fields_set else name
                record = apply_update(record, update)
            values = {
                "name": name,
                "record": record,
                "modified": now(),
                "modified_by": user,
                "version": row.version + 1,
            }
            connection.execute(datasets.update().where(datasets.c.number == row.number).values(values))
            return _to_record(require_dataset(connection, dataset_id, org_id))

    def delete(self, dataset_id: str, org_id: str) -> None:
        """Delete a dataset's records, not its files on the disk. Raises NotFoundError."""
        with self._database.write() as connection:
            require_dataset(connection, dataset_id, org_id)
            connection.execute(files.delete().where(files.c.dataset_id == dataset_id))
            connection.execute(datasets.delete().where(datasets.c.dataset_id == dataset_id))


def apply_update(record: dict[str, Any], update: DatasetUpdate | FileUpdate) -> dict[str, Any]:
    """Return the record of a dataset or file after an update. Raises InvalidRequestError."""
    changed = dict(record)
    if isinstance(update, FileUpdate) and update.ingestion_complete:
        changed["ingestion_status"] = IngestionStatus.Ingested.value
        changed["ingestable"] = True
    for field in ("description", "device_id"):
        if field in update.model_fields_set:
            changed[field] = getattr(update, field)
    if update.metadata_changeset is not None:
        changed |= _apply_changeset(changed, update.metadata_changeset)
    return changed


def _apply_changeset(record: dict[str, Any], changes: MetadataChangeset) -> dict[str, Any]:
    try:
        metadata = changes.applied_to_metadata(record["metadata"])
    except ValueError as error:
        raise InvalidRequestError(str(error)) from None
    return {"metadata": metadata, "tags": changes.applied_to_tags(record["tags"])}


def _require_free(connection: sa.Connection, org_id: str, name: str | None) -> None:
    taken = sa.select(datasets.c.dataset_id).where(datasets.c.org_id == org_id, datasets.c.name == name)
    if (dataset_id := connection.execute(taken).scalar()) is not None:
        raise ConflictError(f"a dataset {name!r} already exists: {dataset_id}")


def require_dataset(connection: sa.Connection, dataset_id: str, org_id: str) -> sa.Row[Any]:
    """Return a dataset's row. Raises NotFoundError."""
    selected = sa.select(datasets).where(datasets.c.dataset_id == dataset_id, datasets.c.org_id == org_id)
    row = connection.execute(selected).one_or_none()
    if row is None:
        raise NotFoundError(f"no dataset {dataset_id!r}")
    return row


def _to_record(row: sa.Row[Any]) -> DatasetRecord:
    return DatasetRecord(
        created=to_datetime(row.created),
        created_by=row.created_by,
        dataset_id=row.dataset_id,
        modified=to_datetime(row.modified),
        modified_by=row.modified_by,
        name=row.name,
        org_id=row.org_id,
        roboto_record_version=row.version,
        **row.record,
    )
