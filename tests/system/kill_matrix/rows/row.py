"""What a row of the matrix is: something that happens, and what must have become of it in the end."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..deployment import Executor
from ..scene import Scene

#: Both executors, for rows that have to do with workers or with the hand-over between them.
BOTH = frozenset(Executor)

#: For rows in which the executor plays no part.
LOCAL = frozenset({Executor.Local})

#: For rows about what only Celery has.
CELERY = frozenset({Executor.Celery})


@dataclass(frozen=True)
class Row:
    """One row.

    :param name: what happens, for people.
    :param happens: does it; returns when nothing more is done to the run.
    :param dag_id: whose run it happens to.
    :param invocations: the statuses of all that the task has caused in the end, oldest first.
    :param state: the task's final state.
    :param executors: with which it makes a difference.
    :param quick: with which it runs in `make test`.
    :param disturbs: it happens to all runs, so that no other row runs beside it.
    :param busy: on a platform that accepts invocations and runs none.
    """

    name: str
    happens: Callable[[Scene], None]
    dag_id: str
    invocations: Sequence[str]
    state: str
    executors: frozenset[Executor]
    quick: frozenset[Executor]
    disturbs: bool
    busy: bool

    @property
    def key(self) -> str:
        """The name as an id."""
        return re.sub(r"\W+", "-", self.name).strip("-").lower()


ROWS: list[Row] = []


def row(
    name: str,
    dag_id: str = "deferred",
    *,
    invocations: Sequence[str] = ("Completed",),
    state: str = "success",
    executors: frozenset[Executor] = LOCAL,
    quick: frozenset[Executor] = frozenset(),
    disturbs: bool = False,
    busy: bool = False,
) -> Callable[[Callable[[Scene], Any]], Callable[[Scene], Any]]:
    """Make a function a row of the matrix."""

    def add(happens: Callable[[Scene], Any]) -> Callable[[Scene], Any]:
        ROWS.append(Row(name, happens, dag_id, invocations, state, executors, quick, disturbs, busy))
        return happens

    return add
