"""Rows of the table: a platform's record of an invocation beside Airflow's record of its task."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from .queries import InvocationRow
from .runs import Instance, Try, TryKey


@dataclass(frozen=True, slots=True)
class Span:
    """A duration: fixed, or growing since a point in time."""

    length: timedelta | None = None
    since: datetime | None = None

    @property
    def is_growing(self) -> bool:
        """Whether it is a duration up to now."""
        return self.length is None

    def seconds(self, now: datetime) -> float:
        """Return its length at a point in time; at least 0, also when clocks of machines differ."""
        if self.length is not None:
            return max(0.0, self.length.total_seconds())
        return 0.0 if self.since is None else max(0.0, (now - self.since).total_seconds())


@dataclass(frozen=True, slots=True)
class TableRow:
    """An invocation, its duration, and the time that its task waited beyond that (None: not known)."""

    invocation: InvocationRow
    ran: Span | None
    waited: Span | None
    #: The mapped task instance's name by `map_index_template`; None: it has none.
    label: str | None = None


def table_rows(rows: Iterable[InvocationRow], instances: Mapping[TryKey, Instance]) -> list[TableRow]:
    """Return a table row for each invocation, in the given order."""
    invocations = list(rows)
    tries: dict[TryKey, list[int]] = {}
    for row in invocations:
        tries.setdefault(key_of(row), []).append(row.task.try_number)
    return [_row(row, instances.get(key_of(row), Instance()), tries[key_of(row)]) for row in invocations]


def key_of(row: InvocationRow) -> TryKey:
    """Return the key of the task instance that invoked."""
    task = row.task
    return TryKey(task.dag_id, task.run_id, task.task_id, task.map_index, task.region_id, task.region_index)


def _row(row: InvocationRow, instance: Instance, invoking_tries: Iterable[int]) -> TableRow:
    ran = None
    if row.started is not None:
        ran = Span(since=row.started) if row.ended is None else Span(row.ended - row.started)
    next_try = min((number for number in invoking_tries if number > row.task.try_number), default=None)
    tries = [
        each
        for each in instance.tries
        if each.number >= row.task.try_number and (next_try is None or each.number < next_try)
    ]
    return TableRow(row, ran, _waited(row, tries), instance.label)


def _waited(row: InvocationRow, tries: Sequence[Try]) -> Span | None:
    """Return the time that a task spent in Airflow for an invocation, minus the action's duration.

    A retry adopts the invocation of the try before it. All tries from the one that invoked up to the next one
    that invoked again belong to the invocation, and so do the pauses between them. A task that ended before
    its invocation didn't wait for it.
    """
    if not tries or tries[0].started is None:
        return None
    began, ended = tries[0].started, tries[-1].ended
    if ended is not None and tries[-1].started is not None and ended < tries[-1].started:
        ended = None  # the end of an earlier run of the same try
    if ended is not None and (row.ended is None or ended < row.ended):
        return None
    if row.started is not None and row.ended is None:
        return Span(row.started - began)
    # An invocation that never started was waited for all the time.
    ran = timedelta() if row.started is None or row.ended is None else row.ended - row.started
    return Span(since=began + ran) if ended is None else Span(ended - began - ran)
