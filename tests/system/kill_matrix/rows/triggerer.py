"""Rows for triggerers that end, crash or pause, which must not cancel anything."""

from __future__ import annotations

import time

from airflow_invocations.models import InvocationStatus

from ..scene import Scene
from .row import BOTH, LOCAL, row

#: Duration of a triggerer's pause, in seconds; Airflow reassigns its triggers after 8 (deployment.py).
STOPPED = 45.0


@row("triggerer SIGKILL", executors=BOTH, quick=LOCAL, disturbs=True)
def killed(scene: Scene) -> None:
    scene.trigger_and_wait_until_deferred()
    scene.airflow["triggerer"].kill()
    _restart_and_wait_for_a_look(scene)
    scene.gate.open()


@row("triggerer SIGTERM", executors=BOTH, disturbs=True)
def terminated(scene: Scene) -> None:
    scene.trigger_and_wait_until_deferred()
    scene.airflow["triggerer"].stop()
    _restart_and_wait_for_a_look(scene)
    scene.gate.open()


@row("triggerer SIGKILL, the invocation completes before the next one", disturbs=True)
def completes_without_a_triggerer(scene: Scene) -> None:
    scene.trigger_and_wait_until_deferred()
    scene.airflow["triggerer"].kill()
    scene.gate.open()
    scene.airflow["triggerer"].start()


@row("triggerer stopped for 45 s, then continued; nobody takes over", disturbs=True)
def stopped_alone(scene: Scene) -> None:
    scene.trigger_and_wait_until_deferred()
    scene.airflow["triggerer"].freeze()
    time.sleep(STOPPED)
    scene.airflow["triggerer"].thaw()
    scene.until_looks()
    scene.gate.open()


@row("triggerer stopped for 45 s, then continued; another one takes over", executors=BOTH, disturbs=True)
def stopped_and_replaced(scene: Scene) -> None:
    scene.trigger_and_wait_until_deferred()
    began = time.monotonic()
    scene.airflow["triggerer"].freeze()
    scene.airflow["triggerer-2"].start()
    scene.until_looks()
    time.sleep(max(0.0, began + STOPPED - time.monotonic()))
    scene.airflow["triggerer"].thaw()
    # The first triggerer learns that the trigger is reassigned, and ends it.
    time.sleep(5.0)
    scene.gate.open()
    scene.until_run_ends()
    scene.airflow["triggerer-2"].stop()


@row("two triggerers, the one that waits is killed", executors=BOTH, disturbs=True)
def two_at_once(scene: Scene) -> None:
    scene.trigger_and_wait_until_deferred()
    scene.airflow.start_second_triggerer()
    scene.airflow["triggerer"].kill()
    scene.until_looks()
    scene.gate.open()
    scene.until_run_ends()
    scene.airflow["triggerer"].start()
    scene.airflow["triggerer-2"].stop()


@row("marked failed while there is no triggerer", invocations=["Cancelled"], state="failed", disturbs=True)
def marked_failed_without_a_triggerer(scene: Scene) -> None:
    scene.trigger_and_wait_until_deferred()
    scene.airflow["triggerer"].kill()
    scene.mark("failed")
    scene.airflow["triggerer"].start()
    scene.reconcile()


@row(
    "marked failed before a triggerer has begun",
    invocations=["Cancelled"],
    state="failed",
    executors=BOTH,
    disturbs=True,
)
def marked_failed_before_a_triggerer_began(scene: Scene) -> None:
    scene.airflow["triggerer"].kill()
    scene.trigger()
    scene.until_state("deferred")
    scene.mark("failed")
    scene.airflow["triggerer"].start()
    scene.reconcile()


@row(
    "cleared before a triggerer has begun",
    invocations=["Cancelled", "Completed"],
    executors=BOTH,
    disturbs=True,
)
def cleared_before_a_triggerer_began(scene: Scene) -> None:
    scene.airflow["triggerer"].kill()
    scene.trigger()
    scene.until_state("deferred")
    scene.clear()
    scene.until_invocations(2)
    scene.airflow["triggerer"].start()
    scene.until_status(InvocationStatus.Cancelled, index=0)
    scene.gate.open()


def _restart_and_wait_for_a_look(scene: Scene) -> None:
    before = scene.looks()
    scene.airflow["triggerer"].start()
    scene.until_looks(before)
