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
    """Replaces secrets' values in lines of a log, as they are and as JSON writes them.

    A value of several lines is looked for line by line; lines and values of fewer than SHORTEST_REDACTED
    characters are left alone.

    :param values: the secrets' values.
    """

    def __init__(self, values: Iterable[str]) -> None:
        lines = {line.strip() for value in values for line in value.splitlines()}
        written = {form for line in lines for form in (line, json.dumps(line)[1:-1])}
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
