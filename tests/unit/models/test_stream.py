"""Messages of a stream: each is decoded as it was encoded, and malformed content is rejected."""

from __future__ import annotations

import datetime
import json
from typing import Any

import pytest

from airflow_invocations.models import (
    CaughtUp,
    CursorLost,
    EventFilter,
    InvocationEvent,
    InvocationStatus,
    LogPage,
    NewLines,
    StateChanged,
    StreamMessage,
    StreamOpened,
    UnreadableLog,
    cursor_at,
    decode_message,
    encode_message,
    is_time,
)

S = InvocationStatus
NOON = datetime.datetime(2026, 1, 31, 12, tzinfo=datetime.UTC)
LINE = {"log": "a", "process": "action", "timestamp": "2026-01-31T12:00:01Z"}
PAGE = LogPage.model_validate({"items": [LINE], "has_next": False, "last_read": "2"})

MESSAGES: list[StreamMessage] = [
    InvocationEvent("iv_1", S.Failed, "count", NOON, 7, attempt=2, detail="exit code 3"),
    InvocationEvent("iv_1", S.Queued, "count", NOON, 7, is_snapshot=True),
    NewLines("iv_1", PAGE, "1"),
    NewLines("iv_1", PAGE),
    UnreadableLog("iv_1", "no such cursor"),
    StateChanged("iv_1", "half way"),
    StreamOpened("wt_1"),
    CaughtUp(7),
    CursorLost(7),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_message_is_decoded_as_it_was_encoded(message: StreamMessage) -> None:
    name, content, cursor = encode_message(message)
    assert decode_message(name, json.loads(json.dumps(content)), cursor) == message


def test_unknown_message_is_ignored() -> None:
    assert decode_message("invented_tomorrow", {}, None) is None


def test_unknown_status_is_kept() -> None:
    name, content, cursor = encode_message(MESSAGES[0])
    event = decode_message(name, {**content, "status": 4711}, cursor)
    assert isinstance(event, InvocationEvent)
    assert not event.status.is_known


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
@pytest.mark.parametrize("wrong", [{}, None, [], 1e400, {"a": 1}], ids=repr)
def test_malformed_field_is_a_value_error(message: StreamMessage, wrong: Any) -> None:
    name, content, cursor = encode_message(message)
    for field in content.keys() - {"reason", "detail", "begins_at", "has_next", "last_read"}:
        if (field, wrong) == ("items", []):
            continue
        with pytest.raises(ValueError, match=r"."):
            decode_message(name, {**content, field: wrong}, cursor)
        with pytest.raises(ValueError, match=r"."):
            decode_message(name, {key: value for key, value in content.items() if key != field}, cursor)
    with pytest.raises(ValueError, match=r"."):
        decode_message(name, wrong, cursor)


def test_lines_keep_their_cursor_if_the_platform_reports_none() -> None:
    page = LogPage(items=[], has_next=False)
    assert NewLines("iv_1", page, "5").cursor == "5"
    assert NewLines("iv_1", PAGE, "1").cursor == "2"


def test_times_and_numbers_are_different_cursors() -> None:
    assert is_time(cursor_at(NOON))
    assert not is_time(10**9)


def test_filter_matches_any_name_of_an_action() -> None:
    event = InvocationEvent("iv_1", S.Failed, "count", NOON, 7, frozenset({"count@2"}))
    failed = frozenset({S.Failed})
    assert EventFilter().matches(event)
    assert EventFilter("count@2", failed).matches(event)
    assert not EventFilter("other").matches(event)
    assert not EventFilter(statuses=frozenset({S.Completed})).matches(event)
