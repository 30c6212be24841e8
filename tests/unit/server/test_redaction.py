"""Secrets' values are taken out of whatever an action writes, in whatever pieces it comes."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from airflow_invocations.models import LogProcess
from airflow_invocations.server.db import CheckedInvocation
from airflow_invocations.server.execution.logs import MAX_LINE, LogFiles
from airflow_invocations.server.execution.redaction import REDACTED, Redaction

KEY = "-----BEGIN KEY-----\nMIIEvQIBADANBg\n  kqhkiG9w0BAQEF  \n-----END KEY-----"


def test_values_are_replaced_as_they_are_and_as_json() -> None:
    redaction = Redaction(['p"w\\d', 'longer-p"w\\d'])
    text = 'p"w\\d ' + json.dumps('longer-p"w\\d') + ' longer-p"w\\d'
    assert redaction.applied_to(text.encode()) == b'*** "***" ***'


@pytest.mark.parametrize(
    "written",
    [
        r"a\u003cb\u003e\u0026\"/d\u00e9",  # Python, of what Go has written for < > &
        r"a\u003cb\u003e\u0026\"/d" + "\u00e9",  # Go
        r"a\u003Cb\u003E\u0026\"/d\u00E9",  # .NET
        r"a<b>&\"\/d\u00e9",  # PHP
        r"a\u003Cb\u003E\u0026\"\/d\u00e9",  # PHP with JSON_HEX_TAG | JSON_HEX_AMP, digits mixed
        json.dumps(json.dumps('a<b>&"/d\u00e9')),
        json.dumps(r"a\u003cb\u003e\u0026\"/d" + "\u00e9", ensure_ascii=False),
    ],
)
def test_a_value_is_replaced_as_other_writers_of_json_write_it(written: str) -> None:
    shown = Redaction(['a<b>&"/d\u00e9']).applied_to(written.encode()).decode()
    assert REDACTED.decode() in shown
    assert "d" not in shown.replace("u00", "")


def test_a_value_of_several_lines_is_replaced_line_by_line() -> None:
    shown = Redaction([KEY]).applied_to(f"key:\n{KEY}\n".encode())
    assert b"MIIEvQ" not in shown
    assert b"kqhkiG9w" not in shown


def test_short_values_are_not_redacted() -> None:
    redaction = Redaction(["abc", ""])
    assert redaction.applied_to(b"abc") == b"abc"
    assert redaction.held_back(b"abc") == 0


@pytest.mark.parametrize("seed", range(20))
def test_no_cut_shows_a_value(tmp_path: Path, seed: int) -> None:
    """Neither where a pipe is read in pieces nor where a long line is kept in parts."""
    dice = random.Random(seed)
    secret = "s3cret-" + "x" * dice.choice([1, 100, 5000])
    filler = "".join(dice.choices("abc \n" if seed % 2 else "abc ", k=dice.randrange(3 * MAX_LINE)))
    places = sorted(dice.randrange(len(filler) + 1) for _ in range(5))
    text = ""
    for begin, end in zip([0, *places], [*places, len(filler)], strict=True):
        text += filler[begin:end] + secret
    logs = LogFiles(tmp_path)
    writer = logs.writer("iv_0000000000000001")
    stream = writer.stream(LogProcess.Action, Redaction([secret]))
    content = text.encode()
    while content:
        count = dice.choice([1, 10, 4096, MAX_LINE, 2 * MAX_LINE])
        stream.feed(content[:count])
        content = content[count:]
    stream.finish()
    writer.close()
    written, cursor = "", None
    while True:
        page = logs.read(CheckedInvocation("iv_0000000000000001", "og_local"), cursor)
        for item in page.items:
            written += item.log if item.partial_id else f"{item.log}\n"
        cursor = page.last_read
        if not page.has_next:
            break
    assert written.replace("\n", "") == text.replace(secret, REDACTED.decode()).replace("\n", "")
