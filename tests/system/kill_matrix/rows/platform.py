"""Rows for the platform: outage, overload, or two Airflows on one platform."""

from __future__ import annotations

import time

from airflow_invocations.models import InvocationStatus
from airflow_invocations.version_compat import VERSION

from ..faults import FAULTS
from ..scene import STATUS, Scene
from .row import row

#: Duration of the server's outage, in seconds.
GONE = 60.0


@row("service SIGKILL, back after 60 s", disturbs=True)
def service_gone(scene: Scene) -> None:
    scene.trigger_and_wait_until_deferred()
    _gone_and_back(scene)
    scene.gate.open()


@row("service SIGKILL, back after 60 s, in a worker", "in_a_worker", disturbs=True)
def service_gone_in_a_worker(scene: Scene) -> None:
    scene.trigger_and_wait_until_polled()
    _gone_and_back(scene)
    scene.gate.open()


@row("service gone when the task is marked failed", invocations=["Cancelled"], state="failed", disturbs=True)
def service_gone_when_cancelled(scene: Scene) -> None:
    scene.trigger_and_wait_until_deferred()
    scene.platform.kill()
    scene.mark("failed")
    time.sleep(10.0)
    scene.platform.start()
    scene.until_status(InvocationStatus.Cancelled)


def _outage_uses_up_no_retry(scene: Scene) -> None:
    """The platform is unavailable for longer than `outage_limit`; the task has no retry and needs none."""
    scene.proxy.fault((*STATUS, "logs"), FAULTS["503"], times=10**6)
    scene.proxy.cut()
    scene.until_state("up_for_reschedule")
    scene.proxy.lift()
    scene.gate.open()
    scene.until_run_ends()
    tries = {change.try_number for change in scene.history() if change.state == "running"}
    assert tries == {1}, scene.story()


if VERSION >= (3, 4):  # older versions use up a retry

    @row("an outage that is rescheduled, while deferred", "rescheduled")
    def rescheduled_while_deferred(scene: Scene) -> None:
        scene.trigger_and_wait_until_deferred()
        _outage_uses_up_no_retry(scene)

    @row("an outage that is rescheduled, while a worker polls", "rescheduled_in_a_worker")
    def rescheduled_while_a_worker_polls(scene: Scene) -> None:
        scene.trigger_and_wait_until_polled()
        _outage_uses_up_no_retry(scene)


@row("two Airflows with one DAG", invocations=["Completed", "Completed"], disturbs=True)
def two_airflows(scene: Scene) -> None:
    other = scene.stage.another()
    try:
        other.start()
        scene.connect(other)
        for airflow in (scene.airflow, other):
            scene.trigger(airflow=airflow)
        scene.until_invocations(2)
        scene.gate.open()
        assert scene.until_run_ends(airflow=other) == "success"
    finally:
        other.stop()


def _gone_and_back(scene: Scene) -> None:
    scene.platform.kill()
    time.sleep(GONE)
    scene.platform.start()
