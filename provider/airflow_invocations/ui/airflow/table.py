"""One line of the list: what a platform says of an invocation beside what Airflow says of its task."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from .queries import Found
from .runs import Instance, Try, TryKey


@dataclass(frozen=True, slots=True)
class Span:
    """A length of time: fixed, or one that still grows from a moment on."""

    length: timedelta | None = None
    since: datetime | None = None

    def seconds(self, now: datetime) -> float:
        """How long it is at a moment; never below zero, whatever two machines' clocks say."""
        if self.length is not None:
            return max(0.0, self.length.total_seconds())
        return 0.0 if self.since is None else max(0.0, (now - self.since).total_seconds())


@dataclass(frozen=True, slots=True)
class Row:
    """An invocation, how long it ran, and how long its task waited beyond that (None: not at all)."""

    invocation: Found
    ran: Span | None
    waited: Span | None
    #: What Airflow calls the mapped task instance instead of its index; None: nothing.
    label: str | None = None


def rows_of(found: Iterable[Found], instances: Mapping[TryKey, Instance]) -> list[Row]:
    """Return a row for each invocation, in their order."""
    invocations = list(found)
    later: dict[TryKey, list[int]] = {}
    for each in invocations:
        later.setdefault(key_of(each), []).append(each.asker.try_number)
    return [_row(each, instances.get(key_of(each), Instance()), later[key_of(each)]) for each in invocations]


def key_of(found: Found) -> TryKey:
    """The task instance that asked for an invocation."""
    asker = found.asker
    return TryKey(
        asker.dag_id, asker.run_id, asker.task_id, asker.map_index, asker.region_id, asker.region_index
    )


def _row(found: Found, instance: Instance, asked_in: Iterable[int]) -> Row:
    ran = None
    if found.started is not None:
        ran = Span(since=found.started) if found.ended is None else Span(found.ended - found.started)
    following = min((number for number in asked_in if number > found.asker.try_number), default=None)
    its_own = [
        each
        for each in instance.tries
        if each.number >= found.asker.try_number and (following is None or each.number < following)
    ]
    return Row(found, ran, _waited(found, its_own), instance.label)


def _waited(found: Found, tries: Sequence[Try]) -> Span | None:
    """The time that a task has spent in Airflow for an invocation, less the time that the action ran.

    A retry goes on with the invocation of the try before: all tries from the one that asked up to the next
    that asked anew belong to it, and so does the pause between them. A task that ended before its invocation
    didn't wait for it.
    """
    if not tries or tries[0].began is None:
        return None
    came, left = tries[0].began, tries[-1].ended
    if left is not None and tries[-1].began is not None and left < tries[-1].began:
        left = None  # the end of what Airflow has begun anew
    if left is not None and (found.ended is None or left < found.ended):
        return None
    if found.started is not None and found.ended is None:
        return Span(found.started - came)
    # What never ran was waited for all the time.
    ran = timedelta() if found.started is None or found.ended is None else found.ended - found.started
    return Span(since=came + ran) if left is None else Span(left - came - ran)
