"""Match paths against patterns as in a `.gitignore`, in time that grows with path and pattern only.

https://git-scm.com/docs/gitignore#_pattern_format has the rules. A translation into an ordinary regular
expression backtracks: seven `*?` against one name of 64 characters take minutes, during which Python runs
nothing else. Here every run of wildcards takes the first place that fits and keeps it (an atomic group). That
is enough, because whatever follows a wildcard fits behind the first place if it fits behind a later one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

#: Characters that one pattern may have.
MAX_PATTERN = 1000

#: Characters of a pattern that an error shows.
_SHOWN = 60

_ANY_FOLDERS = "**"
_IN_PART = "[^/]"


class PatternError(ValueError):
    """A pattern that cannot be read; the message says which and why."""


@dataclass(frozen=True, slots=True)
class _Pattern:
    """One line of a `.gitignore`.

    A path that the pattern itself names counts for more than one that is only below a folder it names,
    whatever the order of the lines; `below` has those.
    """

    includes: bool
    names: re.Pattern[str] | None
    below: re.Pattern[str] | None

    def weight(self, path: str) -> int:
        """2: the pattern names the path, 1: a folder above it, 0: neither."""
        if self.names is not None and self.names.match(path):
            return 2
        return 1 if self.below is not None and self.below.match(path) else 0


class FilePatterns:
    """A list of patterns as in a `.gitignore`; of those that match a path the last one decides.

    Blank lines and lines that begin with `#` are left out.

    :param lines: the patterns, of at most MAX_PATTERN characters each.
    :raises PatternError: a pattern is too long, ends with a backslash, has a `[` without a `]`, or a range
        such as `[z-a]`.
    """

    def __init__(self, lines: Sequence[str]) -> None:
        self._last_first = [pattern for line in reversed(lines) if (pattern := _read(line)) is not None]

    def match(self, path: str) -> bool:
        """Whether a path below the folder, with `/` between its parts, is one that the patterns select."""
        selected, heaviest = False, 0
        for pattern in self._last_first:
            weight = pattern.weight(path)
            if weight > heaviest:
                selected, heaviest = pattern.includes, weight
                if heaviest == 2:
                    break
        return selected


def _read(line: str) -> _Pattern | None:
    """The pattern of one line; None: the line has none."""
    if len(line) > MAX_PATTERN:
        raise PatternError(f"{_shown(line)} has {len(line)} characters; a pattern may have {MAX_PATTERN}")
    text = line if line.endswith("\\ ") else line.rstrip()
    if not text or text.startswith("#") or text == "/":
        return None
    includes = not text.startswith("!")
    text = text if includes else text[1:]
    try:
        parts = _anchored(text.split("/"))
        return _Pattern(includes, *_compiled(parts, only_folders=text.endswith("/")))
    except PatternError as error:
        raise PatternError(f"{_shown(line)}: {error}") from None


def _shown(line: str) -> str:
    return repr(line if len(line) <= _SHOWN else f"{line[:_SHOWN]}...")


def _anchored(parts: list[str]) -> list[str]:
    """The parts of a pattern, from the folder's top on: one without a `/` before its end fits anywhere."""
    if not parts[0]:
        parts = parts[1:]
    elif (len(parts) == 1 or parts[1:] == [""]) and parts[0] != _ANY_FOLDERS:
        parts = [_ANY_FOLDERS, *parts]
    if not parts:
        raise PatternError("there is nothing after the '!'")
    if not parts[-1]:
        parts = [*parts[:-1], _ANY_FOLDERS]
    return [part for before, part in zip([None, *parts[:-1]], parts, strict=True) if (before, part) != _TWICE]


_TWICE = (_ANY_FOLDERS, _ANY_FOLDERS)


def _compiled(
    parts: list[str], *, only_folders: bool
) -> tuple[re.Pattern[str] | None, re.Pattern[str] | None]:
    """What names a path, and what names a folder above it."""
    if parts == [_ANY_FOLDERS]:
        return (None, re.compile(".*/", re.DOTALL)) if only_folders else (re.compile(""), None)
    if parts == [_ANY_FOLDERS, "*"]:
        return re.compile(""), None
    ends_with_folders = parts[-1] == _ANY_FOLDERS
    groups = list(_groups(parts[:-1] if ends_with_folders else parts))
    *leading, last = groups
    above = "".join(f"(?>{anywhere}{fixed}/)" for anywhere, fixed in leading)
    anywhere, fixed = last
    below = re.compile(f"{above}(?>{anywhere}{fixed}/)", re.DOTALL)
    if ends_with_folders:
        return (None, below) if only_folders else (below, None)
    return re.compile(rf"{above}{anywhere}{fixed}\Z", re.DOTALL), below


def _groups(parts: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The rows of parts between two `**`: what may come before each, and itself, as expressions."""
    anywhere, row = "", []
    for part in parts:
        if part != _ANY_FOLDERS:
            row.append(_part_expression(part))
            continue
        if row:
            yield anywhere, "/".join(row)
        anywhere, row = rf"(?:{_IN_PART}+/)*?", []
    yield anywhere, "/".join(row)


def _part_expression(part: str) -> str:
    """The expression of one part of a path: a file's or a folder's whole name."""
    first, *rest = _rows_between_stars(part)
    if not rest:
        return first
    *middle, last = rest
    found = "".join(f"(?>{_IN_PART}*?{row})" for row in middle if row)
    return rf"(?>{first}{found}{_IN_PART}*{last}(?=/|\Z))"


def _rows_between_stars(part: str) -> list[str]:
    """What stands between the `*` of a part: expressions that each fit texts of one length only."""
    rows, place = [""], 0
    while place < len(part):
        character = part[place]
        place += 1
        if character == "*":
            rows.append("")
        elif character == "?":
            rows[-1] += _IN_PART
        elif character == "[":
            expression, place = _class_expression(part, place)
            rows[-1] += expression
        elif character == "\\":
            if place == len(part):
                raise PatternError("nothing follows the backslash at the end; write \\\\ for one")
            rows[-1] += re.escape(part[place])
            place += 1
        else:
            rows[-1] += re.escape(character)
    return rows


def _class_expression(part: str, begin: int) -> tuple[str, int]:
    """The expression of the characters in brackets, and the place behind them; `begin` is behind the `[`."""
    negated = part[begin : begin + 1] in ("!", "^") and part[begin : begin + 1] != ""
    begin += negated
    end = part.find("]", begin + 1)  # one that comes first is a character like others
    if end < 0:
        raise PatternError("a '[' has no ']'; write \\[ for the character")
    content = part[begin:end]
    ranges = "".join(_ranges(content))
    # As in git, no brackets match the `/` between two parts.
    return (f"[^/{ranges}]" if negated else f"(?!/)[{ranges}]"), end + 1


def _ranges(content: str) -> Iterator[str]:
    place = 0
    while place < len(content):
        low = content[place]
        if content[place + 1 : place + 2] != "-" or place + 2 >= len(content):
            place += 1
            yield re.escape(low)
            continue
        high = content[place + 2]
        if low > high:
            raise PatternError(f"the range {low}-{high} is empty; write {high}-{low}")
        place += 3
        yield f"{re.escape(low)}-{re.escape(high)}"
