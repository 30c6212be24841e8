"""The lines of a log that are shown, their form, and the position to resume from."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import AsyncIterator, Sequence

import pytest

from airflow_invocations.models import LogPage, LogRecord
from airflow_invocations.platforms import UnavailableError
from airflow_invocations.waiters import (
    BEGINNING,
    LineShaper,
    LogEnd,
    LogLine,
    LogPosition,
    LogSettings,
    UnshownRecords,
    read_end,
)
from airflow_invocations.waiters.log_relay import LogQueue
from airflow_invocations.waiters.logs import EndOfLog

from .conftest import page

URL = "http://platform/iv_1#log"


def record(text: str, partial_id: str | None = None) -> LogRecord:
    moment = datetime.datetime(2026, 1, 31, 12, tzinfo=datetime.UTC)
    return LogRecord.model_validate(
        {"log": text, "process": "action", "timestamp": moment, "partial_id": partial_id}
    )


def pages_of(lines: Sequence[str], size: int, begin: int = 0) -> list[LogPage]:
    """A log in pages, each with the number of lines up to its end as its cursor."""
    return [
        page(lines[at : at + size], str(min(at + size, len(lines))), has_next=at + size < len(lines))
        for at in range(begin, len(lines), size)
    ]


@pytest.mark.parametrize("first_size", [1, 3, 7, 50])
@pytest.mark.parametrize("next_size", [1, 4, 50])
def test_reader_that_resumes_from_a_position_shows_every_line_once(first_size: int, next_size: int) -> None:
    lines = [str(number) for number in range(20)]
    for shown in range(21):
        first = UnshownRecords()
        position = LogPosition()
        taken: list[str] = []
        for one in pages_of(lines, first_size):
            for entry, behind in first.of_page(one.items, one.last_read):
                if len(taken) < shown:
                    taken.append(entry.log)
                    position = behind
        then = UnshownRecords(position)
        for one in pages_of(lines, next_size, begin=int(position.cursor or 0)):
            taken += [entry.log for entry, _ in then.of_page(one.items, one.last_read)]
        assert taken == lines


def test_position_within_pages_can_be_resumed_repeatedly() -> None:
    lines = [str(number) for number in range(10)]
    begun = UnshownRecords(LogPosition(None, 5))
    behind = [
        position for one in pages_of(lines, 3) for _, position in begun.of_page(one.items, one.last_read)
    ]
    assert behind == [
        LogPosition("6"),
        LogPosition("6", 1),
        LogPosition("6", 2),
        LogPosition("9"),
        LogPosition("10"),
    ]


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("plain", "plain"),
        (" 10%|#  |\r 20%|## |\r100%|###| done", "100%|###| done"),
        ("100%\r", "100%"),
        ("100%\r\r", "100%"),
        ("lone \ud800 surrogate", "lone \ufffd surrogate"),
        ("", ""),
    ],
)
def test_redrawn_line_is_shown_in_its_last_state(written: str, shown: str) -> None:
    entry = record("x").model_copy(update={"log": written})
    assert LineShaper().shape(entry).text == shown


def test_long_line_is_cut_once_whole_or_in_parts() -> None:
    settings = LogSettings(line_length=10)
    notice = f"[... cut after 10 characters; the whole line: {URL} ]"
    assert LineShaper(URL, settings).shape(record("x" * 10)).text == "x" * 10
    assert LineShaper(URL, settings).shape(record("x" * 11)).text == f"{'x' * 10} {notice}"
    shaper = LineShaper(URL, settings)
    texts = [shaper.shape(record(part, "a")).text for part in ("123456", "7890", "more", "still")]
    assert texts == ["123456", f"7890 {notice}", None, None]
    assert shaper.shape(record("next", "b")).text == "next"
    assert shaper.shape(record("12345678901", "b")).text == f"123456 {notice}"
    assert shaper.shape(record("whole")).text == "whole"


@pytest.mark.parametrize("shown_first", [1, 2, 3])
def test_long_line_continues_where_an_earlier_reader_stopped(shown_first: int) -> None:
    settings = LogSettings(line_length=10)
    parts = [record(part, "a") for part in ("123456", "7890", "more", "still")]
    texts: list[str | None] = []
    first = LogQueue(lambda line: texts.append(line.text), shaper=LineShaper(URL, settings))
    first.put(parts, "4")
    for _ in range(shown_first):
        first.write_next()
    then = LogQueue(lambda line: texts.append(line.text), first.written, LineShaper(URL, settings))
    then.put(parts, "4")
    while len(then):
        then.write_next()
    assert texts == ["123456", f"7890 [... cut after 10 characters; the whole line: {URL} ]"]


def end_of(
    lines: Sequence[str], limit: LogEnd, size: int = 10, position: LogPosition = BEGINNING
) -> tuple[list[str | None], EndOfLog]:
    async def pages() -> AsyncIterator[LogPage]:
        for one in pages_of(lines, size, begin=int(position.cursor or 0)):
            yield one

    first: list[LogLine] = []
    end = asyncio.run(read_end(pages(), position, shaper=LineShaper(URL), limit=limit, show=first.append))
    return [line.text for line in first], end


MUCH = 10**9


@pytest.mark.parametrize("count", [0, 1, 9, 10])
def test_short_rest_of_a_log_is_shown_whole(count: int) -> None:
    lines = [str(number) for number in range(count)]
    first, end = end_of(lines, LogEnd(lines=10, size=MUCH, seconds=10))
    assert first + [line.text for line in end.last] == lines
    assert end.left_out == ""


def test_long_log_shows_its_first_and_last_lines_and_reports_the_rest() -> None:
    lines = [str(number) for number in range(1000)]
    first, end = end_of(lines, LogEnd(lines=10, size=MUCH, seconds=10))
    assert first == lines[:5]
    assert [line.text for line in end.last] == lines[-5:]
    assert end.left_out.startswith("Left out here of the action's log: 990 lines (")
    assert end.left_out.endswith(f" MB); the whole log: {URL}")


def test_rest_of_a_log_is_bounded_in_bytes() -> None:
    lines = ["x" * 1000] * 1000
    first, end = end_of(lines, LogEnd(lines=MUCH, size=20_000, seconds=10))
    assert 5 <= len(first) <= 10
    assert 5 <= len(end.last) <= 10


def test_rest_of_a_log_within_a_page_repeats_no_line() -> None:
    lines = [str(number) for number in range(30)]
    limit = LogEnd(lines=100, size=MUCH, seconds=10)
    first, end = end_of(lines, limit, size=7, position=LogPosition("10", 3))
    assert first + [line.text for line in end.last] == lines[13:]


def test_unreadable_end_of_a_log_is_reported_and_no_false_end_shown() -> None:
    async def pages() -> AsyncIterator[LogPage]:
        yield pages_of([str(number) for number in range(20)], 10)[0]
        raise UnavailableError("no answer")

    first: list[LogLine] = []
    limit = LogEnd(lines=4, size=MUCH, seconds=10)
    end = asyncio.run(
        read_end(pages(), LogPosition(), shaper=LineShaper(URL), limit=limit, show=first.append)
    )
    assert [line.text for line in first] == ["0", "1"]
    assert end.last == []
    assert "can't be read: no answer" in end.left_out
    assert "8 lines" in end.left_out


def test_slow_log_is_reported_as_not_read_to_its_end() -> None:
    lines = [str(number) for number in range(1000)]
    _, end = end_of(lines, LogEnd(lines=4, size=MUCH, seconds=-1.0))
    assert "was not read to its end" in end.left_out
