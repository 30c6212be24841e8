"""Clean text that actions and platforms wrote."""

from __future__ import annotations

import re
from typing import Final

#: Replaces an invalid character: U+FFFD, the replacement character of Unicode.
REPLACEMENT: Final = "\ufffd"

#: The end of a text that was cut.
CUT: Final = " ... (cut)"

#: U+0000, which PostgreSQL can't store in text, and surrogates, which UTF-8 can't encode.
_UNENCODABLE = re.compile("[\x00\ud800-\udfff]")

#: Escape sequences of terminals (ECMA-48): CSI, such as colours; OSC, such as titles; and the short ones.
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[ -/]*[0-~])")

#: Control characters other than tab and line feed, and those that change the direction of text.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def counted(number: int, noun: str) -> str:
    """Return a number with a noun, such as "1 line" or "2,000 lines"; `noun` has a plural in s."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def figure(number: float) -> str:
    """Return a number as text, such as "0.1" or "2,592,000", with at most six digits after the point."""
    return f"{number:,.6f}".rstrip("0").rstrip(".")


def encodable(text: str) -> str:
    """Replace characters that UTF-8 or PostgreSQL can't store, U+0000 and surrogates, by U+FFFD."""
    return _UNENCODABLE.sub(REPLACEMENT, text)


def shortened(text: str, limit: int) -> str:
    """Cut a string to `limit` characters; a cut string ends in ` ... (cut)`."""
    return text if len(text) <= limit else f"{text[: max(0, limit - len(CUT))]}{CUT}"


def printable(text: str, limit: int) -> str:
    """Return a text without escape sequences and control characters, cut to `limit` characters."""
    # Cut first, so that the cost is bounded by the length of the result, escape sequences included.
    head = text[: 4 * limit]
    clean = encodable(_CONTROLS.sub(REPLACEMENT, _ESCAPES.sub("", head.replace("\r\n", "\n"))))
    return shortened(clean + CUT if len(head) < len(text) else clean, limit)
