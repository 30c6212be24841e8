"""Numbers in messages: "1 line", not "1 lines", and no powers of ten."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_invocations.models.text import counted, figure

PROVIDER = Path(__file__).parents[2] / "provider" / "airflow_invocations"

#: Actions are scripts of their own, which can import nothing of the package.
FILES = sorted(
    path for path in PROVIDER.rglob("*.py") if "actions" not in path.relative_to(PROVIDER).parts[:2]
)

_NOUNS = "|".join(
    f"{noun}s"
    for noun in [
        "action",
        "byte",
        "character",
        "connection",
        "dataset",
        "event",
        "file",
        "invocation",
        "line",
        "log",
        "output",
        "parameter",
        "problem",
        "reading",
        "record",
        "result",
        "runner",
        "second",
        "stream",
        "task",
        "time",
        "watche",
    ]
)
#: What follows a number in an f-string, and a number with what follows it for `%`.
_AFTER = re.compile(rf" ({_NOUNS})\b")
_PERCENT = re.compile(rf"%d ({_NOUNS})\b")


def plurals_of_any_number(code: str) -> Iterator[str]:
    """Yield texts that put a plural behind a number that may be 1; constants and sums of bytes are none."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and _PERCENT.search(node.value):
            yield node.value
        if not isinstance(node, ast.JoinedStr):
            continue
        for value, after in zip(node.values, node.values[1:], strict=False):
            is_number = isinstance(value, ast.FormattedValue) and _may_be_one(value.value)
            text = after.value if isinstance(after, ast.Constant) and isinstance(after.value, str) else ""
            found = _AFTER.match(text)
            if is_number and found and found[1] not in ("bytes", "characters"):
                yield ast.unparse(node)


def _may_be_one(value: ast.expr) -> bool:
    """Return whether a value may be the number 1: names in capitals are constants."""
    return not (isinstance(value, ast.Name) and value.id.isupper())


@pytest.mark.parametrize(
    ("code", "is_wrong"),
    [
        ('f"{len(files)} outputs stay"', True),
        ('f"{lines:,} lines (1 MB)"', True),
        ('log("%d lines of invocation %s", 1, "iv")', True),
        ("f\"{counted(1, 'line')} of it\"", False),
        ('f"at most {MAX_IDS} invocations"', False),
        ('f"{path}/v1/files"', False),
    ],
)
def test_a_plural_behind_any_number_is_found(code: str, is_wrong: bool) -> None:
    assert bool(list(plurals_of_any_number(code))) is is_wrong


def test_no_message_says_1_lines() -> None:
    found = [
        f"{path.relative_to(PROVIDER)}: {text}"
        for path in FILES
        for text in plurals_of_any_number(path.read_text(encoding="utf-8"))
    ]
    assert found == []


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 lines"), (1, "1 line"), (2, "2 lines"), (2000, "2,000 lines")]
)
def test_counted(number: int, text: str) -> None:
    assert counted(number, "line") == text


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (0.1, "0.1"), (1, "1"), (100, "100"), (2_592_000.0, "2,592,000"), (1.5, "1.5")],
)
def test_figure(number: float, text: str) -> None:
    assert figure(number) == text
