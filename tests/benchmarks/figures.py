"""The figures and their limits, as a markdown table."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Figure:
    """One row of the table, as text; `ok` None: the row has no limit and explains another one."""

    what: str
    measured: str
    #: The limit, measured in the same run or fixed.
    limit: str
    bound: str
    ok: bool | None


def table(figures: Iterable[Figure]) -> str:
    """Return the figures as markdown."""
    lines = ["| what | measured | limit or peer | ratio (bound) | ok |", "| --- | --- | --- | --- | --- |"]
    for figure in figures:
        ok = {True: "yes", False: "**no**", None: ""}[figure.ok]
        lines.append(f"| {figure.what} | {figure.measured} | {figure.limit} | {figure.bound} | {ok} |")
    return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Times:
    """Durations of repeated runs of one operation, in seconds."""

    best: float
    median: float
    p99: float

    @classmethod
    def of(cls, durations: Sequence[float]) -> Times:
        ordered = sorted(durations)
        ninety_ninth = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
        return cls(ordered[0], statistics.median(ordered), ninety_ninth)

    def __str__(self) -> str:
        return f"p50 {self.median * 1e3:.2f} ms, p99 {self.p99 * 1e3:.2f} ms, best {self.best * 1e3:.2f} ms"
