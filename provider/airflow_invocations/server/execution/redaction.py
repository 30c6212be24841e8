"""Remove secret values from the lines that an action writes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

#: Replaces a secret value in a log.
REDACTED = b"***"

#: Characters of the shortest value that is replaced; a shorter one would occur in many words.
SHORTEST_REDACTED = 4


class Redaction:
    """Replaces secret values in lines of a log, also where they are escaped as JSON, or as JSON within JSON.

    JSON writers differ in what they escape: Python every character beyond ASCII, Go `<`, `>` and `&`, PHP the
    slash. Values in another encoding (URL, HTML, base64, UTF-16), or split between standard output and
    standard error, are not recognised.

    Each line of a value is replaced by itself; lines of fewer than SHORTEST_REDACTED characters are not.

    :param values: the secrets' values.
    """

    def __init__(self, values: Iterable[str]) -> None:
        lines = {line.strip() for value in values for line in value.splitlines()}
        all_forms = {form for line in lines for form in _forms(line)}
        forms = sorted((form for form in all_forms if len(form) >= SHORTEST_REDACTED), key=len, reverse=True)
        self._pattern = re.compile(b"|".join(re.escape(form.encode()) for form in forms)) if forms else None
        #: Bytes of the longest form of a value; 0: there is no value.
        self.longest = max((len(form.encode()) for form in forms), default=0)

    def applied_to(self, text: bytes) -> bytes:
        """Return the text without the values."""
        return text if self._pattern is None else self._pattern.sub(REDACTED, text)

    def held_back(self, text: bytes) -> int:
        """Return the number of bytes at the end of a text that may be the beginning of a value."""
        if self._pattern is None:
            return 0
        return min(len(text), self.longest - 1)


#: Sets of characters that some JSON writers escape although JSON doesn't require it: Go, .NET, and PHP.
_ESCAPED = ("", "<>&", "<>&'+`", "/", "<>&/", "<>&'/")

#: Escapes that some JSON writers write in upper case: none, those of ASCII characters, or all.
_UPPER = (re.compile(r"(?!)"), re.compile(r"\\u00[0-7][0-9a-f]"), re.compile(r"\\u[0-9a-f]{4}"))


def _forms(line: str) -> set[str]:
    """Return a value as it is, escaped as JSON, and escaped twice."""
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
