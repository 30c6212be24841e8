"""Rows for users' actions on tasks and DAG runs, and for timeouts."""

from __future__ import annotations

import time

from airflow_invocations.models import InvocationStatus

from ..scene import Scene
from .row import BOTH, LOCAL, row

#: Intended time until an orphaned invocation is cancelled, and the time after which a row fails, in seconds.
#: The second is longer, because six rows run at the same time on busy machines. The table has both.
CANCELLED_WITHIN = 5.0
FORGIVEN = 25.0


def _check_delay(scene: Scene, seconds: float) -> None:
    if seconds > CANCELLED_WITHIN:
        scene.remark(f"that is later than {CANCELLED_WITHIN:g} s")
    assert seconds <= FORGIVEN, f"cancelled only after {seconds:.1f} s"


def _cancelled_in_time(scene: Scene, since: float) -> None:
    seconds = scene.seconds_until_cancelled(since)
    scene.remark(f"cancelled after {seconds:.1f} s")
    _check_delay(scene, seconds)


def _mark(scene: Scene, state: str) -> None:
    since = time.time()
    scene.mark(state)
    _cancelled_in_time(scene, since)


def _clear(scene: Scene) -> None:
    since = time.time()
    scene.clear()
    scene.until_invocations(2)
    _cancelled_in_time(scene, since)
    scene.gate.open()


@row("marked failed while deferred", invocations=["Cancelled"], state="failed", executors=BOTH, quick=BOTH)
def marked_failed_while_deferred(scene: Scene) -> None:
    scene.trigger_and_wait_until_deferred()
    _mark(scene, "failed")


@row("marked success while deferred", invocations=["Cancelled"], executors=BOTH)
def marked_success_while_deferred(scene: Scene) -> None:
    scene.trigger_and_wait_until_deferred()
    _mark(scene, "success")


@row("marked failed in a worker", "in_a_worker", invocations=["Cancelled"], state="failed", executors=BOTH)
def marked_failed_in_a_worker(scene: Scene) -> None:
    scene.trigger_and_wait_until_polled()
    _mark(scene, "failed")


@row("marked success in a worker", "in_a_worker", invocations=["Cancelled"], executors=BOTH)
def marked_success_in_a_worker(scene: Scene) -> None:
    scene.trigger_and_wait_until_polled()
    _mark(scene, "success")


@row("cleared while deferred", invocations=["Cancelled", "Completed"], executors=BOTH, quick=BOTH)
def cleared_while_deferred(scene: Scene) -> None:
    scene.trigger_and_wait_until_deferred()
    _clear(scene)


@row("cleared in a worker", "in_a_worker", invocations=["Cancelled", "Completed"], executors=BOTH)
def cleared_in_a_worker(scene: Scene) -> None:
    scene.trigger_and_wait_until_polled()
    _clear(scene)


@row("a neighbour is cleared", "neighbours")
def neighbour_cleared(scene: Scene) -> None:
    scene.task_id, neighbour = "first", "second"
    scene.trigger()
    scene.until_state("deferred")
    scene.until_deferred(neighbour)
    scene.clear(neighbour)
    scene.until("two of the neighbour", lambda: len(scene.invocations(neighbour)) == 2)
    scene.gate.open()
    scene.until_run_ends()
    assert scene.statuses(neighbour) == ["Cancelled", "Completed"], scene.story(neighbour)


@row("cleared after success", invocations=["Completed", "Completed"], executors=BOTH, quick=LOCAL)
def cleared_after_success(scene: Scene) -> None:
    scene.trigger()
    scene.gate.open()
    scene.until_run_ends()
    seen = len(scene.history())
    scene.clear()
    scene.until_state("running", after=seen)


@row("cleared after failure", "deferred_without_retries", invocations=["Failed", "Completed"])
def cleared_after_failure(scene: Scene) -> None:
    scene.trigger()
    scene.gate.fail_once()
    scene.gate.open()
    scene.until_run_ends()
    seen = len(scene.history())
    scene.clear()
    scene.until_state("running", after=seen)


@row(
    "retry after the invocation failed",
    invocations=["Failed", "Completed"],
    executors=BOTH,
    quick=LOCAL,
)
def retried_while_deferred(scene: Scene) -> None:
    scene.gate.fail_once()
    scene.trigger()
    scene.gate.open()


@row("retry after the invocation failed, in a worker", "in_a_worker", invocations=["Failed", "Completed"])
def retried_in_a_worker(scene: Scene) -> None:
    scene.gate.fail_once()
    scene.trigger()
    scene.gate.open()


@row("the DAG run is deleted and created again under its id", invocations=["Completed", "Completed"])
def run_deleted_and_created_again(scene: Scene) -> None:
    scene.trigger()
    scene.gate.open()
    scene.until_run_ends()
    scene.airflow.delete_run(scene.dag_id, scene.run_id)
    seen = len(scene.history())
    scene.trigger()
    scene.until_state("running", after=seen)


@row(
    "execution_timeout while deferred",
    "execution_timeout_deferred",
    invocations=["Cancelled"],
    state="failed",
    executors=BOTH,
    quick=LOCAL,
)
def execution_timeout_while_deferred(scene: Scene) -> None:
    scene.trigger()
    began = scene.until_state("running").at
    _cancelled_after(scene, began, limit=12.0)


@row(
    "execution_timeout in a worker",
    "execution_timeout_in_a_worker",
    invocations=["Cancelled"],
    state="failed",
    executors=BOTH,
)
def execution_timeout_in_a_worker(scene: Scene) -> None:
    scene.trigger()
    began = scene.until_state("running").at
    _cancelled_after(scene, began, limit=8.0)


@row("dagrun_timeout", "dagrun_timeout", invocations=["Cancelled"], state="skipped", executors=BOTH)
def dagrun_timeout(scene: Scene) -> None:
    scene.trigger()
    scene.until_run_ends()
    since = time.time()
    _cancelled_in_time(scene, since)


def _queued_too_long(scene: Scene) -> None:
    scene.trigger()
    scene.until_invocations(1)
    _cancelled_after(scene, time.monotonic(), limit=6.0)


def _cancelled_after(scene: Scene, began: float, limit: float) -> None:
    scene.until_status(InvocationStatus.Cancelled)
    seconds = time.monotonic() - began
    scene.remark(f"limit {limit:g} s, cancelled after {seconds:.1f} s")
    _check_delay(scene, seconds - limit)


@row(
    "queue_timeout while deferred",
    "queue_timeout_deferred",
    invocations=["Cancelled"],
    state="failed",
    busy=True,
)
def queue_timeout_while_deferred(scene: Scene) -> None:
    _queued_too_long(scene)


@row(
    "queue_timeout in a worker",
    "queue_timeout_in_a_worker",
    invocations=["Cancelled"],
    state="failed",
    busy=True,
)
def queue_timeout_in_a_worker(scene: Scene) -> None:
    _queued_too_long(scene)
