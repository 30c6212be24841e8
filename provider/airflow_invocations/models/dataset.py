"""Datasets, files, topics, sessions and organisations: records, changes and manifests."""

from __future__ import annotations

import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

import pydantic

from .base import WireModel
from .changesets import MetadataChangeset


class AssociationType(StrEnum):
    """The kind of entity that an association names."""

    Dataset = "dataset"
    Device = "device"
    DeviceType = "device_type"
    File = "file"
    Topic = "topic"
    MessagePath = "message_path"
    Org = "org"


class Association(WireModel):
    """The entity that a topic or file belongs to, with the parents of that entity."""

    association_id: str
    association_type: AssociationType
    association_version: int | None = None
    parent: Association | None = None


class FileStatus(StrEnum):
    """The state of a file: announced, uploaded, removed."""

    Reserved = "reserved"
    Available = "available"
    Deleted = "deleted"


class FSType(StrEnum):
    """The kind of a node in a dataset. A link refers to one version of another file; its size is 0."""

    File = "file"
    Directory = "directory"
    Link = "link"


class IngestionStatus(StrEnum):
    """How much of a file was ingested into topics."""

    NotIngested = "not_ingested"
    PartlyIngested = "partly_ingested"
    Ingested = "ingested"


class FileStorageType(StrEnum):
    """How a file was added to the platform."""

    S3Imported = "imported"
    S3Uploaded = "uploaded"
    S3Directory = "directory"


class FileRecord(WireModel):
    """A version of a file. `size` in bytes; `association_id` names its dataset."""

    association_id: str
    created: datetime.datetime
    created_by: str = ""
    description: str | None = None
    device_id: str | None = None
    file_id: str
    fs_type: FSType = FSType.File
    ingestable: bool = False
    ingestion_status: IngestionStatus = IngestionStatus.NotIngested
    metadata: dict[str, Any] = {}
    modified: datetime.datetime
    modified_by: str
    name: str
    org_id: str
    origination: str = ""
    parent_id: str | None = None
    #: The path in its dataset, with `/`; also the path below the input folder.
    relative_path: str
    size: int
    status: FileStatus = FileStatus.Available
    storage_type: FileStorageType = FileStorageType.S3Uploaded
    tags: list[str] = []
    upload_id: str = "NO_ID"
    uri: str
    version: int

    @property
    def is_link(self) -> bool:
        """Whether it refers to another file."""
        return self.fs_type is FSType.Link


class DatasetRecord(WireModel):
    """A dataset. `name` has at most 120 characters."""

    created: datetime.datetime
    created_by: str
    dataset_id: str
    description: str | None = None
    device_id: str | None = None
    metadata: dict[str, Any] = {}
    custom_fields: dict[str, Any] = {}
    modified: datetime.datetime
    modified_by: str
    name: str | None = pydantic.Field(default=None, max_length=120)
    org_id: str
    roboto_record_version: int = 0
    tags: list[str] = []
    #: The last three are unused; older clients reject a dataset without them.
    administrator: str = "Roboto"
    storage_ctx: dict[str, Any] = {
        "bucket_name": "NOT_SET",
        "iam_role_arn": "NOT_SET",
        "key_prefix": "NOT_SET",
    }
    storage_location: str = "S3"


class NewDataset(WireModel):
    """`POST v1/datasets`: a dataset to create."""

    name: str | None = pydantic.Field(default=None, min_length=1, max_length=120)
    description: str | None = None
    device_id: str | None = None
    metadata: dict[str, Any] = {}
    tags: list[str] = []
    custom_fields: dict[str, Any] | None = None


class NewDatasetUnlessThere(WireModel):
    """`POST v1/datasets/create_if_not_exists`: the dataset that a RoboQL query selects, else a new one."""

    match_roboql_query: str
    create_request: NewDataset


class DatasetUpdate(WireModel):
    """`PUT v1/datasets/{id}`: an absent field is not changed, a null field is emptied."""

    name: str | None = pydantic.Field(default=None, min_length=1, max_length=120)
    description: str | None = None
    device_id: str | None = None
    metadata_changeset: MetadataChangeset | None = None
    custom_fields_changeset: dict[str, Any] | None = None


class RepresentationRecord(WireModel):
    """A file that holds a topic's data, and its format."""

    association: Association
    created: datetime.datetime
    format: str | None = None
    modified: datetime.datetime
    representation_id: str
    storage_format: str
    topic_id: str
    transformations: list[str] = []
    version: int


class MessagePathRecord(WireModel):
    """One field of a topic's messages."""

    canonical_data_type: str
    created: datetime.datetime
    created_by: str
    data_type: str
    message_path: str
    message_path_id: str
    metadata: dict[str, Any] = {}
    modified: datetime.datetime
    modified_by: str
    org_id: str
    path_in_schema: list[str]
    representations: list[RepresentationRecord] = []
    source_path: str
    topic_id: str


class TopicRecord(WireModel):
    """A stream of messages in a file. Times in nanoseconds since 1970."""

    association: Association
    created: datetime.datetime
    created_by: str
    default_representation: RepresentationRecord | None = None
    end_time: int | None = None
    message_count: int | None = None
    message_paths: list[MessagePathRecord] = []
    metadata: dict[str, Any] = {}
    modified: datetime.datetime
    modified_by: str
    org_id: str
    schema_checksum: str | None = None
    schema_id: str | None = None
    schema_name: str | None = None
    start_time: int | None = None
    topic_id: str
    topic_name: str


class CompletionPolicy(WireModel):
    """The minutes without a new file after which a session is complete."""

    inactivity_minutes: int


class SessionRecord(WireModel):
    """A period of a device's operation, in many files or part of one. Times: nanoseconds since 1970."""

    completed_at: datetime.datetime | None = None
    completed_by: str | None = None
    completes_at: datetime.datetime | None = None
    completion_policy: CompletionPolicy | None = None
    created: datetime.datetime | None = None
    created_by: str
    custom_fields: dict[str, Any] = {}
    description: str | None = None
    ingested_at: datetime.datetime | None = None
    ingestion_count: int = 0
    max_timestamp_ns: int | None = None
    metadata: dict[str, Any] = {}
    min_timestamp_ns: int | None = None
    modified: datetime.datetime | None = None
    modified_by: str
    name: str | None = pydantic.Field(default=None, max_length=120)
    org_id: str
    session_id: str
    status: str = "in_progress"
    tags: list[str] = []


class OrgRecord(WireModel):
    """An organisation."""

    org_id: str
    name: str
    tier: str
    status: str
    created: datetime.datetime
    created_by: str | None = None


class ActionInputRecord(WireModel):
    """The inputs' manifest: what an invocation reads, each file with its path (None: not downloaded)."""

    files: list[tuple[FileRecord, Path | None]] = []
    sessions: list[SessionRecord] = []
    topics: list[TopicRecord] = []


class FileUpdate(WireModel):
    """Changes to a file: an absent field is not changed, a null description is emptied.

    The published client writes an absent field as `{}`.
    """

    description: str | None = None
    device_id: str | None = None
    ingestion_complete: Literal[True] | None = None
    metadata_changeset: MetadataChangeset | None = None

    @pydantic.model_validator(mode="before")
    @classmethod
    def _without_the_unset(cls, value: Any) -> Any:
        return {name: v for name, v in value.items() if v != {}} if isinstance(value, dict) else value


class FileChangeset(WireModel):
    """One line of the file changesets: the change to one file that will be uploaded."""

    #: The path below the output folder, with `/`; also the path in the dataset after the upload.
    relative_path: str
    update: FileUpdate
