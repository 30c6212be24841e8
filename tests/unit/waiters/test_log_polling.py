"""Polled logs: active ones often, silent ones rarely, none never."""

from __future__ import annotations

import itertools

from airflow_invocations.waiters import LogSettings
from airflow_invocations.waiters.log_polling import LogSchedule

SETTINGS = LogSettings()


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Logs:
    """Logs polled by a schedule, for a number of seconds."""

    def __init__(self, quiet: int, lively: int) -> None:
        self.lively = {f"lively {number}" for number in range(lively)}
        self.names = [f"quiet {number}" for number in range(quiet)] + sorted(self.lively)
        self.clock = Clock()
        self.schedule = LogSchedule(SETTINGS, self.clock)
        self.asked: dict[str, list[float]] = {name: [] for name in self.names}

    def run(self, seconds: float) -> None:
        end = self.clock.now + seconds
        while self.clock.now < end:
            name = self.schedule.take({name: name for name in self.names})
            if name is None:
                self.clock.now += self.schedule.pause()
                continue
            self.asked[name].append(self.clock.now)
            self.schedule.note(name, had_lines=name in self.lively)

    def longest_gap(self, name: str) -> float:
        return max(later - earlier for earlier, later in itertools.pairwise(self.asked[name]))


def test_silent_logs_are_polled_with_growing_pauses_and_active_logs_every_second() -> None:
    logs = Logs(quiet=5, lively=1)
    logs.run(120)
    (lively,) = logs.lively
    assert logs.longest_gap(lively) < 1.5
    gaps = [later - earlier for earlier, later in itertools.pairwise(logs.asked["quiet 0"])]
    assert gaps[0] < 4.5
    assert max(gaps) < SETTINGS.most_pause * 1.1
    assert gaps[-1] > SETTINGS.most_pause * 0.9


def test_two_hundred_logs_are_all_polled_within_fifteen_seconds() -> None:
    logs = Logs(quiet=180, lively=20)
    logs.run(120)
    assert max(logs.longest_gap(name) for name in logs.names) < 15.0
    assert sum(map(len, logs.asked.values())) <= 121 * SETTINGS.reads


def test_recently_active_logs_are_polled_more_often_under_load() -> None:
    logs = Logs(quiet=1000, lively=20)
    logs.run(300)
    assert max(logs.longest_gap(name) for name in logs.lively) < 15.0
    assert all(len(asked) >= 2 for asked in logs.asked.values())


def test_log_is_polled_by_one_reader_at_a_time_and_forgotten_when_gone() -> None:
    clock = Clock()
    schedule = LogSchedule(SETTINGS, clock)
    assert schedule.take({"a": "a"}) == "a"
    assert schedule.take({"a": "a"}) is None
    schedule.note("a", had_lines=False)
    assert schedule.take({"a": "a"}) is None  # it isn't due
    assert schedule.take({}) is None
    clock.now += 0.1
    assert schedule.take({"a": "a"}) == "a"  # it came back, and is new
