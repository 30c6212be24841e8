"""Read and write the files of a dataset's folder, and nothing outside of it."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import stat
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .skipped_entries import EntryKind, SkippedEntry, quote_path

#: Bytes that are copied at a time when the kernel can't copy between files itself.
_CHUNK = 1024 * 1024

#: Errors of `copy_file_range` when the kernel can't copy between two files.
_NO_KERNEL_COPY = frozenset({errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM})

#: Prefix of files that are being written; they aren't files of the dataset yet.
_DRAFT = ".invocations-part-"
_IS_DRAFT = re.compile(rf"{re.escape(_DRAFT)}[0-9a-f]{{16}}")

#: Errors of a path whose parts have disappeared or changed their type.
_GONE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A file in its folder."""

    #: Bytes.
    size: int
    #: Modification time: nanoseconds since 1970.
    written: int


class FolderUnavailableError(OSError):
    """The folder itself can't be opened: it is missing, or its disk isn't mounted."""


@dataclass(frozen=True, slots=True)
class FolderScan:
    """The content of a folder."""

    #: Every file of the dataset, by path.
    files: dict[str, FoundFile] = field(default_factory=dict)
    skipped: list[SkippedEntry] = field(default_factory=list)


class Folder:
    """A folder of files; paths are relative to it, with `/`.

    Symbolic links aren't files of a dataset and are never followed, in no part of a path. So nothing outside
    of the folder is read or written, even if an action puts links into it.

    :param root: the folder.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def scan(self) -> FolderScan:
        """Scan the folder; files that disappear during the scan are left out.

        :raises FolderUnavailableError: the folder itself can't be opened.
        :raises OSError: an entry can't be read.
        """
        found = FolderScan()
        with self._opened_root() as root:
            pending = [""]
            while pending:
                _scan_folder(root, pending.pop(), found, pending)
        return found

    def find(self, path: str) -> FoundFile | None:
        """Return one file, as `scan` would find it; None: it doesn't exist.

        :raises FolderUnavailableError: the folder itself can't be opened.
        :raises OSError: a folder of the path can't be read.
        :raises ValueError: the path leads out of the folder.
        """
        with self._opened_root() as root:
            try:
                with _parent(root, path, create=False) as (parent, name):
                    status = os.stat(name, dir_fd=parent, follow_symlinks=False)
            except OSError as error:
                if error.errno in _GONE:
                    return None
                raise
        if _skip_reason(status.st_mode, path) is not None:
            return None
        return FoundFile(status.st_size, status.st_mtime_ns)

    @contextlib.contextmanager
    def opened(self, path: str) -> Iterator[int]:
        """Yield a descriptor to read a file. Raises OSError if it isn't a file, ValueError for `..`."""
        with self._opened_root() as root, _parent(root, path, create=False) as (parent, name):
            file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=parent)
        try:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                raise OSError(errno.EINVAL, f"{path} is not a file")
            yield file
        finally:
            os.close(file)

    def copy_out(self, path: str, destination: Path) -> None:
        """Copy a file's content to a new file. Raises OSError, ValueError."""
        with self.opened(path) as source:
            target = os.open(destination, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
            try:
                _copy(source, target)
            finally:
                os.close(target)

    def copy_in(self, source: Path, path: str) -> None:
        """Create or replace a file atomically.

        :param source: the file whose content is copied.
        :raises OSError: the file can't be written, or the path is a folder.
        :raises ValueError: the path leads out of the folder, or has the name of an unfinished upload.
        """
        draft = f"{_DRAFT}{secrets.token_hex(8)}"
        with self._opened_root() as root, _parent(root, path, create=True) as (parent, name):
            if _is_draft(path):
                raise ValueError(f"{path!r} has the name of an unfinished upload; choose another name")
            target = os.open(
                draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644, dir_fd=parent
            )
            try:
                try:
                    with source.open("rb") as content:
                        _copy(content.fileno(), target)
                    os.fsync(target)
                finally:
                    os.close(target)
                os.replace(draft, name, src_dir_fd=parent, dst_dir_fd=parent)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(draft, dir_fd=parent)
                raise

    def move_in(self, source: Path, path: str) -> None:
        """Create or replace a file by moving another one; copies it from another file system.

        :param source: the file that is moved; its content must be on the disk.
        :raises OSError: the file can't be written, or the path is a folder.
        :raises ValueError: the path leads out of the folder, or has the name of an unfinished upload.
        """
        with self._opened_root() as root, _parent(root, path, create=True) as (parent, name):
            if _is_draft(path):
                raise ValueError(f"{path!r} has the name of an unfinished upload; choose another name")
            try:
                os.replace(source, name, dst_dir_fd=parent)
                return
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
        self.copy_in(source, path)
        source.unlink()

    def folders(self) -> list[str]:
        """Return the paths of all folders below, sorted. Raises OSError."""
        found: list[str] = []
        with self._opened_root() as root:
            pending = [""]
            while pending:
                prefix = pending.pop()
                below: list[str] = []
                _scan_folder(root, prefix, FolderScan(), below)
                pending += below
                found += [path.rstrip("/") for path in below]
        return sorted(path for path in found if _is_text(path))

    def make_folder(self, path: str, *, with_parents: bool) -> None:
        """Create a folder. Raises FileExistsError, FileNotFoundError, OSError, ValueError."""
        with self._opened_root() as root, _parent(root, path, create=with_parents) as (parent, name):
            os.mkdir(name, dir_fd=parent)

    def delete_folder(self, path: str) -> None:
        """Delete a folder and its content; links are not followed. Raises OSError, ValueError."""
        with self._opened_root() as root, _parent(root, path, create=False) as (parent, name):
            shutil.rmtree(name, dir_fd=parent)

    def delete(self, path: str) -> None:
        """Delete a file. Raises OSError, ValueError."""
        with self._opened_root() as root, _parent(root, path, create=False) as (parent, name):
            os.unlink(name, dir_fd=parent)

    def rename(self, path: str, new_path: str) -> None:
        """Move a file within the folder. Raises OSError, ValueError."""
        with (
            self._opened_root() as root,
            _parent(root, path, create=False) as (parent, name),
            _parent(root, new_path, create=True) as (new_parent, new_name),
        ):
            if _is_draft(new_path):
                raise ValueError(f"{new_path!r} has the name of an unfinished upload; choose another name")
            os.replace(name, new_name, src_dir_fd=parent, dst_dir_fd=new_parent)

    @contextlib.contextmanager
    def _opened_root(self) -> Iterator[int]:
        try:
            root = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise FolderUnavailableError(error.errno, error.strerror, error.filename) from None
        try:
            yield root
        finally:
            os.close(root)


def _scan_folder(root: int, prefix: str, found: FolderScan, pending: list[str]) -> None:
    """Add the entries of one folder to the scan, and its subfolders to the pending ones."""
    try:
        with _opened_below(root, prefix.split("/")[:-1]) as folder, os.scandir(folder) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):  # it has disappeared since it was listed
                    _add_entry(entry, prefix, found, pending)
    except OSError as error:
        if error.errno not in _GONE:
            raise


def _add_entry(entry: os.DirEntry[str], prefix: str, found: FolderScan, pending: list[str]) -> None:
    status = entry.stat(follow_symlinks=False)
    path = prefix + entry.name
    if stat.S_ISDIR(status.st_mode):
        pending.append(f"{path}/")
    elif (kind := _skip_reason(status.st_mode, path)) is not None:
        found.skipped.append(SkippedEntry(path, kind))
    else:
        found.files[path] = FoundFile(status.st_size, status.st_mtime_ns)


def _skip_reason(mode: int, path: str) -> EntryKind | None:
    if stat.S_ISLNK(mode):
        return EntryKind.Link
    if not stat.S_ISREG(mode):
        return EntryKind.Special
    if not _is_text(path):
        return EntryKind.NotUtf8
    return EntryKind.Draft if _is_draft(path) else None


@contextlib.contextmanager
def _parent(root: int, path: str, *, create: bool) -> Iterator[tuple[int, str]]:
    """Yield a descriptor of the folder that contains a path's last part, and that part."""
    *above, name = parts_of(path)
    with _opened_below(root, above, create=create) as folder:
        yield folder, name


@contextlib.contextmanager
def _opened_below(root: int, parts: Sequence[str], *, create: bool = False) -> Iterator[int]:
    """Yield a descriptor of a folder; its parts are opened one by one, because none may be a link."""
    folder = os.dup(root)
    try:
        for part in parts:
            if create:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, dir_fd=folder)
            inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
            os.close(folder)
            folder = inner
        yield folder
    finally:
        os.close(folder)


def _is_draft(path: str) -> bool:
    return _IS_DRAFT.fullmatch(path.rpartition("/")[2]) is not None


def parts_of(path: str) -> list[str]:
    """Return the parts of a path below a folder. Raises ValueError for any other path."""
    parts = path.split("/")
    if not _is_text(path):
        raise ValueError(f"{quote_path(path)} can't be a path in a dataset: its name isn't UTF-8")
    if any(part in ("", ".", "..") or "\0" in part for part in parts):
        raise ValueError(f"{path!r} is not a relative path; allowed: names separated by /, without '..'")
    return parts


def _is_text(path: str) -> bool:
    """Return whether a path can be written as JSON; a name that isn't UTF-8 has lone surrogates."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def _copy(source: int, target: int) -> None:
    """Copy a file's content; its holes stay holes, which take neither time nor disk space."""
    size = os.fstat(source).st_size
    os.truncate(target, size)
    position = 0
    while position < size:
        try:
            begin = os.lseek(source, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return  # only a hole is left
        position = os.lseek(source, begin, os.SEEK_HOLE)
        _copy_range(source, target, begin, position)


def _copy_range(source: int, target: int, begin: int, end: int) -> None:
    while begin < end:
        copied = _copy_some(source, target, begin, end - begin)
        if copied == 0:  # the file was truncated in the meantime
            return
        begin += copied


def _copy_some(source: int, target: int, position: int, count: int) -> int:
    if sys.platform == "linux":
        try:
            return os.copy_file_range(source, target, count, position, position)
        except OSError as error:
            if error.errno not in _NO_KERNEL_COPY:
                raise
    return os.pwrite(target, os.pread(source, min(count, _CHUNK), position), position)
