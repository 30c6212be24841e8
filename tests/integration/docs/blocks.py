"""Reads the fenced blocks of the documentation, with what they quote put in."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[3]

_FENCE = re.compile(r"^(?P<indent> *)(?P<fence>`{3,}|~{3,})(?P<info>[^`]*)$")
_TITLE = re.compile(r'title="([^"]*)"')
_QUOTED = re.compile(r"^--8<--\n(.+)\n--8<--$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block of a page."""

    #: The page's path from the repository's root.
    page: str
    line: int
    #: What the fence says; empty: nothing.
    language: str
    #: What stands above it; for a file of the reader's, its path.
    title: str
    text: str
    #: The file of the repository that it quotes, if it is nothing else than that.
    quotes: str | None = None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    def is_file_in(self, folder: str) -> bool:
        """Whether it is a file of the reader's, below a folder."""
        return self.title.startswith(f"{folder}/")


def pages() -> list[Path]:
    """Every page, of the site and beside it."""
    return [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


def blocks() -> list[Block]:
    """Every fenced block of every page, in their order."""
    return [block for page in pages() for block in _blocks_of(page)]


def _blocks_of(page: Path) -> Iterator[Block]:
    lines = enumerate(page.read_text().splitlines(), start=1)
    for number, line in lines:
        if (opening := _FENCE.match(line)) is None:
            continue
        indent, fence, info = opening["indent"], opening["fence"], opening["info"].strip()
        inner = []
        for _, line in lines:
            if line.strip() == fence:
                break
            inner.append(line.removeprefix(indent))
        else:
            raise AssertionError(f"{page}:{number}: this block has no end")
        text, quotes = _with_quotations(inner)
        title = _TITLE.search(info)
        yield Block(
            page=str(page.relative_to(ROOT)),
            line=number,
            language=info.split(maxsplit=1)[0] if info else "",
            title=title[1] if title else "",
            text=text,
            quotes=quotes,
        )


def _with_quotations(lines: list[str]) -> tuple[str, str | None]:
    """A block's text with the files that it quotes, and the one that it quotes if that is all."""
    written = "\n".join(lines)
    quoted = _QUOTED.findall(written)
    text = _QUOTED.sub(lambda found: (ROOT / found[1]).read_text().rstrip(), written)
    return f"{text}\n", quoted[0] if _QUOTED.fullmatch(written) else None
