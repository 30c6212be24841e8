"""Match paths against patterns as in a `.gitignore`, without backtracking.

https://git-scm.com/docs/gitignore#_pattern_format has the rules. An ordinary regular expression backtracks:
seven `*?` against one name of 64 characters take minutes, during which Python runs nothing else. Here every
wildcard takes the first match and keeps it (an atomic group). That is sufficient, because the rest of a
pattern that matches after a later match also matches after the first one.
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
    """An invalid pattern; the message says which and why."""


@dataclass(frozen=True, slots=True)
class _Pattern:
    """One line of a `.gitignore`.

    A pattern that matches a path itself takes precedence over one that matches a folder above it, in any
    order of the lines. `names` matches paths, `below` matches everything below a folder.
    """

    includes: bool
    names: re.Pattern[str] | None
    below: re.Pattern[str] | None

    def weight(self, path: str) -> int:
        """Return 2 if the pattern matches the path, 1 for a folder above it, 0 for neither."""
        if self.names is not None and self.names.match(path):
            return 2
        return 1 if self.below is not None and self.below.match(path) else 0


class FilePatterns:
    """A list of patterns as in a `.gitignore`; the last one that matches a path decides.

    Blank lines and lines that begin with `#` are ignored.

    :param lines: the patterns, of at most MAX_PATTERN characters each.
    :raises PatternError: a pattern is too long, ends with a backslash, has a `[` without a `]`, or a range
        such as `[z-a]`.
    """

    def __init__(self, lines: Sequence[str]) -> None:
        self._last_first = [pattern for line in reversed(lines) if (pattern := _read(line)) is not None]

    def match(self, path: str) -> bool:
        """Return whether the patterns select a path, which is relative to the folder, with `/`."""
        selected, heaviest = False, 0
        for pattern in self._last_first:
            weight = pattern.weight(path)
            if weight > heaviest:
                selected, heaviest = pattern.includes, weight
                if heaviest == 2:
                    break
        return selected


def _read(line: str) -> _Pattern | None:
    """Return the pattern of one line; None: the line has no pattern."""
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
    """Return a pattern's parts from the top folder on; one without a `/` before its end matches anywhere."""
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
    """Return the expressions that match a path, and everything below a folder."""
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
    """Yield the parts between two `**`, each with the expression of what may precede it."""
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
    """Return the expression of one part of a path, the whole name of a file or folder."""
    first, *rest = _rows_between_stars(part)
    if not rest:
        return first
    *middle, last = rest
    found = "".join(f"(?>{_IN_PART}*?{row})" for row in middle if row)
    return rf"(?>{first}{found}{_IN_PART}*{last}(?=/|\Z))"


def _rows_between_stars(part: str) -> list[str]:
    """Return the expressions between the `*` of a part; each matches texts of only one length."""
    rows, position = [""], 0
    while position < len(part):
        character = part[position]
        position += 1
        if character == "*":
            rows.append("")
        elif character == "?":
            rows[-1] += _IN_PART
        elif character == "[":
            expression, position = _class_expression(part, position)
            rows[-1] += expression
        elif character == "\\":
            if position == len(part):
                raise PatternError("nothing follows the backslash at the end; write \\\\ for one")
            rows[-1] += re.escape(part[position])
            position += 1
        else:
            rows[-1] += re.escape(character)
    return rows


def _class_expression(part: str, begin: int) -> tuple[str, int]:
    """Return the expression of a bracket group and the position after it; `begin` is after the `[`."""
    negated = part[begin : begin + 1] in ("!", "^") and part[begin : begin + 1] != ""
    begin += negated
    end = part.find("]", begin + 1)  # a `]` at the beginning is an ordinary character
    if end < 0:
        raise PatternError("a '[' has no ']'; write \\[ for the character")
    content = part[begin:end]
    ranges = "".join(_ranges(content))
    # As in git, no brackets match the `/` between two parts.
    return (f"[^/{ranges}]" if negated else f"(?!/)[{ranges}]"), end + 1


def _ranges(content: str) -> Iterator[str]:
    position = 0
    while position < len(content):
        low = content[position]
        if content[position + 1 : position + 2] != "-" or position + 2 >= len(content):
            position += 1
            yield re.escape(low)
            continue
        high = content[position + 2]
        if low > high:
            raise PatternError(f"the range {low}-{high} is empty; write {high}-{low}")
        position += 3
        yield f"{re.escape(low)}-{re.escape(high)}"
