"""Text of other programs, cleaned for databases and messages."""

from __future__ import annotations

import time

import pytest

from airflow_invocations.models.text import encodable, printable, shortened


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        ("ä€🤖\t\n", "ä€🤖\t\n"),
        ("a\0b", "a\ufffdb"),
        ("\ud800x\udfff", "\ufffdx\ufffd"),
    ],
)
def test_encodable_replaces_only_characters_that_databases_reject(text: str, expected: str) -> None:
    assert encodable(text) == expected


@pytest.mark.parametrize(
    ("text", "limit", "expected"), [("abc", 3, "abc"), ("a" * 30, 20, "a" * 10 + " ... (cut)")]
)
def test_shortened_text_is_marked(text: str, limit: int, expected: str) -> None:
    assert shortened(text, limit) == expected
    assert len(shortened(text, limit)) <= limit


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("no such topic", "no such topic"),
        ("two\nlines\tand a tab", "two\nlines\tand a tab"),
        ("two\r\nlines", "two\nlines"),
        ("\x1b[31mred\x1b[0m and \x1b]0;title\x07bell", "red and bell"),
        ("\x1b]8;;http://h\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("a\x00b\x07c\x1bcd\rover\x9b1m", "a\ufffdb\ufffdcd\ufffdover\ufffd1m"),
        ("\u202egnp.exe", "\ufffdgnp.exe"),
        ("\ud83d", "\ufffd"),
    ],
)
def test_printable_text_has_no_escape_sequences_and_control_characters(text: str, expected: str) -> None:
    assert printable(text, 100) == expected


@pytest.mark.parametrize(
    "text", ["x" * 2_000_068, "\x1b[" * 1_000_000, "\x1b]" * 1_000_000, "\0" * 1_000_000]
)
def test_printable_cuts_a_huge_text_cheaply(text: str) -> None:
    began = time.process_time()
    cut = printable(text, 2_000)
    assert time.process_time() - began < 0.5
    assert len(cut) <= 2_000
    assert cut.endswith(" ... (cut)")
