"""The fields by which datasets and files can be queried, and how they refer to each other."""

from __future__ import annotations

from dataclasses import replace

import sqlalchemy as sa

from ...models.dataset import IngestionStatus
from ..query.statements import Queryable, Relation
from .tables import datasets, files

_DOCUMENTS = frozenset({"description", "device_id", "metadata", "tags"})
_TIMES = frozenset({"created", "modified"})


def _dataset_fields(table: sa.FromClause) -> Queryable:
    return Queryable(
        table=table,
        columns={
            "dataset_id": table.c.dataset_id,
            "id": table.c.dataset_id,
            "org_id": table.c.org_id,
            "name": table.c.name,
            "created": table.c.created,
            "created_by": table.c.created_by,
            "modified": table.c.modified,
            "modified_by": table.c.modified_by,
        },
        times=_TIMES,
        documents=_DOCUMENTS,
        kind="dataset",
    )


def _file_fields(table: sa.FromClause) -> Queryable:
    # What is left of a path without the characters after its last slash is its folder.
    folder = sa.func.rtrim(table.c.path, sa.func.replace(table.c.path, "/", ""))
    status = sa.func.json_extract(table.c.record, "$.ingestion_status")
    return Queryable(
        table=table,
        columns={
            "association_id": table.c.dataset_id,
            "collection_id": table.c.dataset_id,
            "dataset_id": table.c.dataset_id,
            "file_id": table.c.file_id,
            "id": table.c.file_id,
            "ingestion_status": sa.func.coalesce(status, IngestionStatus.NotIngested.value, type_=sa.Text),
            "name": sa.func.substr(table.c.path, sa.func.length(folder) + 1, type_=sa.Text),
            "org_id": table.c.org_id,
            "path": table.c.path,
            "relative_path": table.c.path,
            "size": table.c.size,
            "version": table.c.version,
            "created": table.c.created,
            "created_by": table.c.created_by,
            "modified": table.c.modified,
            "modified_by": table.c.modified_by,
        },
        times=_TIMES,
        documents=_DOCUMENTS,
        kind="file",
    )


def _is_in_dataset(file: sa.FromClause) -> sa.ColumnElement[bool]:
    return sa.and_(file.c.dataset_id == datasets.c.dataset_id, file.c.available)


def _has_file(dataset: sa.FromClause) -> sa.ColumnElement[bool]:
    return dataset.c.dataset_id == files.c.dataset_id


DATASETS = replace(_dataset_fields(datasets), related={"file": Relation(files, _file_fields, _is_in_dataset)})
FILES = replace(_file_fields(files), related={"dataset": Relation(datasets, _dataset_fields, _has_file)})
