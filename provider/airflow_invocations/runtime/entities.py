"""Entities of the platform as an action uses them: files, datasets, its invocation and organisation."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from pathlib import Path
from typing import Any, Generic, Literal, Self, TypeVar
from urllib.parse import quote, urlsplit

import pydantic

from ..models import InvocationRecord, InvocationStatus, LogRecord, MetadataChangeset
from ..models.dataset import DatasetRecord, FileRecord, OrgRecord
from .client import PlatformClient
from .exceptions import PlatformRejected

RecordT = TypeVar("RecordT", bound=pydantic.BaseModel)
ValueT = TypeVar("ValueT")


class Unchanged(Enum):
    """Marks a field that an update leaves as it is; None empties the field."""

    UNCHANGED = "unchanged"


UNCHANGED = Unchanged.UNCHANGED


class Recorded(Generic[ValueT]):
    """A field of an entity's record, read-only."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, entity: Entity[Any] | None, owner: type) -> ValueT:
        if entity is None:
            raise AttributeError(f"{self._name} is a field of each {owner.__name__}, not of the class")
        value: ValueT = getattr(entity.record, self._name)
        return value

    def __set__(self, entity: Entity[Any], value: object) -> None:
        raise AttributeError(f"{self._name} is read-only")


class Entity(Generic[RecordT]):
    """A record of the platform, and calls about it. Each call raises PlatformError if it fails."""

    def __init__(self, record: RecordT, roboto_client: PlatformClient | None = None) -> None:
        self._record = record
        self._client = roboto_client or PlatformClient.from_env()

    @property
    def record(self) -> RecordT:
        """The record in the platform's latest response."""
        return self._record

    def to_dict(self) -> dict[str, Any]:
        """Return the record as a JSON object."""
        return self._record.model_dump(mode="json")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, type(self)) and self._record == other._record

    __hash__ = object.__hash__

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._record!r})"

    def _update_record(self, data: Any) -> Self:
        self._record = type(self._record).model_validate(data)
        return self


class File(Entity[FileRecord]):
    """A version of a file in a dataset."""

    created = Recorded[datetime.datetime]()
    created_by = Recorded[str]()
    description = Recorded[str | None]()
    device_id = Recorded[str | None]()
    file_id = Recorded[str]()
    ingestion_status = Recorded[Any]()
    is_link = Recorded[bool]()
    metadata = Recorded[dict[str, Any]]()
    modified = Recorded[datetime.datetime]()
    modified_by = Recorded[str]()
    org_id = Recorded[str]()
    relative_path = Recorded[str]()
    tags = Recorded[list[str]]()
    uri = Recorded[str]()
    version = Recorded[int]()

    @classmethod
    def from_id(
        cls, file_id: str, version_id: int | None = None, roboto_client: PlatformClient | None = None
    ) -> File:
        """Fetch a file by id; `version_id` None: its newest version."""
        client = roboto_client or PlatformClient.from_env()
        answer = client.get(f"v1/files/record/{file_id}", _version(version_id))
        return cls(FileRecord.model_validate(answer), client)

    @classmethod
    def from_path_and_dataset_id(
        cls,
        file_path: str | Path,
        dataset_id: str,
        version_id: int | None = None,
        roboto_client: PlatformClient | None = None,
    ) -> File:
        """Fetch the file at a path of a dataset; `version_id` None: its newest version."""
        client = roboto_client or PlatformClient.from_env()
        path = f"v1/files/record/path/{quote(str(file_path), safe='')}/association/{dataset_id}"
        return cls(FileRecord.model_validate(client.get(path, _version(version_id))), client)

    @property
    def dataset_id(self) -> str:
        """Id of the dataset that contains the file."""
        return self._record.association_id

    def download(self, local_path: Path) -> None:
        """Write the content to a local file, creating its folder. Raises OSError too."""
        local_path.parent.mkdir(parents=True, exist_ok=True)
        self._client.download(self.get_signed_url(), local_path)

    def get_signed_url(
        self, override_content_type: str | None = None, override_content_disposition: str | None = None
    ) -> str:
        """Return a URL that grants access to the content for a limited time."""
        overrides = {
            "override_content_disposition": override_content_disposition,
            "override_content_type": override_content_type,
        }
        query = {name: value for name, value in overrides.items() if value}
        source = self.resolve_link()
        if source is not self:
            query["version_id"] = str(source.version)
        answer = self._client.get(f"v1/files/{source.file_id}/signed-url", query, owner_org_id=source.org_id)
        return str(answer["url"])

    def resolve_link(self) -> File:
        """Return the target of a link, in the version that it names; the file itself if it isn't a link."""
        if not self.is_link:
            return self
        file_id, version = link_target(self._record)
        return File.from_id(file_id, version, self._client)

    def put_metadata(self, metadata: dict[str, Any]) -> File:
        """Set metadata fields; a key with dots names a field inside nested objects."""
        return self.update(metadata_changeset=MetadataChangeset(put_fields=metadata))

    def put_tags(self, tags: list[str]) -> File:
        """Add tags."""
        return self.update(metadata_changeset=MetadataChangeset(put_tags=tags))

    def update(
        self,
        description: str | Unchanged | None = UNCHANGED,
        metadata_changeset: MetadataChangeset | Unchanged = UNCHANGED,
        ingestion_complete: Literal[True] | Unchanged = UNCHANGED,
        device_id: str | Unchanged | None = UNCHANGED,
    ) -> File:
        """Change the given fields; None empties a field."""
        body = _changes(
            description=description,
            metadata_changeset=metadata_changeset,
            ingestion_complete=ingestion_complete,
            device_id=device_id,
        )
        return self._update_record(self._client.put(f"v1/files/record/{self.file_id}", body))

    def refresh(self) -> File:
        """Fetch the record again."""
        return self._update_record(self._client.get(f"v1/files/record/{self.file_id}"))


class Dataset(Entity[DatasetRecord]):
    """A dataset: files with metadata and tags."""

    created = Recorded[datetime.datetime]()
    created_by = Recorded[str]()
    custom_fields = Recorded[dict[str, Any]]()
    dataset_id = Recorded[str]()
    description = Recorded[str | None]()
    device_id = Recorded[str | None]()
    metadata = Recorded[dict[str, Any]]()
    modified = Recorded[datetime.datetime]()
    modified_by = Recorded[str]()
    name = Recorded[str | None]()
    org_id = Recorded[str]()
    tags = Recorded[list[str]]()

    @classmethod
    def from_id(cls, dataset_id: str, roboto_client: PlatformClient | None = None) -> Dataset:
        """Fetch a dataset by id."""
        client = roboto_client or PlatformClient.from_env()
        return cls(DatasetRecord.model_validate(client.get(f"v1/datasets/{dataset_id}")), client)

    def get_file_by_path(self, relative_path: str | Path, version_id: int | None = None) -> File:
        """Fetch the file at a path; `version_id` None: its newest version."""
        return File.from_path_and_dataset_id(relative_path, self.dataset_id, version_id, self._client)

    def list_files(
        self, include_patterns: list[str] | None = None, exclude_patterns: list[str] | None = None
    ) -> Iterator[File]:
        """Yield the files whose paths match a pattern (as in a .gitignore; None or empty: all)."""
        for record in file_records(self._client, self.dataset_id, include_patterns, exclude_patterns):
            yield File(record, self._client)

    def get_metadata(self) -> dict[str, Any]:
        """Return a copy of the metadata."""
        return dict(self._record.metadata)

    def put_metadata(self, metadata: dict[str, Any]) -> None:
        """Set metadata fields; a key with dots names a field inside nested objects."""
        self.update(metadata_changeset=MetadataChangeset(put_fields=metadata))

    def remove_metadata(self, metadata: Iterable[str]) -> None:
        """Remove metadata fields by key."""
        self.update(metadata_changeset=MetadataChangeset(remove_fields=list(metadata)))

    def put_tags(self, tags: Iterable[str]) -> None:
        """Add tags."""
        self.update(metadata_changeset=MetadataChangeset(put_tags=list(tags)))

    def remove_tags(self, tags: Iterable[str]) -> None:
        """Remove tags."""
        self.update(metadata_changeset=MetadataChangeset(remove_tags=list(tags)))

    def update(
        self,
        description: str | Unchanged | None = UNCHANGED,
        device_id: str | Unchanged | None = UNCHANGED,
        metadata_changeset: MetadataChangeset | Unchanged = UNCHANGED,
        name: str | Unchanged | None = UNCHANGED,
    ) -> Dataset:
        """Change the given fields; None empties a field."""
        body = _changes(
            description=description, device_id=device_id, metadata_changeset=metadata_changeset, name=name
        )
        return self._update_record(self._client.put(f"v1/datasets/{self.dataset_id}", body))

    def refresh(self) -> Dataset:
        """Fetch the record again."""
        return self._update_record(self._client.get(f"v1/datasets/{self.dataset_id}"))


class Org(Entity[OrgRecord]):
    """An organisation."""

    name = Recorded[str]()
    org_id = Recorded[str]()
    status = Recorded[str]()
    tier = Recorded[str]()

    @classmethod
    def from_id(cls, org_id: str, roboto_client: PlatformClient | None = None) -> Org:
        """Fetch an organisation by id."""
        client = roboto_client or PlatformClient.from_env()
        return cls(OrgRecord.model_validate(client.get(f"v1/orgs/id/{org_id}")), client)

    def refresh(self) -> Org:
        """Fetch the record again."""
        return self._update_record(self._client.get(f"v1/orgs/id/{self.org_id}"))


class Invocation(Entity[InvocationRecord]):
    """An invocation, as it was when it was fetched."""

    compute_requirements = Recorded[Any]()
    container_parameters = Recorded[Any]()
    created = Recorded[datetime.datetime]()
    data_source = Recorded[Any]()
    org_id = Recorded[str]()
    parameter_values = Recorded[dict[str, Any]]()
    timeout = Recorded[int]()
    upload_destination = Recorded[Any]()

    @classmethod
    def from_id(cls, invocation_id: str, roboto_client: PlatformClient | None = None) -> Invocation:
        """Fetch an invocation by id."""
        client = roboto_client or PlatformClient.from_env()
        answer = client.get(f"v1/actions/invocations/{invocation_id}")
        return cls(InvocationRecord.model_validate(answer), client)

    @property
    def id(self) -> str:
        """Id of the invocation."""
        return self._record.invocation_id

    @property
    def action(self) -> Any:
        """The invoked action and its version: name, org_id, digest."""
        return self._record.provenance.action

    @property
    def executable(self) -> Any:
        """The container image, if the action has one."""
        return self._record.provenance.executable

    @property
    def source(self) -> Any:
        """The source of the invocation: source_type and source_id."""
        return self._record.provenance.source

    @property
    def current_status(self) -> InvocationStatus:
        """Status when the invocation was fetched."""
        return self._record.current.status

    @property
    def reached_terminal_status(self) -> bool:
        """Whether the status is terminal."""
        return self.current_status.is_terminal

    @property
    def status_log(self) -> list[Any]:
        """All statuses so far: status, detail, timestamp."""
        return list(self._record.status)

    def cancel(self) -> None:
        """Request a cancel, unless the invocation has ended."""
        if self.reached_terminal_status:
            return
        self._client.post(f"v1/actions/invocations/{self.id}/cancel", owner_org_id=self.org_id)

    def get_logs(self, page_token: str | None = None) -> Iterator[LogRecord]:
        """Yield the log lines, beginning at `page_token`."""
        for item in _pages(
            lambda token: self._client.get(
                f"v1/actions/invocations/{self.id}/logs",
                {"page_token": token} if token else None,
                owner_org_id=self.org_id,
            ),
            page_token,
        ):
            yield LogRecord.model_validate(item)

    def refresh(self) -> Invocation:
        """Fetch the record again."""
        return self._update_record(self._client.get(f"v1/actions/invocations/{self.id}"))


def file_records(
    client: PlatformClient,
    dataset_id: str,
    include_patterns: list[str] | None,
    exclude_patterns: list[str] | None,
) -> Iterator[FileRecord]:
    """Yield a dataset's files whose paths match a pattern (as in a .gitignore; None or empty: all)."""
    patterns = {"include_patterns": include_patterns, "exclude_patterns": exclude_patterns}
    wanted = {name: value for name, value in patterns.items() if value}
    for item in _pages(
        lambda token: client.query(
            f"v1/datasets/{dataset_id}/files/query", {**wanted, **({"page_token": token} if token else {})}
        )
    ):
        yield FileRecord.model_validate(item)


def link_target(record: FileRecord) -> tuple[str, int | None]:
    """Return file id and version of a link's target. Raises PlatformRejected if the target isn't a file."""
    target = urlsplit(record.uri)
    if target.scheme != "roboto" or target.netloc != "file" or not target.path.strip("/"):
        raise PlatformRejected(f"{record.relative_path} is a link to {record.uri}, which is not a file")
    versions = [part[2:] for part in target.query.split("&") if part.startswith("v=")]
    return target.path.strip("/"), int(versions[0]) if versions else None


def _pages(fetch: Callable[[str | None], Any], token: str | None = None) -> Iterator[Any]:
    """Yield the items of every page. `fetch` gets the page's token, None for the first page."""
    while True:
        page = fetch(token)
        yield from page["items"]
        token = page.get("next_token")
        if not token:
            return


def _version(version_id: int | None) -> dict[str, str] | None:
    return None if version_id is None else {"version_id": str(version_id)}


def _changes(**given: object) -> dict[str, Any]:
    """Return the body of an update."""
    return {
        name: value.wire() if isinstance(value, MetadataChangeset) else value
        for name, value in given.items()
        if value is not UNCHANGED
    }
