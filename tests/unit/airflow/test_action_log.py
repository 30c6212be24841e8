"""An action's lines in the task's log: their times, what is handed on, and where they leave the process."""

from __future__ import annotations

import datetime
import json
import logging
import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from airflow_invocations import action_log
from airflow_invocations.action_log import ActionLog, ShownLog, SocketChannel
from airflow_invocations.models import LogRecord
from airflow_invocations.waiters import LogLine, LogPosition, LongLine

pytestmark = pytest.mark.anyio

LONG_AGO = datetime.datetime(2026, 1, 31, 12, tzinfo=datetime.UTC)


class Logger:
    """Takes what Airflow's logger would."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.times: list[datetime.datetime] = []

    def info(self, line: str, *, logger: str, timestamp: str) -> None:
        self.lines.append(line)
        self.times.append(datetime.datetime.fromisoformat(timestamp))


@pytest.fixture
def logger(monkeypatch: pytest.MonkeyPatch) -> Logger:
    taken = Logger()
    monkeypatch.setattr(action_log, "structlog", SimpleNamespace(get_logger=lambda _: taken))
    return taken


def line(text: str | None, moment: datetime.datetime = LONG_AGO) -> LogLine:
    return LogLine(text, moment, 1)


def test_lines_have_the_time_at_which_the_action_wrote_them_and_no_two_the_same(logger: Logger) -> None:
    log = ActionLog()
    later = LONG_AGO + datetime.timedelta(seconds=1)
    for each in (line("a"), line("a"), line(None), line("b", later), line("clock went back")):
        log.show(each)
    tick = datetime.timedelta(microseconds=1)
    assert logger.lines == ["a", "a", "b", "clock went back"]
    assert logger.times == [LONG_AGO, LONG_AGO + tick, later, later + tick]


def test_no_line_is_from_the_future_whatever_the_platforms_clock_says(logger: Logger) -> None:
    log = ActionLog()
    log.show(line("a", datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=1)))
    log.show(line("b", datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=1)))
    assert logger.times[0] < logger.times[1]
    assert logger.times[1] <= datetime.datetime.now(datetime.UTC)


def test_next_writer_continues_after_the_earlier_lines(logger: Logger) -> None:
    first = ActionLog()
    for _ in range(100):
        first.show(line("a"))
    position = LogPosition("7", 3, LongLine("f1", 64))
    event = json.loads(json.dumps(first.shown(position).as_event()))
    shown = ShownLog.from_event(event)
    assert (shown.position, shown.last) == (position, ["a"] * 20)
    logger.times.clear()
    second = ActionLog(shown=shown)
    second.show(line("a"))
    # Airflow sorts by milliseconds.
    assert shown.until is not None
    assert logger.times[0] - shown.until >= datetime.timedelta(milliseconds=1)
    assert second.last == ["a"] * 20


def test_a_cursor_that_can_not_be_stored_is_left_out_with_all_that_depends_on_it() -> None:
    event = ShownLog(LogPosition("a\0b", 3)).as_event()
    assert (event["cursor"], event["lines_beyond"]) == (None, 0)
    event = ShownLog(LogPosition("7", 3, LongLine("a\0b", 64))).as_event()
    assert (event["cursor"], event["lines_beyond"], event["long_line"]) == ("7", 3, None)


def test_an_event_of_an_older_version_is_understood() -> None:
    shown = ShownLog.from_event({"cursor": "5", "log_tail": ["a"]})
    assert shown == ShownLog(LogPosition("5"), None, ["a"])


async def test_a_page_is_shown_from_the_position_on(logger: Logger) -> None:
    records = [
        LogRecord.model_validate({"log": text, "process": "action", "timestamp": LONG_AGO})
        for text in ("a", "b", "c")
    ]
    log = ActionLog(shown=ShownLog(LogPosition(None, 2)))
    await log.show_page(records, "3")
    assert (logger.lines, log.position) == (["c"], LogPosition("3"))


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    writer, reader = socket.socketpair()
    with writer, reader:
        yield writer, reader


def test_a_channel_says_what_its_receiver_has_not_read(pair: tuple[socket.socket, socket.socket]) -> None:
    writer, reader = pair
    channel = SocketChannel(writer.fileno())
    assert (channel.unread(), channel.capacity > 10_000) == (0, True)
    writer.sendall(b"x" * 5000)
    assert (channel.unread() or 0) >= 5000
    reader.recv(4096)
    assert channel.unread() != 0
    reader.recv(4096)
    assert channel.unread() == 0


def test_the_channel_is_the_socket_that_airflow_logs_to(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, _ = pair
    handlers: list[Any] = [logging.StreamHandler(), logging.NullHandler()]
    monkeypatch.setattr(logging.getLogger(), "handlers", handlers)
    assert action_log._log_channel() is None
    with writer.makefile("w") as stream:
        handlers.append(logging.StreamHandler(stream))
        channel = action_log._log_channel()
        assert channel is not None
        writer.sendall(b"x")
        assert channel.unread() != 0
