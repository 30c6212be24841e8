"""Write the reference of the command `invocations` from its parser when the site is built."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

from airflow_invocations.cli.main import build_parser

PAGE = "reference/command.md"


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Append the help of each command to the page; mkdocs calls this for every page."""
    if page.file.src_uri != PAGE:
        return markdown
    with patch.dict("os.environ", {"COLUMNS": "100"}):
        sections = [
            f"## {parser.prog}\n\n```text\n{parser.format_help()}```" for parser in _all(build_parser())
        ]
    return "\n\n".join([markdown, *sections])


def _all(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """Yield a parser and the parsers of its commands."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _all(command)
