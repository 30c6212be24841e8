"""Tags, metadata and descriptions that an action notes for files it leaves, before they are uploaded."""

from __future__ import annotations

import codecs
import os
import stat
from pathlib import Path
from typing import Any

import pydantic

from ..models import MetadataChangeset
from ..models.base import problems_of
from ..models.dataset import FileChangeset, FileUpdate
from .environment import Variable
from .exceptions import ActionRuntimeException

#: Bytes that the changesets of one invocation may have.
MAX_SIZE = 64 * 1024 * 1024


class FilesChangesetFileManager:
    """Notes changes of files that are uploaded once the action has ended well. The order of calls matters.

    Paths are below the output folder, with `/`. A change of a file that isn't there in the end is forgotten.

    Raises:
        ValueError: ROBOTO_FILE_METADATA_CHANGESET_FILE isn't set.
    """

    def __init__(self) -> None:
        path = os.environ.get(Variable.FileMetadataChangesetFile)
        if path is None:
            raise ValueError(
                f"{Variable.FileMetadataChangesetFile} is not set: there is nowhere to note changes"
            )
        self._path = Path(path)
        self._path.touch()

    def put_tags(self, relative_path: str, tags: list[str]) -> None:
        """Add tags to a file. Raises ValueError for anything but texts."""
        self._note(relative_path, MetadataChangeset(put_tags=tags))

    def remove_tags(self, relative_path: str, tags: list[str]) -> None:
        """Remove tags from a file. Raises ValueError for anything but texts."""
        self._note(relative_path, MetadataChangeset(remove_tags=tags))

    def put_fields(self, relative_path: str, metadata: dict[str, Any]) -> None:
        """Set fields of a file's metadata. Raises ValueError for values that JSON doesn't have."""
        self._note(relative_path, MetadataChangeset(put_fields=metadata))

    def remove_fields(self, relative_path: str, keys: list[str]) -> None:
        """Remove fields of a file's metadata. Raises ValueError for anything but texts."""
        self._note(relative_path, MetadataChangeset(remove_fields=keys))

    def set_description(self, relative_path: str, description: str | None) -> None:
        """Set a file's description; None: empty it. Raises ValueError for anything but a text."""
        # The published client, when it merges lines, drops changes that come after a line without any.
        nothing_else = MetadataChangeset()
        self._append(relative_path, FileUpdate(description=description, metadata_changeset=nothing_else))

    def _note(self, relative_path: str, changeset: MetadataChangeset) -> None:
        self._append(relative_path, FileUpdate(metadata_changeset=changeset))

    def _append(self, relative_path: str, update: FileUpdate) -> None:
        line = FileChangeset(relative_path=relative_path, update=update).model_dump_json(exclude_unset=True)
        # One write: lines of processes that note at the same time don't mix.
        with self._path.open("ab", buffering=0) as file:
            file.write(f"{line}\n".encode())


def read_file_changesets(path: Path) -> dict[str, list[FileUpdate]]:
    """What was noted, for each path in the order of the calls; apply them one after the other.

    Merged into one change, the order of a put and a removal of the same tag would be lost.

    Raises:
        ActionRuntimeException: the file or a line can't be read; the message says which.
    """
    updates: dict[str, list[FileUpdate]] = {}
    for number, line in enumerate(_content(path).splitlines(), start=1):
        try:
            changeset = FileChangeset.model_validate_json(line)
        except pydantic.ValidationError as error:
            raise ActionRuntimeException(f"{path}, line {number}: {problems_of(error.errors())}") from None
        updates.setdefault(changeset.relative_path, []).append(changeset.update)
    return updates


def read_dataset_changeset(path: Path) -> MetadataChangeset | None:
    """The change of the dataset that an action left; None: it left none.

    Raises:
        ActionRuntimeException: it can't be read.
    """
    content = _content(path)
    if not content.strip():
        return None
    try:
        return MetadataChangeset.model_validate_json(content)
    except pydantic.ValidationError as error:
        raise ActionRuntimeException(f"{path}: {problems_of(error.errors())}") from None


def _content(path: Path) -> bytes:
    """What an action left in a file: it may have put anything in its place, so no link is followed."""
    try:
        with open(path, "rb", opener=_without_following) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ActionRuntimeException(f"{path} is no file")
            content = file.read(MAX_SIZE + 1)
    except OSError as error:
        raise ActionRuntimeException(f"{path} can't be read: {error.strerror}") from error
    if len(content) > MAX_SIZE:
        raise ActionRuntimeException(f"{path} has more than {MAX_SIZE} bytes")
    return content.removeprefix(codecs.BOM_UTF8)


def _without_following(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)
