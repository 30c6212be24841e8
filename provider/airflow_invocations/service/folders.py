"""A dataset's folder: which files are in it, and reading and writing them without ever leaving it."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import secrets
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

#: Bytes that are read at once where the kernel can't copy by itself.
_CHUNK = 1024 * 1024

#: What the kernel says where it can't copy between two files by itself.
_NO_KERNEL_COPY = frozenset({errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM})

#: How the name of a file that is being written begins: it isn't a file of the dataset yet.
_DRAFT = ".invocations-part-"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A file as it lies in its folder."""

    #: Bytes.
    size: int
    #: When it was last written: nanoseconds since 1970.
    written: int


class Folder:
    """A folder of files, by paths below it with `/`.

    Symbolic links are no files of a dataset, wherever they lead: none is followed, in no part of a path, so
    that nothing outside is read or written, whoever can put links into the folder.

    :param root: the folder.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def scan(self) -> dict[str, FoundFile]:
        """Every file, by its path. Raises OSError if the folder can't be read."""
        found: dict[str, FoundFile] = {}
        below = [""]
        while below:
            prefix = below.pop()
            with os.scandir(self._root / prefix) as entries:
                for entry in entries:
                    path = prefix + entry.name
                    if entry.is_dir(follow_symlinks=False):
                        below.append(f"{path}/")
                    elif entry.is_file(follow_symlinks=False) and _is_text(path):
                        if not entry.name.startswith(_DRAFT):
                            about = entry.stat(follow_symlinks=False)
                            found[path] = FoundFile(about.st_size, about.st_mtime_ns)
                    else:
                        _log.debug("%r in %s is no file of a dataset", path, self._root)
        return found

    def find(self, path: str) -> FoundFile | None:
        """One file, as `scan` would find it; None: there is none.

        Raises:
            OSError: the folder can't be read.
            ValueError: the path leads out of it.
        """
        self._root.stat()  # a folder that is away isn't one without files
        if path.rpartition("/")[2].startswith(_DRAFT):
            return None
        try:
            with self._parent(path, create=False) as (parent, name):
                about = os.stat(name, dir_fd=parent, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            if error.errno == errno.ELOOP:  # a link on the way
                return None
            raise
        return FoundFile(about.st_size, about.st_mtime_ns) if stat.S_ISREG(about.st_mode) else None

    @contextlib.contextmanager
    def opened(self, path: str) -> Iterator[int]:
        """A file's descriptor, to be read. Raises OSError for what isn't a file, and ValueError for `..`."""
        with self._parent(path, create=False) as (parent, name):
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
            ValueError: the path leads out of the folder.
        """
        draft = f"{_DRAFT}{secrets.token_hex(8)}"
        with self._parent(path, create=True) as (parent, name):
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
    def _parent(self, path: str, *, create: bool) -> Iterator[tuple[int, str]]:
        """The descriptor of the folder that a path's last part is in, and that part."""
        *above, name = parts_of(path)
        folder = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for part in above:
                if create:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(part, dir_fd=folder)
                inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
                os.close(folder)
                folder = inner
            yield folder, name
        finally:
            os.close(folder)


def parts_of(path: str) -> list[str]:
    """The parts of a path below a folder. Raises ValueError for one that isn't."""
    parts = path.split("/")
    if any(part in ("", ".", "..") or "\0" in part for part in parts) or not _is_text(path):
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
