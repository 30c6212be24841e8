"""Takes secrets' values out of the lines that an action writes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

#: What stands in a log where a secret's value would.
REDACTED = b"***"

#: Characters that a value has at least to be looked for in logs: a shorter one is in every other word.
SHORTEST_REDACTED = 4


class Redaction:
    """Replaces secrets' values in lines of a log, as they are and as JSON writes them, also JSON within JSON.

    Writers of JSON differ in what they escape: Python every character beyond ASCII, Go `<`, `>` and `&`, PHP
    the slash. Values that are encoded in another way (URL, HTML, base64, UTF-16), or written half to standard
    output and half to standard error, are not recognised.

    A value of several lines is looked for line by line; lines and values of fewer than SHORTEST_REDACTED
    characters are left alone.

    :param values: the secrets' values.
    """

    def __init__(self, values: Iterable[str]) -> None:
        lines = {line.strip() for value in values for line in value.splitlines()}
        written = {form for line in lines for form in _forms(line)}
        wanted = sorted((form for form in written if len(form) >= SHORTEST_REDACTED), key=len, reverse=True)
        self._pattern = re.compile(b"|".join(re.escape(form.encode()) for form in wanted)) if wanted else None
        #: Bytes of the longest value that is looked for; 0: none is.
        self.longest = max((len(form.encode()) for form in wanted), default=0)

    def applied_to(self, text: bytes) -> bytes:
        """The text without the values."""
        return text if self._pattern is None else self._pattern.sub(REDACTED, text)

    def held_back(self, text: bytes) -> int:
        """How many bytes at the text's end may be the beginning of a value: wait for what follows them."""
        if self._pattern is None:
            return 0
        return min(len(text), self.longest - 1)


#: Characters that some writers of JSON escape though they need not: Go and .NET, and PHP. Each set is taken
#: whole, as a writer does.
_ESCAPED = ("", "<>&", "<>&'+`", "/", "<>&/", "<>&'/")

#: What some write with hexadecimal digits in upper case: nothing, ASCII characters only, or every character.
_UPPER = (re.compile(r"(?!)"), re.compile(r"\\u00[0-7][0-9a-f]"), re.compile(r"\\u[0-9a-f]{4}"))


def _forms(line: str) -> set[str]:
    """A value as it is, as writers of JSON write it, and as they write what they wrote."""
    once = _as_json(line)
    return {line, *once, *(twice for form in once for twice in _as_json(form))}


def _as_json(text: str) -> set[str]:
    forms = set()
    for escaped in _ESCAPED:
        for ascii_only in (True, False):
            form = json.dumps(text, ensure_ascii=ascii_only)[1:-1]
            form = "".join(_escape(one) if one in escaped else one for one in form)
            forms |= {upper.sub(lambda found: "\\u" + found[0][2:].upper(), form) for upper in _UPPER}
    return forms


def _escape(character: str) -> str:
    return "\\/" if character == "/" else f"\\u{ord(character):04x}"
