"""Changes that an action records for its output files before their upload: tags, metadata, descriptions."""

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

#: Largest size of one invocation's changesets, in bytes.
MAX_SIZE = 64 * 1024 * 1024


class FilesChangesetFileManager:
    """Record changes of output files, which are uploaded when the action has succeeded. The order matters.

    Paths are relative to the output folder, with `/`. Changes of files that don't exist in the end are
    ignored.

    Raises:
        ValueError: ROBOTO_FILE_METADATA_CHANGESET_FILE isn't set.
    """

    def __init__(self) -> None:
        path = os.environ.get(Variable.FileMetadataChangesetFile)
        if path is None:
            raise ValueError(
                f"{Variable.FileMetadataChangesetFile} is not set: changes to files can't be recorded"
            )
        self._path = Path(path)
        self._path.touch()

    def put_tags(self, relative_path: str, tags: list[str]) -> None:
        """Add tags to a file. Raises ValueError unless all are strings."""
        self._record(relative_path, MetadataChangeset(put_tags=tags))

    def remove_tags(self, relative_path: str, tags: list[str]) -> None:
        """Remove tags from a file. Raises ValueError unless all are strings."""
        self._record(relative_path, MetadataChangeset(remove_tags=tags))

    def put_fields(self, relative_path: str, metadata: dict[str, Any]) -> None:
        """Set fields of a file's metadata. Raises ValueError for values without a JSON form."""
        self._record(relative_path, MetadataChangeset(put_fields=metadata))

    def remove_fields(self, relative_path: str, keys: list[str]) -> None:
        """Remove fields of a file's metadata. Raises ValueError unless all are strings."""
        self._record(relative_path, MetadataChangeset(remove_fields=keys))

    def set_description(self, relative_path: str, description: str | None) -> None:
        """Set a file's description; None removes it. Raises ValueError unless it is a string."""
        # When the published client merges lines, it drops changes that follow a line without a changeset.
        no_changes = MetadataChangeset()
        self._append(relative_path, FileUpdate(description=description, metadata_changeset=no_changes))

    def _record(self, relative_path: str, changeset: MetadataChangeset) -> None:
        self._append(relative_path, FileUpdate(metadata_changeset=changeset))

    def _append(self, relative_path: str, update: FileUpdate) -> None:
        line = FileChangeset(relative_path=relative_path, update=update).model_dump_json(exclude_unset=True)
        # One write, so that lines of concurrent processes don't mix.
        with self._path.open("ab", buffering=0) as file:
            file.write(f"{line}\n".encode())


def read_file_changesets(path: Path) -> dict[str, list[FileUpdate]]:
    """Return the recorded changes by path, in the order of the calls; apply them one after the other.

    Merging them would lose the order of adding and removing the same tag.

    Raises:
        ActionRuntimeException: the file or a line can't be read; the message names it.
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
    """Return the change of the dataset that an action has recorded; None if it has recorded none.

    Raises:
        ActionRuntimeException: the file can't be read.
    """
    content = _content(path)
    if not content.strip():
        return None
    try:
        return MetadataChangeset.model_validate_json(content)
    except pydantic.ValidationError as error:
        raise ActionRuntimeException(f"{path}: {problems_of(error.errors())}") from None


def _content(path: Path) -> bytes:
    """Return the content of a file that an action wrote, which may be a link: none is followed."""
    try:
        with open(path, "rb", opener=_open_no_follow) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ActionRuntimeException(f"{path} is not a regular file")
            content = file.read(MAX_SIZE + 1)
    except OSError as error:
        raise ActionRuntimeException(f"{path} can't be read: {error.strerror}") from error
    if len(content) > MAX_SIZE:
        raise ActionRuntimeException(f"{path} is larger than {MAX_SIZE} bytes")
    return content.removeprefix(codecs.BOM_UTF8)


def _open_no_follow(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)
