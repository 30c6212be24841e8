"""Waiting times of tasks: over retries, while active, and where unknown."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from airflow_invocations.ui.airflow.queries import InvocationRow, to_row
from airflow_invocations.ui.airflow.runs import Instance, Try
from airflow_invocations.ui.airflow.table import Span, key_of, table_rows

from .conftest import FakePlatform, S, at, record


def invocation(**fields: Any) -> InvocationRow:
    made = to_row("c", "Roboto", FakePlatform(), record(**fields))
    assert made is not None
    return made


RAN = ((S.Queued, 2), (S.Processing, 5), (S.Completed, 65))
RUNS = ((S.Queued, 2), (S.Processing, 5))
WAITS = ((S.Queued, 2),)
CANCELLED = ((S.Queued, 2), (S.Cancelled, 30))


@pytest.mark.parametrize(
    ("steps", "tries", "ran", "waited"),
    [
        # The task: 0 to 70. The action: 5 to 65.
        (RAN, [(1, 0, 70)], Span(timedelta(seconds=60)), Span(timedelta(seconds=10))),
        # The action has ended, the task not yet: it waits more and more.
        (RAN, [(1, 0, None)], Span(timedelta(seconds=60)), Span(since=at(60))),
        # Both go on: what it waited for the start is all there is.
        (RUNS, [(1, 0, None)], Span(since=at(5)), Span(timedelta(seconds=5))),
        (WAITS, [(1, 0, None)], None, Span(since=at(0))),
        (CANCELLED, [(1, 0, 40)], None, Span(timedelta(seconds=40))),
        # The task has ended before its action: it didn't wait (wait=False), or was killed.
        (RUNS, [(1, 0, 4)], Span(since=at(5)), None),
        (RAN, [(1, 0, 4)], Span(timedelta(seconds=60)), None),
        (WAITS, [(1, 0, 4)], None, None),
        # A retry went on with it; the pause between the tries is waiting too.
        (RAN, [(1, 0, 20), (2, 50, 75)], Span(timedelta(seconds=60)), Span(timedelta(seconds=15))),
        (RAN, [(1, 0, 20), (2, 50, None)], Span(timedelta(seconds=60)), Span(since=at(60))),
        # Airflow has begun this try anew and kept the end of what was before.
        (RAN, [(1, 66, 3)], Span(timedelta(seconds=60)), Span(since=at(126))),
        (RAN, [], Span(timedelta(seconds=60)), None),
        (RAN, [(1, None, None)], Span(timedelta(seconds=60)), None),
    ],
    ids=str,
)
def test_a_row(
    steps: Any, tries: list[tuple[int, float | None, float | None]], ran: Span | None, waited: Span | None
) -> None:
    each = invocation(steps=steps)
    of_it = [Try(number, *(None if t is None else at(t) for t in times)) for number, *times in tries]
    (row,) = table_rows([each], {key_of(each): Instance(tuple(of_it))})
    assert (row.ran, row.waited) == (ran, waited)


def test_an_invocation_has_the_tries_up_to_the_one_that_asked_anew() -> None:
    failed = invocation(steps=((S.Queued, 0), (S.Processing, 1), (S.Failed, 11)))
    second = invocation(
        invocation_id="iv_2", try_number=3, steps=((S.Queued, 100), (S.Processing, 101), (S.Completed, 131))
    )
    other = invocation(invocation_id="iv_3", task_id="other", try_number=2)
    tries = [Try(1, at(0), at(5)), Try(2, at(8), at(15)), Try(3, at(99), at(135))]
    rows = table_rows([second, failed, other], {key_of(failed): Instance(tuple(tries))})
    waited = [row.waited for row in rows]
    assert waited == [Span(timedelta(seconds=6)), Span(timedelta(seconds=5)), None]


def test_spans_in_seconds() -> None:
    assert Span(timedelta(seconds=7)).seconds(at(100)) == 7
    assert Span(since=at(40)).seconds(at(100)) == 60
    # Two machines' clocks may say that an answer came before its question.
    assert Span(timedelta(seconds=-1)).seconds(at(0)) == 0
    assert Span(since=at(5)).seconds(at(0)) == 0
