"""Describe the entries of a folder that are left out of its dataset."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum


class Kind(Enum):
    """The kind of an entry that is left out, in the singular and in the plural."""

    Link = ("symbolic link", "symbolic links")
    NotUtf8 = ("name that isn't UTF-8", "names that aren't UTF-8")
    Special = ("entry that is neither file nor folder", "entries that are neither file nor folder")
    Draft = ("unfinished upload", "unfinished uploads")


@dataclass(frozen=True, slots=True)
class LeftOut:
    """An entry that is left out."""

    #: Below the folder, with `/`; as `os.fsdecode` reads a name that isn't UTF-8.
    path: str
    kind: Kind


def summary(entries: Iterable[LeftOut]) -> str:
    """Describe how many entries of each kind are left out, with the first of each; at least one."""
    by_kind: dict[Kind, list[str]] = {}
    for entry in entries:
        by_kind.setdefault(entry.kind, []).append(entry.path)
    return ", ".join(_counted(kind, by_kind[kind]) for kind in Kind if kind in by_kind)


def shown(path: str) -> str:
    r"""Return a path in quotes; bytes that aren't UTF-8 are written as \xfc."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return repr(os.fsencode(path)).removeprefix("b")
    return repr(path)


def _counted(kind: Kind, paths: Sequence[str]) -> str:
    one, several = kind.value
    if len(paths) == 1:
        return f"1 {one} ({shown(paths[0])})"
    return f"{len(paths)} {several} (the first: {shown(min(paths))})"
