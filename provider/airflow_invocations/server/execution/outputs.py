"""Upload an action's outputs to a dataset, with the metadata that the action set."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ...models import InvocationRecord, UploadDestinationType
from ...models.dataset import ActionInputRecord, DatasetUpdate, FileUpdate
from ...models.text import counted
from ...runtime.changesets import read_dataset_changeset, read_file_changesets
from ...runtime.exceptions import ActionRuntimeException
from ...runtime.prepare import InvocationPaths
from ..datasets import DatasetFiles
from ..errors import ApiError
from ..outages import is_outage


class UploadError(Exception):
    """An output can't be uploaded; the message says which and why. The workspace keeps all outputs."""


def destination_of(record: InvocationRecord, inputs: ActionInputRecord) -> str | None:
    """Return the dataset of an invocation's outputs: its upload destination, or its input dataset.

    Without a data source, it is the dataset that all input files are in, however they were selected.

    :return: None: the input is of no dataset, or of several.
    """
    destination = record.upload_destination
    if destination is not None and destination.destination_type is UploadDestinationType.Dataset:
        return destination.destination_id
    if not record.data_source.is_unspecified:
        return record.data_source.data_source_id
    datasets = {file.association_id for file, _ in inputs.files}
    return datasets.pop() if len(datasets) == 1 else None


def upload(
    datasets: DatasetFiles,
    record: InvocationRecord,
    dataset_id: str | None,
    paths: InvocationPaths,
    say: Callable[[str], object],
    stop: Callable[[], None],
) -> None:
    """Upload the files of the output folder, then apply the changesets of files and dataset.

    A file that exists in the dataset gets a new version. Files are uploaded one by one, so an interrupted
    upload may leave some of them; the next attempt uploads all again.

    :param datasets: has the dataset.
    :param record: the invocation.
    :param dataset_id: the dataset to upload to; None: the outputs stay in their folder.
    :param paths: its folders and files.
    :param say: called with messages for the invocation's log.
    :param stop: called before each file; it raises an exception to stop.
    :raises UploadError: a file can't be read or written; no changeset is applied then.
    :raises OSError: an outage; the whole upload may be repeated.
    :raises SQLAlchemyError: an outage; the whole upload may be repeated.
    """
    try:
        files = _outputs(paths.output_dir)
        file_changes = read_file_changesets(paths.file_changeset_file)
        dataset_changes = read_dataset_changeset(paths.dataset_changeset_file)
    except ActionRuntimeException as error:
        if is_outage(error.__cause__):
            raise error.__cause__ from None
        raise UploadError(str(error)) from None
    if dataset_id is None:
        if files:
            say(
                f"Kept {counted(len(files), 'output')} in {paths.output_dir}: "
                "the invocation names no upload_destination, and its input isn't of one dataset"
            )
        return
    for path in file_changes.keys() - files.keys():
        say(f"Ignored the changes to {path!r}: there is no such output")
    try:
        folder = datasets.folder(dataset_id, record.org_id)
        for path, source in files.items():
            stop()
            _put(lambda: folder.copy_in(source, path), path)  # noqa: B023
        updates: Mapping[str, Sequence[FileUpdate]] = {
            path: changes for path, changes in file_changes.items() if path in files
        }
        dataset_updates = (
            [] if dataset_changes is None else [DatasetUpdate(metadata_changeset=dataset_changes)]
        )
        datasets.record_upload(dataset_id, record.org_id, record.invocation_id, updates, dataset_updates)
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
    """Return the outputs by their paths in the dataset; a link within the folder counts as its target.

    :raises UploadError: the output folder was replaced, or an entry isn't a file in the folder.
    """
    if folder.is_symlink() or not folder.is_dir():
        raise UploadError(f"the output folder {folder} is no longer a folder: the action has replaced it")
    root = folder.resolve()
    found: dict[str, Path] = {}
    for here, folders, names in os.walk(folder, onerror=_raise_unreadable):
        for name in sorted([*names, *(name for name in folders if (Path(here) / name).is_symlink())]):
            source = Path(here) / name
            path = source.relative_to(folder).as_posix()
            target = source.resolve()
            if not target.is_relative_to(root) or not target.is_file():
                raise UploadError(f"output {path!r} can't be uploaded: it is not a file in the output folder")
            found[path] = target
    return found


def _raise_unreadable(error: OSError) -> None:
    if is_outage(error):
        raise error
    raise UploadError(f"output {error.filename} can't be read: {error.strerror}")
