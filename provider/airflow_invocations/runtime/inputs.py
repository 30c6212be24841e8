"""The input of an invocation, as its action gets it: files, topics and sessions, resolved beforehand."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..models.dataset import ActionInputRecord, SessionRecord, TopicRecord
from .client import PlatformClient
from .entities import Entity, File, Recorded


class Topic(Entity[TopicRecord]):
    """Description of a stream of messages in a file; the published client reads its data."""

    association = Recorded[Any]()
    created = Recorded[datetime.datetime]()
    created_by = Recorded[str]()
    default_representation = Recorded[Any]()
    end_time = Recorded[int | None]()
    message_count = Recorded[int | None]()
    message_paths = Recorded[list[Any]]()
    metadata = Recorded[dict[str, Any]]()
    modified = Recorded[datetime.datetime]()
    modified_by = Recorded[str]()
    org_id = Recorded[str]()
    schema_checksum = Recorded[str | None]()
    schema_id = Recorded[str | None]()
    schema_name = Recorded[str | None]()
    start_time = Recorded[int | None]()
    topic_id = Recorded[str]()
    topic_name = Recorded[str]()

    @property
    def name(self) -> str:
        """Name of the topic, for example `/camera/image_raw`."""
        return self._record.topic_name

    @property
    def file_id(self) -> str | None:
        """Id of the file that contains the topic; None if no file does."""
        association = self._record.association
        return association.association_id if association.association_type == "file" else None


class Session(Entity[SessionRecord]):
    """Description of a stretch of a device's operation."""

    completes_at = Recorded[Any]()
    completion_policy = Recorded[Any]()
    created = Recorded[datetime.datetime | None]()
    created_by = Recorded[str]()
    custom_fields = Recorded[dict[str, Any]]()
    description = Recorded[str | None]()
    ingestion_count = Recorded[int]()
    max_timestamp_ns = Recorded[int | None]()
    metadata = Recorded[dict[str, Any]]()
    min_timestamp_ns = Recorded[int | None]()
    modified = Recorded[datetime.datetime | None]()
    modified_by = Recorded[str]()
    name = Recorded[str | None]()
    org_id = Recorded[str]()
    session_id = Recorded[str]()
    status = Recorded[str]()
    tags = Recorded[list[str]]()


@dataclass
class ActionInput:
    """The input of an invocation. InvocationContext.get_input creates it."""

    #: Each file with its local path; None if it wasn't downloaded.
    files: Sequence[tuple[File, Path | None]] = field(default_factory=list)
    sessions: Sequence[Session] = field(default_factory=list)
    topics: Sequence[Topic] = field(default_factory=list)

    @classmethod
    def from_record(cls, record: ActionInputRecord, roboto_client: PlatformClient) -> ActionInput:
        """Return the input that a manifest describes; its entities use `roboto_client`."""
        return cls(
            files=[(File(file, roboto_client), path) for file, path in record.files],
            sessions=[Session(session, roboto_client) for session in record.sessions],
            topics=[Topic(topic, roboto_client) for topic in record.topics],
        )

    def get_topics_by_name(self, topic_name: str) -> list[Topic]:
        """Return the topics with a name, in the input's order: one for each file that has it."""
        return [topic for topic in self.topics if topic.name == topic_name]
