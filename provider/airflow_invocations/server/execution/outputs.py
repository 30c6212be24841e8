"""What an action leaves in its output folder, put into a dataset with what it noted about it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ...models import InvocationRecord, UploadDestinationType
from ...models.dataset import DatasetUpdate, FileUpdate
from ...models.text import counted
from ...runtime.changesets import read_dataset_changeset, read_file_changesets
from ...runtime.exceptions import ActionRuntimeException
from ...runtime.prepare import InvocationPaths
from ..api.errors import ApiError
from ..datasets import DatasetFiles
from ..outages import is_outage


class UploadError(Exception):
    """The outputs can't be uploaded; the message says which and why. The workspace has them still."""


def destination_of(record: InvocationRecord) -> str | None:
    """The dataset that an invocation's outputs go to: the one it names, else the one that its input is of."""
    wanted = record.upload_destination
    if wanted is not None and wanted.destination_type is UploadDestinationType.Dataset:
        return wanted.destination_id
    return None if record.data_source.is_unspecified else record.data_source.data_source_id


def upload(
    datasets: DatasetFiles,
    record: InvocationRecord,
    paths: InvocationPaths,
    say: Callable[[str], object],
    stop: Callable[[], None],
) -> None:
    """Put the output folder's files into the dataset they go to, and apply what was noted of them and of it.

    A file that is there already under its path gets another version. Files are put there one by one, so an
    upload that is broken off may have left some; the next attempt puts all of them there.

    Args:
        datasets: where the dataset is.
        record: the invocation.
        paths: its folders and files.
        say: told, for the invocation's log, what is left out.
        stop: called before each file; an exception of its ends the upload.

    Raises:
        UploadError: something can't be read or written; nothing that was noted is applied then.
        OSError, SQLAlchemyError: an outage; the whole upload may be repeated.
    """
    try:
        files = _outputs(paths.output_dir)
        noted = read_file_changesets(paths.file_changeset_file)
        of_dataset = read_dataset_changeset(paths.dataset_changeset_file)
    except ActionRuntimeException as error:
        if is_outage(error.__cause__):
            raise error.__cause__ from None
        raise UploadError(str(error)) from None
    dataset_id = destination_of(record)
    if dataset_id is None:
        if files:
            say(
                f"Kept {counted(len(files), 'output')} in {paths.output_dir}: "
                "the invocation names no upload_destination"
            )
        return
    for path in noted.keys() - files.keys():
        say(f"changes of {path!r} are forgotten: there is no such output")
    try:
        folder = datasets.folder(dataset_id, record.org_id)
        for path, source in files.items():
            stop()
            _put(lambda: folder.copy_in(source, path), path)  # noqa: B023
        updates: Mapping[str, Sequence[FileUpdate]] = {
            path: changes for path, changes in noted.items() if path in files
        }
        of_it = [] if of_dataset is None else [DatasetUpdate(metadata_changeset=of_dataset)]
        datasets.record_upload(dataset_id, record.org_id, record.invocation_id, updates, of_it)
    except ApiError as error:
        raise UploadError(error.message) from None
    if files:
        say(f"Uploaded {counted(len(files), 'output')} to dataset {dataset_id}")


def _put(write: Callable[[], None], path: str) -> None:
    try:
        write()
    except OSError as error:
        if is_outage(error):
            raise
        raise UploadError(f"output {path!r} can't be uploaded: {error.strerror}") from None
    except ValueError as error:
        raise UploadError(str(error)) from None


def _outputs(folder: Path) -> dict[str, Path]:
    """Each output's path in the dataset, and where it lies. A link counts as what it leads to, in the folder.

    Raises:
        UploadError: the folder isn't one any more, or something in it is no file of its own.
    """
    if folder.is_symlink() or not folder.is_dir():
        raise UploadError(f"the output folder {folder} is no folder any more: the action has replaced it")
    root = folder.resolve()
    found: dict[str, Path] = {}
    for here, folders, names in os.walk(folder, onerror=_refuse_unreadable):
        for name in sorted([*names, *(name for name in folders if (Path(here) / name).is_symlink())]):
            source = Path(here) / name
            path = source.relative_to(folder).as_posix()
            target = source.resolve()
            if not target.is_relative_to(root) or not target.is_file():
                raise UploadError(
                    f"output {path!r} can't be uploaded: it is no file, or a link out of the output folder"
                )
            found[path] = target
    return found


def _refuse_unreadable(error: OSError) -> None:
    if is_outage(error):
        raise error
    raise UploadError(f"output {error.filename} can't be read: {error.strerror}")
