"""Comments and documents name nothing that a reader can't open."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

#: Notes that are not part of the repository, and absolute paths of a machine.
_NOT_HERE = re.compile(
    r"\bfacts(: [A-Z]|, [A-Z]|/\w+\.md)|\b(coverage|faults|chaos|architecture)\.md\b"
    r"|\(issue \d+\)|/(work|shared)/\w"
)

FILES = sorted(
    path
    for folder in ("provider", "tests", "docs", "dags", "scripts")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in (".py", ".md", ".js", ".html", ".css", ".toml", ".sh") and path != Path(__file__)
)


@pytest.mark.parametrize(
    ("text", "is_wrong"),
    [
        ("#: All are terminal (facts: Status).", True),
        ("as it is (facts/airflow.md, section 9)", True),
        ("see coverage.md, gap 9", True),
        ("Seconds that it may take (issue 7).", True),
        ("the facts: one class an error code", False),
        ("apache/airflow #71580", False),
    ],
)
def test_a_reference_to_what_is_not_here_is_found(text: str, is_wrong: bool) -> None:
    assert bool(_NOT_HERE.search(text)) is is_wrong


def test_no_file_refers_to_what_is_not_here() -> None:
    assert len(FILES) > 300
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in FILES
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if _NOT_HERE.search(line)
    ]
    assert found == []
