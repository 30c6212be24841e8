"""Plain English: words of the style that readers had to translate don't come back."""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

#: A word to avoid, and what to write.
INSTEAD = {
    r"anew": "again",
    r"whoever|whatever it is": "the noun that is meant",
    r"see(s|n)? to (it|the|its|them|what)": "handles",
    r"(un)?mend(s|ed|able)?": "fix, retryable, permanent",
    r"makes? no sense": "is invalid, is misconfigured",
    r"so many": "the number",
    r"(is|are|was|were|be|been) told": "receives, is notified",
    r"(its|the|their) time is over": "timed out, the deadline passed",
    r"for ever": "without a limit, forever",
    r"came to (its|an) end|come to (its|an) end": "ended",
    r"an answer that is none": "a malformed response",
    r"beyond retry": "permanent",
    r"left over": "orphaned, remaining",
    r"goes? round": "repeats",
    r"under way": "in progress",
    r"by and by": "gradually",
    r"ask(s|ed)? for it (anew|once more)": "retry",
    r"no more than that": "only",
    r"of no use": "useless",
    r"takes? no part": "does not take part",
    r"(?<!there )is no (name|page token|path|stream|number|folder|file)": "is not a",
    r"isn't known here|what is no|has it that": "is unknown, is not a, says",
}
BANNED = re.compile(r"\b(" + "|".join(f"(?:{pattern})" for pattern in INSTEAD) + r")\b", re.IGNORECASE)

#: Lines that quote somebody else's words, or mean another thing: file, a part of the line.
ALLOWED: dict[str, tuple[str, ...]] = {}

_TEXTS = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", -1)}


def texts_of_python(source: str) -> Iterator[tuple[int, str]]:
    """Yield line numbers and texts of comments, docstrings and other strings."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in _TEXTS:
            for offset, line in enumerate(token.string.splitlines()):
                yield token.start[0] + offset, line


def texts_of(path: Path) -> Iterator[tuple[int, str]]:
    text = path.read_text(encoding="utf-8")
    yield from texts_of_python(text) if path.suffix == ".py" else enumerate(text.splitlines(), 1)


def files() -> list[Path]:
    folders = [ROOT / name for name in ("provider", "dags", "docs", "examples", "scripts", ".github")]
    found = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    kept = {".py", ".md", ".html", ".js", ".yml", ".yaml", ""}
    return sorted(
        [path for path in found if path.suffix in kept and "__pycache__" not in path.parts]
        + [*ROOT.glob("*.md")]
    )


def findings(path: Path) -> list[str]:
    name = str(path.relative_to(ROOT))
    allowed = ALLOWED.get(name, ())
    return [
        f"{name}:{line}: {match[0]!r} in {text.strip()!r}"
        for line, text in texts_of(path)
        for match in BANNED.finditer(text)
        if not any(part in text for part in allowed)
    ]


def test_texts_are_plain_english() -> None:
    assert [found for path in files() for found in findings(path)] == []


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("x = 1  # asks anew\n", [1]),
        ('"""Whoever reads this."""\n', [1]),
        ('def anew() -> None:\n    """Say nothing.\n\n    It makes no sense.\n    """\n', [4]),
        ("x = f'{1} is told'\n", [1]),
        ("renewal = 'renewed'\n", []),
    ],
)
def test_a_word_is_found_in_texts_only(source: str, lines: list[int]) -> None:
    assert [line for line, text in texts_of_python(source) if BANNED.search(text)] == lines
