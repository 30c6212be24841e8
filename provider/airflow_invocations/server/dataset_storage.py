"""A dataset's folder: which files are in it, and reading and writing them without ever leaving it."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .execution.left_out import Kind, LeftOut, shown

#: Bytes that are read at once where the kernel can't copy by itself.
_CHUNK = 1024 * 1024

#: What the kernel says where it can't copy between two files by itself.
_NO_KERNEL_COPY = frozenset({errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM})

#: How the name of a file that is being written begins: it isn't a file of the dataset yet.
_DRAFT = ".invocations-part-"
_IS_DRAFT = re.compile(rf"{re.escape(_DRAFT)}[0-9a-f]{{16}}")

#: Errors of a path whose parts have disappeared or changed their type.
_HAS_GONE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A file as it lies in its folder."""

    #: Bytes.
    size: int
    #: When it was last written: nanoseconds since 1970.
    written: int


class FolderUnavailableError(OSError):
    """The folder itself can't be opened: it is missing, or its disk isn't mounted."""


@dataclass(frozen=True, slots=True)
class Survey:
    """What is in a folder."""

    #: Every file of the dataset, by its path.
    files: dict[str, FoundFile] = field(default_factory=dict)
    left_out: list[LeftOut] = field(default_factory=list)


class Folder:
    """A folder of files, by paths below it with `/`.

    Symbolic links are no files of a dataset, wherever they lead: none is followed, in no part of a path, so
    that nothing outside is read or written, whoever can put links into the folder.

    :param root: the folder.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def scan(self) -> dict[str, FoundFile]:
        """Return every file, by its path. Raises as `survey` does."""
        return self.survey().files

    def survey(self) -> Survey:
        """Scan the folder. Files that disappear meanwhile are skipped.

        Raises:
            FolderUnavailableError: the folder itself can't be opened.
            OSError: something in it can't be read.
        """
        found = Survey()
        with self._opened_root() as root:
            below = [""]
            while below:
                _look_into(root, below.pop(), found, below)
        return found

    def find(self, path: str) -> FoundFile | None:
        """Return one file, as `scan` would find it; None: there is none.

        Raises:
            FolderUnavailableError: the folder itself can't be opened.
            OSError: something on the way can't be read.
            ValueError: the path leads out of it.
        """
        with self._opened_root() as root:
            try:
                with _parent(root, path, create=False) as (parent, name):
                    about = os.stat(name, dir_fd=parent, follow_symlinks=False)
            except OSError as error:
                if error.errno in _HAS_GONE:
                    return None
                raise
        if _why_left_out(about.st_mode, path) is not None:
            return None
        return FoundFile(about.st_size, about.st_mtime_ns)

    @contextlib.contextmanager
    def opened(self, path: str) -> Iterator[int]:
        """A file's descriptor, to be read. Raises OSError for what isn't a file, and ValueError for `..`."""
        with self._opened_root() as root, _parent(root, path, create=False) as (parent, name):
            file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=parent)
        try:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                raise OSError(errno.EINVAL, f"{path} is no file")
            yield file
        finally:
            os.close(file)

    def copy_out(self, path: str, destination: Path) -> None:
        """Write a file's content to a new one, which shares nothing with it. Raises OSError, ValueError."""
        with self.opened(path) as source:
            target = os.open(destination, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
            try:
                _copy(source, target)
            finally:
                os.close(target)

    def copy_in(self, source: Path, path: str) -> None:
        """Put a file's content at a path, whole or not at all; what is there is replaced.

        Raises:
            OSError: it can't be written, or there is a folder.
            ValueError: the path leads out of the folder, or has a name that is none of a dataset's files.
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


def _look_into(root: int, prefix: str, found: Survey, below: list[str]) -> None:
    """Add the entries of one folder to the survey, and its subfolders to the folders still to scan."""
    try:
        with _opened_below(root, prefix.split("/")[:-1]) as folder, os.scandir(folder) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):  # it has gone since it was listed
                    _note(entry, prefix, found, below)
    except OSError as error:
        if error.errno not in _HAS_GONE:
            raise


def _note(entry: os.DirEntry[str], prefix: str, found: Survey, below: list[str]) -> None:
    about = entry.stat(follow_symlinks=False)
    path = prefix + entry.name
    if stat.S_ISDIR(about.st_mode):
        below.append(f"{path}/")
    elif (kind := _why_left_out(about.st_mode, path)) is not None:
        found.left_out.append(LeftOut(path, kind))
    else:
        found.files[path] = FoundFile(about.st_size, about.st_mtime_ns)


def _why_left_out(mode: int, path: str) -> Kind | None:
    if stat.S_ISLNK(mode):
        return Kind.Link
    if not stat.S_ISREG(mode):
        return Kind.Special
    if not _is_text(path):
        return Kind.NotUtf8
    return Kind.Draft if _is_draft(path) else None


@contextlib.contextmanager
def _parent(root: int, path: str, *, create: bool) -> Iterator[tuple[int, str]]:
    """Yield a descriptor of the folder that contains a path's last part, and that part."""
    *above, name = parts_of(path)
    with _opened_below(root, above, create=create) as folder:
        yield folder, name


@contextlib.contextmanager
def _opened_below(root: int, parts: Sequence[str], *, create: bool = False) -> Iterator[int]:
    """Yield a descriptor of a folder. Its parts are opened one by one, as none of them may be a link."""
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
    """The parts of a path below a folder. Raises ValueError for one that isn't."""
    parts = path.split("/")
    if not _is_text(path):
        raise ValueError(f"{shown(path)} can't be a path in a dataset: its name isn't UTF-8")
    if any(part in ("", ".", "..") or "\0" in part for part in parts):
        raise ValueError(f"{path!r} is no path below a folder; allowed: names with / between, without '..'")
    return parts


def _is_text(path: str) -> bool:
    """Whether a path can be written as JSON: a name that isn't UTF-8 has halves of surrogate pairs."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def _copy(source: int, target: int) -> None:
    """Copy a file's content; what is a hole in it stays one, and costs neither time nor disk."""
    size = os.fstat(source).st_size
    os.truncate(target, size)
    place = 0
    while place < size:
        try:
            begin = os.lseek(source, place, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return  # nothing but a hole is left
        place = os.lseek(source, begin, os.SEEK_HOLE)
        _copy_range(source, target, begin, place)


def _copy_range(source: int, target: int, begin: int, end: int) -> None:
    while begin < end:
        copied = _copy_some(source, target, begin, end - begin)
        if copied == 0:  # it was cut short in the meantime
            return
        begin += copied


def _copy_some(source: int, target: int, place: int, count: int) -> int:
    if sys.platform == "linux":
        try:
            return os.copy_file_range(source, target, count, place, place)
        except OSError as error:
            if error.errno not in _NO_KERNEL_COPY:
                raise
    return os.pwrite(target, os.pread(source, min(count, _CHUNK), place), place)
