"""Rows for the scheduler, and for many tasks at the same time."""

from __future__ import annotations

import signal
import time

import psutil

from airflow_invocations.version_compat import VERSION

from ..components import send
from ..scene import Scene
from .row import BOTH, row

#: Duration of a scheduler's pause, in seconds: longer than the shortest deferral.
STOPPED = 14.0

#: Mapped tasks of one run.
MANY = 500

#: Longest time until all tasks have started, and until all have ended, in seconds.
MANY_TIMEOUT = 1500.0


@row("scheduler SIGKILL and restart, while deferred", executors=BOTH, disturbs=True)
def scheduler_killed_while_deferred(scene: Scene) -> None:
    scene.trigger_and_wait_until_deferred()
    _restart(scene)
    scene.gate.open()


@row("scheduler SIGKILL and restart, while a worker polls", "in_a_worker", executors=BOTH, disturbs=True)
def scheduler_killed_while_a_worker_polls(scene: Scene) -> None:
    scene.trigger_and_wait_until_polled()
    _restart(scene)
    scene.gate.open()


@row("scheduler SIGKILL before submit", executors=BOTH, disturbs=True)
def scheduler_killed_before_submit(scene: Scene) -> None:
    hold = scene.proxy.hold("submit")
    scene.trigger()
    scene.until_held(hold)
    _restart(scene)
    hold.release()
    scene.gate.open()


@row("scheduler stopped for 14 s while a task defers", executors=BOTH, disturbs=True)
def scheduler_stopped_while_a_task_defers(scene: Scene) -> None:
    scene.trigger()
    _stop_at_deferral(scene)


@row("scheduler stopped for 14 s while a workerless task waits", "workerless_without_retries", disturbs=True)
def scheduler_stopped_while_a_workerless_task_waits(scene: Scene) -> None:
    scene.trigger()
    _stop_at_deferral(scene)


if VERSION >= (3, 4):  # older versions fail the task, whose invocation completes (apache/airflow #71580)

    @row(
        "scheduler stopped for 14 s while a task without retries defers",
        "deferred_without_retries",
        executors=BOTH,
        disturbs=True,
    )
    def scheduler_stopped_while_a_task_without_retries_defers(scene: Scene) -> None:
        scene.trigger()
        _stop_at_deferral(scene)


@row("500 mapped tasks", "mapped", invocations=["Completed"] * MANY, disturbs=True)
def many(scene: Scene) -> None:
    scene.airflow.add_pool("few", slots=8)  # more are too slow on two cores
    scene.trigger(count=MANY)
    scene.until("all of them deferred", lambda: _deferred(scene) == MANY, within=MANY_TIMEOUT)
    scene.gate.open()
    scene.until_run_ends(within=MANY_TIMEOUT)


def _deferred(scene: Scene) -> int:
    return len({change.map_index for change in scene.history() if change.state == "deferred"})


def _stop_at_deferral(scene: Scene) -> None:
    """Suspend the scheduler when the task is deferred, and let the action end meanwhile."""
    scene.until_state("deferred")
    session = scene.airflow["scheduler"].session
    assert session is not None
    # Only the process itself: the local executor's workers, its children, continue.
    scheduler = psutil.Process(session)
    send(scheduler, signal.SIGSTOP)
    scene.gate.open()
    time.sleep(STOPPED)
    send(scheduler, signal.SIGCONT)


def _restart(scene: Scene) -> None:
    scene.airflow["scheduler"].kill()
    scene.airflow["scheduler"].start()
