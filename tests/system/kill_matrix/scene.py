"""The scene of a row of the matrix: its own DAG run, and the failures that can happen to it."""

from __future__ import annotations

import secrets
import signal
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from airflow_invocations.models import InvocationStatus

from ...support import waiting
from .components import send
from .deployment import Airflow
from .loop import BackgroundLoop
from .platform import Invocation, Platform
from .proxy import FaultProxy, Hold, platform_route
from .states import Change

#: Longest time for anything that Airflow does on two busy cores, in seconds.
PATIENCE = 120.0

#: Timeout of the provider's requests over a row's connection, in seconds.
REQUEST_TIMEOUT = 3.0

#: Requests with which a wait learns the invocation's status.
STATUS = ("get", "query", "watch")

#: Longest output of a story.
_STORY = 25

_ENDED = frozenset({"success", "failed", "skipped", "upstream_failed", "removed"})


@dataclass(frozen=True)
class Stage:
    """The shared parts of a deployment's rows."""

    airflow: Airflow
    #: The platform that runs actions.
    platform: Platform
    #: A platform that accepts invocations but runs none.
    busy: Platform
    loop: BackgroundLoop
    #: Creates another deployment with the same DAGs, not started yet.
    another: Callable[[], Airflow]


class Scene:
    """One DAG run with its own connection and proxy, and the gate at which its action waits."""

    task_id = "invoke"

    def __init__(self, stage: Stage, name: str, dag_id: str, *, busy: bool = False) -> None:
        self.dag_id = dag_id
        self.run_id = name
        self.conn_id = name
        self.stage = stage
        self.airflow = stage.airflow
        self.platform = stage.busy if busy else stage.platform
        self.gate = self.platform.new_gate(name)
        self.proxy = FaultProxy(stage.loop, self.platform.endpoint, platform_route)
        self.remarks: list[str] = []
        self._began = time.monotonic()

    def __enter__(self) -> Scene:
        self.proxy.start()
        self.connect(self.airflow)
        return self

    def __exit__(self, *_: object) -> None:
        self.proxy.stop()
        self.gate.close()

    # --- actions

    def connect(self, airflow: Airflow) -> None:
        """Create the row's connection in an Airflow, with a new token."""
        # The name of a token has at most 64 characters, that of a row may have more.
        self.token_name = f"{self.conn_id[:56]}-{secrets.token_hex(2)}"
        token = self.platform.new_token(self.token_name)
        airflow.connect(self.conn_id, self.proxy.endpoint, token, REQUEST_TIMEOUT)

    def trigger(self, *, airflow: Airflow | None = None, **conf: Any) -> None:
        """Start the DAG run, by default in the deployment's Airflow."""
        conf = {"action": "gated", "gate": str(self.gate.path), "conn_id": self.conn_id, **conf}
        (airflow or self.airflow).trigger(self.dag_id, self.run_id, conf)

    def trigger_and_wait_until_deferred(self) -> None:
        """Start the DAG run, and wait until a triggerer waits for its running invocation."""
        self.trigger()
        self.until_deferred()

    def trigger_and_wait_until_polled(self) -> None:
        """Start the DAG run, and wait until a worker waits for its running invocation."""
        self.trigger()
        self.until_status(InvocationStatus.Processing)
        self.until("a look from the worker", lambda: self.looks() >= 2)

    def kill_worker(self) -> None:
        """Send SIGKILL to the task: first to the supervisor, so that it can't report to Airflow."""
        for process in self.airflow.worker_of(self.dag_id, self.run_id, self.task_id):
            send(process, signal.SIGKILL)

    def kill_task_process(self) -> None:
        """Send SIGKILL to the task's process only, as the kernel does when memory runs out."""
        send(self.airflow.worker_of(self.dag_id, self.run_id, self.task_id)[1], signal.SIGKILL)

    def clear(self, task_id: str | None = None) -> None:
        self.airflow.clear(self.dag_id, self.run_id, task_id or self.task_id)

    def mark(self, state: str) -> None:
        self.airflow.mark(self.dag_id, self.run_id, self.task_id, state)

    def reconcile(self) -> None:
        """Wait until the DAG run has ended, then reconcile the row's connection once."""
        self.until_run_ends()
        self.remark(f"before reconciliation: {', '.join(self.statuses())}")
        dag_id, run_id = "reconcile", f"{self.run_id}-reconcile"
        self.airflow.trigger(dag_id, run_id, {"conn_id": self.conn_id})

        def look() -> str | None:
            history = self.airflow.states.of(dag_id, run_id)
            return history[-1].state if history and history[-1].state in _ENDED else None

        assert self.until("end of the reconciliation", look) == "success"

    def remark(self, text: str) -> None:
        """Add a note to the table."""
        self.remarks.append(text)

    # --- waits

    def until_deferred(self, task_id: str | None = None) -> None:
        """Wait until the task is deferred and a triggerer polls."""
        self.until_state("deferred", task_id=task_id)
        # The worker has sent its last request before it defers.
        self.until_looks()

    def until_state(self, *states: str, task_id: str | None = None, after: int = 0) -> Change:
        """Return the first change to one of these states after the first `after` changes."""
        task_id = task_id or self.task_id

        def look() -> Change | None:
            history = self.history(task_id)[after:]
            return next((change for change in history if change.state in states), None)

        change = self.airflow.states.wait(look, PATIENCE)
        if change is None:
            raise AssertionError(f"not {'/'.join(states)} in {PATIENCE:g} s: {self.story(task_id)}")
        assert isinstance(change, Change)
        return change

    def until_looks(self, before: int | None = None) -> None:
        """Wait until the number of status requests is higher than `before`, or than now."""
        count = self.looks() if before is None else before
        self.until("look at the invocation", lambda: self.looks() > count)

    def until_held(self, hold: Hold) -> None:
        """Wait until a request is held."""
        if not hold.reached.wait(PATIENCE):
            raise AssertionError(f"no such request came in {PATIENCE:g} s: {self.story()}; {self.proxy.seen}")

    def until_run_ends(self, within: float = PATIENCE, airflow: Airflow | None = None) -> str:
        """Wait for the DAG run's final state and return it."""
        states = (airflow or self.airflow).states

        def look() -> str | None:
            history = states.of(self.dag_id, self.run_id)
            return history[-1].state if history and history[-1].state in _ENDED else None

        state = states.wait(look, within)
        if state is None:
            raise AssertionError(f"the run hasn't ended in {within:g} s: {self.story()}")
        return str(state)

    def until_invocations(self, count: int) -> list[Invocation]:
        """Wait until the number of invocations is `count`."""
        self.until(f"{count} invocations", lambda: len(self.invocations()) >= count)
        return self.invocations()

    def until_status(self, status: InvocationStatus, index: int = -1) -> Invocation:
        """Wait until an invocation, by default the newest one, has a status."""

        def look() -> Invocation | None:
            invocations = self.invocations()
            there = invocations and invocations[index].status is status
            return invocations[index] if there else None

        invocation = self.until(str(status), look)
        assert isinstance(invocation, Invocation)
        return invocation

    def until(self, what: str, look: Callable[[], Any], within: float = PATIENCE) -> Any:
        """Return the first truthy value of `look`, which sends no notification."""
        return waiting.until(look, within, every=0.1, what=lambda: f"no {what}: {self.story()}")

    # --- state

    def invocations(self, task_id: str | None = None) -> list[Invocation]:
        """Return all invocations of the task on the platform, oldest first."""
        return self.platform.invocations_of(self.dag_id, self.run_id, task_id or self.task_id)

    def statuses(self, task_id: str | None = None) -> list[str]:
        return [invocation.status.name for invocation in self.invocations(task_id)]

    def history(self, task_id: str | None = None) -> list[Change]:
        """Return the changes of the task's state."""
        return self.airflow.states.of(self.dag_id, self.run_id, task_id or self.task_id)

    def state(self, task_id: str | None = None) -> str | None:
        history = self.history(task_id)
        return history[-1].state if history else None

    def final_states(self) -> list[str]:
        """Return the last state of the task, or of each mapped instance."""
        last = {change.map_index: str(change.state) for change in self.history()}
        if len(last) > 1:
            last.pop(-1, None)  # the instance before the task was mapped
        return [last[index] for index in sorted(last)]

    def story(self, task_id: str | None = None) -> str:
        """Format the states of the task and its invocations."""
        history = self.history(task_id)
        said = [
            f"{change.state}@{change.at - self._began:.0f}({change.try_number})"
            for change in history[:_STORY]
        ]
        more = f" and {len(history) - _STORY} more" if len(history) > _STORY else ""
        invocations = ", ".join(self.statuses(task_id)[:_STORY]) or "none"
        return f"{' '.join(said) or 'nothing'}{more}; invocations: {invocations}"

    def looks(self, routes: Collection[str] = STATUS) -> int:
        """Return the number of status requests."""
        return sum(self.proxy.seen.count(route) for route in routes)

    def seconds_until_cancelled(self, since: float) -> float:
        """Return the seconds from `since` (seconds since 1970) until the oldest invocation was cancelled."""
        cancelled = self.until_status(InvocationStatus.Cancelled, index=0)
        ended = self.platform.ended_at(cancelled.invocation_id)
        assert ended is not None
        return ended - since
