"""When a queued invocation is looked at: after a minute, ever more rarely, a few at a time."""

from __future__ import annotations

import pytest

from airflow_invocations.platforms import overdue
from airflow_invocations.platforms.overdue import FIRST_LOOK, LONGEST_PAUSE, MOST_AT_ONCE, Overdue


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]

    class Clock:
        monotonic = staticmethod(lambda: now[0])

    monkeypatch.setattr(overdue, "time", Clock)
    return now


def test_pauses_double_up_to_the_longest(clock: list[float]) -> None:
    looks = Overdue()
    moments = []
    for second in range(0, 5000, 10):
        clock[0] = 1000.0 + second
        if looks.due({"iv"}, {"iv"}):
            moments.append(second)
    assert moments == [60, 180, 420, 900, 1800, 2700, 3600, 4500]
    assert (FIRST_LOOK, LONGEST_PAUSE) == (60, 900)


def test_invocation_that_left_the_queue_starts_over(clock: list[float]) -> None:
    looks = Overdue()
    assert looks.due({"iv"}, {"iv"}) == []
    clock[0] += 59
    assert looks.due({"iv"}, set()) == []
    clock[0] += 59
    assert looks.due({"iv"}, {"iv"}) == []
    clock[0] += 60
    assert looks.due({"iv"}, {"iv"}) == ["iv"]


def test_invocation_that_was_not_checked_keeps_its_turn(clock: list[float]) -> None:
    looks = Overdue()
    looks.due({"a"}, {"a"})
    clock[0] += 61
    assert looks.due({"b"}, {"b"}) == []
    assert looks.due({"a"}, {"a"}) == ["a"]


def test_few_are_due_at_once_and_all_have_their_turn(clock: list[float]) -> None:
    looks = Overdue()
    ids = {f"iv_{number}" for number in range(3 * MOST_AT_ONCE)}
    looks.due(ids, ids)
    clock[0] += 61
    turns = [looks.due(ids, ids) for _ in range(3)]
    assert [len(turn) for turn in turns] == [MOST_AT_ONCE] * 3
    assert {one for turn in turns for one in turn} == ids


def test_no_more_is_kept_than_fits(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overdue, "MOST_KEPT", 2)
    looks = Overdue()
    for one in ("a", "b", "c"):
        looks.due({one}, {one})
    assert list(looks._looks) == ["b", "c"]
