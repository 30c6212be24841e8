"""What a row of the matrix has in its hands: a DAG run of its own, and everything that can befall it."""

from __future__ import annotations

import secrets
import signal
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from airflow_invocations.models import InvocationStatus

from .components import send
from .deployment import Airflow
from .loop import BackgroundLoop
from .platform import Invocation, Platform
from .proxy import FaultProxy, Hold, platform_route
from .states import Change

#: Seconds in which Airflow gets anything done that it was asked for, on two busy cores.
PATIENCE = 120.0

#: Seconds that the provider lets an answer of the platform take, over a row's connection.
REQUEST_TIMEOUT = 3.0

#: Requests by which a wait hears of the invocation's status, on whichever way.
STATUS = ("get", "query", "watch")

#: How much of a long story is told.
_STORY = 25

_ENDED = frozenset({"success", "failed", "skipped", "upstream_failed", "removed"})


@dataclass(frozen=True)
class Stage:
    """What the rows of one deployment have in common."""

    airflow: Airflow
    #: Where actions run.
    platform: Platform
    #: A platform that accepts invocations and runs none.
    busy: Platform
    loop: BackgroundLoop
    #: Makes one more deployment with the same DAGs, not started yet.
    another: Callable[[], Airflow]


class Scene:
    """One DAG run, its own connection through its own proxy, and the gate at which its action waits."""

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

    # --- what is done

    def connect(self, airflow: Airflow) -> None:
        """Give an Airflow the row's connection, with a token that is new."""
        # A token's name has at most 64 characters, and a row's may be longer.
        self.token_name = f"{self.conn_id[:56]}-{secrets.token_hex(2)}"
        token = self.platform.new_token(self.token_name)
        airflow.connect(self.conn_id, self.proxy.endpoint, token, REQUEST_TIMEOUT)

    def trigger(self, *, airflow: Airflow | None = None, **conf: Any) -> None:
        """Start the DAG run, in another Airflow if one is named."""
        conf = {"action": "gated", "gate": str(self.gate.path), "conn_id": self.conn_id, **conf}
        (airflow or self.airflow).trigger(self.dag_id, self.run_id, conf)

    def trigger_and_wait_until_deferred(self) -> None:
        """Start the DAG run; its invocation runs, and a triggerer waits for it."""
        self.trigger()
        self.until_deferred()

    def trigger_and_wait_until_polled(self) -> None:
        """Start the DAG run; its invocation runs, and a worker waits for it."""
        self.trigger()
        self.until_status(InvocationStatus.Processing)
        self.until("a look from the worker", lambda: self.looks() >= 2)

    def kill_worker(self) -> None:
        """SIGKILL what runs the task: first the supervisor, so that nobody tells Airflow."""
        for process in self.airflow.worker_of(self.dag_id, self.run_id, self.task_id):
            send(process, signal.SIGKILL)

    def kill_task_process(self) -> None:
        """SIGKILL the task's own process, as a kernel without memory does; its supervisor lives."""
        send(self.airflow.worker_of(self.dag_id, self.run_id, self.task_id)[1], signal.SIGKILL)

    def clear(self, task_id: str | None = None) -> None:
        self.airflow.clear(self.dag_id, self.run_id, task_id or self.task_id)

    def mark(self, state: str) -> None:
        self.airflow.mark(self.dag_id, self.run_id, self.task_id, state)

    def remark(self, text: str) -> None:
        """Have something said in the table."""
        self.remarks.append(text)

    # --- what is waited for

    def until_deferred(self, task_id: str | None = None) -> None:
        """The task is deferred, and a triggerer has begun to look."""
        self.until_state("deferred", task_id=task_id)
        # The worker has asked for the last time before it defers.
        self.until_looks()

    def until_state(self, *states: str, task_id: str | None = None, after: int = 0) -> Change:
        """The first change to one of these states behind the first `after` changes."""
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
        """Somebody asks for the status again: more often than `before`, or than now."""
        count = self.looks() if before is None else before
        self.until("look at the invocation", lambda: self.looks() > count)

    def until_held(self, hold: Hold) -> None:
        """A request stands at the point where it is to be held."""
        if not hold.reached.wait(PATIENCE):
            raise AssertionError(f"no such request came in {PATIENCE:g} s: {self.story()}; {self.proxy.seen}")

    def until_run_ends(self, within: float = PATIENCE, airflow: Airflow | None = None) -> str:
        """The DAG run's final state."""
        states = (airflow or self.airflow).states

        def look() -> str | None:
            history = states.of(self.dag_id, self.run_id)
            return history[-1].state if history and history[-1].state in _ENDED else None

        state = states.wait(look, within)
        if state is None:
            raise AssertionError(f"the run hasn't ended in {within:g} s: {self.story()}")
        return str(state)

    def until_invocations(self, count: int) -> list[Invocation]:
        """There are so many invocations."""
        self.until(f"{count} invocations", lambda: len(self.invocations()) >= count)
        return self.invocations()

    def until_status(self, status: InvocationStatus, index: int = -1) -> Invocation:
        """An invocation (the newest one) has a status."""

        def look() -> Invocation | None:
            invocations = self.invocations()
            there = invocations and invocations[index].status is status
            return invocations[index] if there else None

        invocation = self.until(str(status), look)
        assert isinstance(invocation, Invocation)
        return invocation

    def until(self, what: str, look: Callable[[], Any], within: float = PATIENCE) -> Any:
        """The first truthy answer of `look`, of something that tells nobody when it happens."""
        deadline = time.monotonic() + within
        while not (answer := look()):
            if time.monotonic() > deadline:
                raise AssertionError(f"no {what} in {within:g} s: {self.story()}")
            time.sleep(0.1)
        return answer

    # --- what is known

    def invocations(self, task_id: str | None = None) -> list[Invocation]:
        """Everything that the task has caused on the platform, oldest first."""
        return self.platform.invocations_of(self.dag_id, self.run_id, task_id or self.task_id)

    def statuses(self, task_id: str | None = None) -> list[str]:
        return [invocation.status.name for invocation in self.invocations(task_id)]

    def history(self, task_id: str | None = None) -> list[Change]:
        """What has become of the task."""
        return self.airflow.states.of(self.dag_id, self.run_id, task_id or self.task_id)

    def state(self, task_id: str | None = None) -> str | None:
        history = self.history(task_id)
        return history[-1].state if history else None

    def final_states(self) -> list[str]:
        """The last state of the task, or of each of its mapped instances."""
        last = {change.map_index: str(change.state) for change in self.history()}
        if len(last) > 1:
            last.pop(-1, None)  # what was there before it was mapped
        return [last[index] for index in sorted(last)]

    def story(self, task_id: str | None = None) -> str:
        """The states of the task, and its invocations, for people."""
        history = self.history(task_id)
        said = [
            f"{change.state}@{change.at - self._began:.0f}({change.try_number})"
            for change in history[:_STORY]
        ]
        more = f" and {len(history) - _STORY} more" if len(history) > _STORY else ""
        invocations = ", ".join(self.statuses(task_id)[:_STORY]) or "none"
        return f"{' '.join(said) or 'nothing'}{more}; invocations: {invocations}"

    def looks(self, routes: Collection[str] = STATUS) -> int:
        """How many requests for a status there have been."""
        return sum(self.proxy.seen.count(route) for route in routes)

    def seconds_until_cancelled(self, since: float) -> float:
        """From `since` (seconds since 1970) until the oldest invocation was cancelled."""
        cancelled = self.until_status(InvocationStatus.Cancelled, index=0)
        ended = self.platform.ended_at(cancelled.invocation_id)
        assert ended is not None
        return ended - since
