"""Run the rows of the matrix in one deployment, concurrently where possible, and record the results."""

from __future__ import annotations

import contextlib
import threading
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace

import httpx

from .deployment import Executor
from .rows import Row
from .scene import Scene, Stage

#: Rows that run at the same time; with more of them, timeouts pass on two cores.
AT_ONCE = 6

#: Longest time from the end of the DAG run to the end of all its invocations, in seconds.
ORPHAN_TIMEOUT = 20.0


@dataclass(frozen=True)
class Outcome:
    """The result of a row."""

    row: Row
    executor: Executor
    invocations: Sequence[str]
    states: Sequence[str]
    seconds: float
    #: Difference from the expected result; None: the row passed.
    problem: str | None = None
    remarks: Sequence[str] = field(default=())

    @property
    def cells(self) -> list[str]:
        """Return row, executor, invocations, final state, seconds, and the difference if any."""
        said = f"**no**: {self.problem}" if self.problem else "holds"
        return [
            self.row.name,
            self.executor.name,
            _counted(self.invocations) or "none",
            _counted(self.states) or "none",
            f"{self.seconds:.0f}",
            "; ".join([said, *self.remarks]).replace("|", "\\|").replace("\n", " "),
        ]


class Matrix:
    """Runs the rows of one deployment in the background, and returns their results."""

    def __init__(self, stage: Stage, rows: Sequence[Row]) -> None:
        self._stage = stage
        self._scenes = contextlib.ExitStack()
        self._played: dict[str, Scene] = {}
        self._lock = threading.Lock()
        self._outcomes: dict[str, Outcome] = {}
        calm = [row for row in rows if not row.disturbs]
        self._pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="row")
        self._futures: dict[str, Future[Outcome]] = {
            row.key: self._pool.submit(self.play, row) for row in calm
        }
        self._alone = ThreadPoolExecutor(1, thread_name_prefix="row-alone")
        calm_ones = list(self._futures.values())
        for row in rows:
            if row.disturbs:
                self._futures[row.key] = self._alone.submit(self._play_alone, row, calm_ones)

    def outcome(self, row: Row) -> Outcome:
        """Wait for a row and return its result."""
        return self._futures[row.key].result()

    def close(self) -> list[Outcome]:
        """Return all results, after a last check for later changes."""
        for pool in (self._pool, self._alone):
            pool.shutdown(cancel_futures=True)
        final = [self._last_look(outcome) for outcome in self._outcomes.values()]
        self._scenes.close()
        return final

    def play(self, row: Row) -> Outcome:
        """Run a row and compare the result with the expectation."""
        began = time.monotonic()
        scene = Scene(self._stage, row.key, row.dag_id, busy=row.busy)
        problem = None
        try:
            with self._lock:
                self._scenes.enter_context(scene)
            row.happens(scene)
            scene.until_run_ends()
            scene.until("end of all invocations", lambda: _all_ended(scene), ORPHAN_TIMEOUT)
            problem = _difference(row, scene.statuses(), scene.final_states(), scene)
        except AssertionError as error:
            problem = str(error)
        except Exception:
            problem = traceback.format_exc(limit=-3)
        if problem is not None:
            self._end(scene)
        outcome = Outcome(
            row,
            self._stage.airflow.executor,
            scene.statuses(),
            scene.final_states(),
            time.monotonic() - began,
            problem,
            scene.remarks,
        )
        self._played[row.key] = scene
        self._outcomes[row.key] = outcome
        return outcome

    def _play_alone(self, row: Row, calm: Sequence[Future[Outcome]]) -> Outcome:
        wait(calm)
        try:
            return self.play(row)
        finally:
            self._stage.airflow.repair()
            self._stage.platform.repair()

    def _end(self, scene: Scene) -> None:
        """End the run of a failed row, so that it doesn't disturb others."""
        scene.proxy.lift()
        scene.gate.open()
        with contextlib.suppress(httpx.HTTPError):
            self._stage.airflow.mark_run(scene.dag_id, scene.run_id, "failed")

    def _last_look(self, outcome: Outcome) -> Outcome:
        """Check whether a passed row has caused changes since its end."""
        now = self._played[outcome.row.key].statuses()
        if outcome.problem is not None or now == outcome.invocations:
            return outcome
        return replace(outcome, problem=f"later on its invocations were {_counted(now)}")


def table(outcomes: Sequence[Outcome]) -> str:
    """Return the matrix as markdown."""
    head = ["row", "executor", "invocations", "verdict", "seconds", "holds, or what happened instead"]
    lines = [head, ["---"] * len(head), *(outcome.cells for outcome in outcomes)]
    holding = sum(outcome.problem is None for outcome in outcomes)
    rows = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return f"{rows}\n\n{holding} of {len(outcomes)} rows hold.\n"


def _all_ended(scene: Scene) -> bool:
    return all(invocation.status.is_terminal for invocation in scene.invocations())


def _difference(row: Row, invocations: Sequence[str], states: Sequence[str], scene: Scene) -> str | None:
    if list(invocations) != list(row.invocations):
        return f"expected invocations: {_counted(row.invocations) or 'none'}; {scene.story()}"
    if set(states) != {row.state}:
        return f"expected {row.state}; {scene.story()}"
    return None


def _counted(words: Sequence[str]) -> str:
    """Format a list; a long one as counts."""
    if len(words) <= 4:
        return ", ".join(words)
    return ", ".join(f"{count} {word}" for word, count in Counter(words).items())
