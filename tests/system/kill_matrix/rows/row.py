"""A row of the matrix: a failure and the expected result."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..deployment import Executor
from ..scene import Scene

#: Both executors, for rows about workers or about deferral.
BOTH = frozenset(Executor)

#: For rows that don't depend on the executor.
LOCAL = frozenset({Executor.Local})

#: For rows about Celery only.
CELERY = frozenset({Executor.Celery})


@dataclass(frozen=True)
class Row:
    """One row.

    :param name: the failure, in words.
    :param happens: causes the failure; returns when it is complete.
    :param dag_id: the DAG of the run.
    :param invocations: the final statuses of the task's invocations, oldest first.
    :param state: the task's final state.
    :param executors: the executors to run with.
    :param quick: the executors in `make test`.
    :param disturbs: it affects all runs, so it runs alone.
    :param busy: use the platform that accepts invocations but runs none.
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
        """Return the name as an id."""
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
    """Register a function as a row of the matrix."""

    def add(happens: Callable[[Scene], Any]) -> Callable[[Scene], Any]:
        ROWS.append(Row(name, happens, dag_id, invocations, state, executors, quick, disturbs, busy))
        return happens

    return add
