"""An invocation's input as its action gets it: files, topics and sessions, resolved beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..models.dataset import ActionInputRecord
from .client import PlatformClient
from .entities import File, Session, Topic


@dataclass
class ActionInput:
    """What an invocation reads. InvocationContext.get_input makes it."""

    #: Each file with where it lies; None: it wasn't downloaded.
    files: Sequence[tuple[File, Path | None]] = field(default_factory=list)
    sessions: Sequence[Session] = field(default_factory=list)
    topics: Sequence[Topic] = field(default_factory=list)

    @classmethod
    def from_record(cls, record: ActionInputRecord, roboto_client: PlatformClient) -> ActionInput:
        """The input that a manifest describes; `roboto_client` is what its files and topics ask with."""
        return cls(
            files=[(File(file, roboto_client), path) for file, path in record.files],
            sessions=[Session(session, roboto_client) for session in record.sessions],
            topics=[Topic(topic, roboto_client) for topic in record.topics],
        )

    def get_topics_by_name(self, topic_name: str) -> list[Topic]:
        """The topics of a name, in the input's order: one per file that has it, or none."""
        return [topic for topic in self.topics if topic.name == topic_name]
