"""Entries of a folder that aren't files of its dataset."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum


class EntryKind(Enum):
    """Why an entry is skipped, in the singular and in the plural."""

    Link = ("symbolic link", "symbolic links")
    NotUtf8 = ("name that isn't UTF-8", "names that aren't UTF-8")
    Special = ("entry that is neither file nor folder", "entries that are neither file nor folder")
    Draft = ("unfinished upload", "unfinished uploads")


@dataclass(frozen=True, slots=True)
class SkippedEntry:
    """An entry that is skipped."""

    #: Relative to the folder, with `/`; a name that isn't UTF-8 is decoded as `os.fsdecode` does.
    path: str
    kind: EntryKind


def summarize(entries: Iterable[SkippedEntry]) -> str:
    """Return the number of skipped entries of each kind, with the first path of each."""
    by_kind: dict[EntryKind, list[str]] = {}
    for entry in entries:
        by_kind.setdefault(entry.kind, []).append(entry.path)
    return ", ".join(_counted(kind, by_kind[kind]) for kind in EntryKind if kind in by_kind)


def quote_path(path: str) -> str:
    r"""Return a path in quotes; bytes that aren't UTF-8 are written as \xfc."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return repr(os.fsencode(path)).removeprefix("b")
    return repr(path)


def _counted(kind: EntryKind, paths: Sequence[str]) -> str:
    one, several = kind.value
    if len(paths) == 1:
        return f"1 {one} ({quote_path(paths[0])})"
    return f"{len(paths)} {several} (the first: {quote_path(min(paths))})"
