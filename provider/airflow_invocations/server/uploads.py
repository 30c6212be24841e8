"""Uploads of files into datasets: a client announces them, sends their content, and reports what it has sent.

A file appears in its dataset when it is reported, whole or not at all. Until then its content is in a folder
of its upload. Uploads are kept in memory: one that a restart has interrupted has to be repeated.
"""

from __future__ import annotations

import os
import secrets
import shutil
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..models.dataset import FileUpdate
from ..models.text import counted
from .callers import Caller, Role
from .dataset_storage import parts_of
from .datasets import DatasetFiles
from .errors import ForbiddenError, InvalidRequestError, NotFoundError
from .storage_credentials import BUCKET

#: Uploads that are open at the same time; another one ends the oldest.
MAX_UPLOADS = 1000

#: Files of one upload; the published client announces at most 500.
MAX_FILES = 500

#: Parts of one file, as in S3.
MAX_PARTS = 10_000

#: Bytes of one file: 1 TiB.
MAX_SIZE = 2**40


class PartError(Exception):
    """A file can't be put together of the parts that a client names."""


@dataclass(frozen=True, slots=True)
class Upload:
    """An announced upload."""

    upload_id: str
    org_id: str
    user: str
    dataset_id: str
    device_id: str | None
    folder: Path
    #: Path in the dataset and announced size, by the key of the object.
    files: Mapping[str, tuple[str, int]]
    #: File ids by key, of the files that were reported.
    reported: dict[str, str] = field(default_factory=dict)

    @property
    def uris(self) -> dict[str, str]:
        """Where to send each file, by its path in the dataset."""
        return {path: f"s3://{BUCKET}/{key}" for key, (path, _) in self.files.items()}


class Uploads:
    """The open uploads of all users.

    :param datasets: where the files go.
    :param folder: holds the content of uploads; earlier content is removed.
    """

    def __init__(self, datasets: DatasetFiles, folder: Path) -> None:
        self._datasets = datasets
        self._folder = folder
        self._lock = threading.Lock()
        self._uploads: OrderedDict[str, Upload] = OrderedDict()
        shutil.rmtree(folder, ignore_errors=True)

    def begin(
        self, who: Caller, dataset_id: str, sizes: Mapping[str, int], device_id: str | None = None
    ) -> Upload:
        """Announce an upload.

        :param who: the caller; an action's own token can upload only to datasets of its invocation.
        :param dataset_id: the dataset.
        :param sizes: the bytes of each file, by its path in the dataset.
        :param device_id: the device of the files.
        :raises ForbiddenError: the dataset is none of the action's own.
        :raises NotFoundError: no such dataset.
        :raises InvalidRequestError: a path or a size is invalid.
        """
        if who.role < Role.Invoke and (who.own is None or dataset_id not in who.own.datasets):
            raise ForbiddenError(f"dataset {dataset_id!r} is no input or destination of {who.user}")
        self._datasets.folder(dataset_id, who.org_id)
        _require_uploadable(sizes)
        upload_id = f"up_{secrets.token_hex(8)}"
        prefix = f"{dataset_id}/{upload_id}"
        files = {f"{prefix}/{number}": named for number, named in enumerate(sizes.items())}
        folder = self._folder / upload_id
        upload = Upload(upload_id, who.org_id, who.user, dataset_id, device_id, folder, files)
        folder.mkdir(parents=True)
        with self._lock:
            self._uploads[upload_id] = upload
            oldest = self._uploads.popitem(last=False)[1] if len(self._uploads) > MAX_UPLOADS else None
        if oldest is not None:
            shutil.rmtree(oldest.folder, ignore_errors=True)
        return upload

    def get(self, upload_id: str, org_id: str) -> Upload:
        """Return an open upload. Raises NotFoundError."""
        with self._lock:
            upload = self._uploads.get(upload_id)
        if upload is None or upload.org_id != org_id:
            raise NotFoundError(f"no upload {upload_id!r}: it has ended, or the server was restarted since")
        return upload

    def report(self, upload: Upload, uris: Sequence[str]) -> list[dict[str, str]]:
        """Add files to the dataset whose content has been sent.

        :param uris: where they were sent to. Those that aren't of this upload are left out of the result.
        :return: each file's URI and id.
        :raises InvalidRequestError: the content of a file is missing or has another size than announced.
        """
        keys = [uri.removeprefix(f"s3://{BUCKET}/") for uri in dict.fromkeys(uris)]
        keys = [key for key in keys if key in upload.files]
        for key in keys:
            if key not in upload.reported:
                _require_sent(upload, key)
        new = {key: upload.files[key][0] for key in keys if key not in upload.reported}
        contents = {path: _content(upload, key) for key, path in new.items()}
        updates: dict[str, Sequence[FileUpdate]] = {}
        if upload.device_id is not None:
            updates = {path: [FileUpdate(device_id=upload.device_id)] for path in contents}
        ids = self._datasets.add(upload.dataset_id, upload.org_id, upload.user, contents, updates)
        upload.reported.update({key: ids[path] for key, path in new.items()})
        return [{"uri": f"s3://{BUCKET}/{key}", "file_id": upload.reported[key]} for key in keys]

    def complete(self, upload: Upload) -> None:
        """End an upload; content that wasn't reported is removed."""
        with self._lock:
            self._uploads.pop(upload.upload_id, None)
        shutil.rmtree(upload.folder, ignore_errors=True)


def write_content(upload: Upload, key: str, body: bytes) -> None:
    """Store the whole content of a file. Raises OSError."""
    _write(_content(upload, key), body)


def begin_parts(upload: Upload, key: str) -> str:
    """Begin to store a file in parts; return the id of the parts."""
    parts_id = secrets.token_hex(16)
    _parts_folder(upload, key, parts_id).mkdir()
    return parts_id


def write_part(upload: Upload, key: str, parts_id: str, number: int, body: bytes) -> None:
    """Store one part. Raises PartError, OSError."""
    folder = _require_parts(upload, key, parts_id)
    if not 1 <= number <= MAX_PARTS:
        raise PartError(f"a part's number is 1 to {MAX_PARTS}")
    _write(folder / str(number), body)


def join_parts(upload: Upload, key: str, parts_id: str, numbers: Sequence[int]) -> None:
    """Put a file together of its parts, in the order of their numbers. Raises PartError, OSError."""
    folder = _require_parts(upload, key, parts_id)
    parts = [folder / str(number) for number in numbers]
    if not parts or list(numbers) != sorted(set(numbers)) or not all(part.is_file() for part in parts):
        raise PartError("the parts are not there, or not in ascending order")
    first, *others = parts
    with first.open("ab") as target:
        for part in others:
            with part.open("rb") as source:
                shutil.copyfileobj(source, target, 1024 * 1024)
            part.unlink()
        target.flush()
        os.fsync(target.fileno())
    first.replace(_content(upload, key))
    shutil.rmtree(folder, ignore_errors=True)


def abort_parts(upload: Upload, key: str, parts_id: str) -> None:
    """Remove the parts of a file. Raises PartError."""
    shutil.rmtree(_require_parts(upload, key, parts_id), ignore_errors=True)


def _require_uploadable(sizes: Mapping[str, int]) -> None:
    if not 0 < len(sizes) <= MAX_FILES:
        raise InvalidRequestError(
            f"resource_manifest: {counted(len(sizes), 'file')}; allowed: 1 to {MAX_FILES}"
        )
    for path, size in sizes.items():
        try:
            parts_of(path)
        except ValueError as error:
            raise InvalidRequestError(f"resource_manifest: {error}") from None
        if not 0 <= size <= MAX_SIZE:
            raise InvalidRequestError(f"resource_manifest: {path!r}: {size} bytes; allowed: 0 to {MAX_SIZE}")


def _require_sent(upload: Upload, key: str) -> None:
    path, size = upload.files[key]
    try:
        sent = _content(upload, key).stat().st_size
    except FileNotFoundError:
        raise InvalidRequestError(f"the content of {path!r} hasn't been sent, or not to its end") from None
    if sent != size:
        raise InvalidRequestError(f"{path!r} was announced with {size} bytes, and {sent} were sent")


def _content(upload: Upload, key: str) -> Path:
    return upload.folder / key.rpartition("/")[2]


def _parts_folder(upload: Upload, key: str, parts_id: str) -> Path:
    return upload.folder / f"{key.rpartition('/')[2]}.{parts_id}"


def _require_parts(upload: Upload, key: str, parts_id: str) -> Path:
    folder = _parts_folder(upload, key, parts_id)
    if not (parts_id.isalnum() and folder.is_dir()):
        raise PartError("there are no such parts; they were put together or removed, or the id is wrong")
    return folder


def _write(path: Path, body: bytes) -> None:
    """Create or replace a file; it is never there in part."""
    draft = path.with_name(f"{path.name}.{secrets.token_hex(8)}.draft")
    try:
        with draft.open("wb") as file:
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
