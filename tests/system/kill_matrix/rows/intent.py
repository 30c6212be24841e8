"""Rows for processes that are asked to end without a user's will, and for ends that are hard to hear of."""

from __future__ import annotations

import signal
import time

import psutil

from airflow_invocations.models import InvocationStatus

from ..components import send
from ..faults import not_found, rejection
from ..scene import PATIENCE, Scene
from .row import BOTH, LOCAL, row

#: All requests of a platform.
EVERYTHING = ".*"

#: Duration of an outage, in seconds, that outlives every single attempt to cancel.
OUTAGE = 70.0


def _stalled_api_server(scene: Scene, seconds: float) -> None:
    scene.trigger_and_wait_until_polled()
    scene.airflow["api-server"].freeze()
    time.sleep(seconds)
    scene.airflow["api-server"].thaw()
    before = scene.looks()
    scene.until_looks(before)
    assert scene.statuses() == ["Processing"], scene.story()
    scene.gate.open()


@row(
    "API server stopped for 40 s, then continued, while a worker polls",
    "in_a_worker_patient",
    disturbs=True,
)
def api_server_stalls(scene: Scene) -> None:
    _stalled_api_server(scene, 40.0)


@row(
    "API server stopped for 70 s, then continued, while a worker polls",
    "in_a_worker_patient",
    disturbs=True,
)
def api_server_stalls_for_long(scene: Scene) -> None:
    _stalled_api_server(scene, 70.0)


@row(
    "API server stopped for 120 s, then continued, while a worker polls",
    "in_a_worker_patient",
    disturbs=True,
)
def api_server_stalls_for_very_long(scene: Scene) -> None:
    _stalled_api_server(scene, 120.0)


@row("API server SIGKILL and restart while a worker polls", "in_a_worker_patient", disturbs=True)
def api_server_restarts(scene: Scene) -> None:
    scene.trigger_and_wait_until_polled()
    scene.airflow["api-server"].kill()
    time.sleep(20.0)
    scene.airflow["api-server"].start()
    before = scene.looks()
    scene.until_looks(before)
    scene.gate.open()


@row("worker and its supervisor SIGTERM while polling", "in_a_worker", executors=BOTH, quick=LOCAL)
def worker_terminated(scene: Scene) -> None:
    scene.trigger_and_wait_until_polled()
    for process in scene.airflow.worker_of(scene.dag_id, scene.run_id, scene.task_id):
        send(process, signal.SIGTERM)
    scene.until_looks()
    scene.until_looks()
    scene.gate.open()


@row("scheduler and all its processes SIGTERM while a worker polls", "in_a_worker_patient", disturbs=True)
def scheduler_terminated(scene: Scene) -> None:
    scene.trigger_and_wait_until_polled()
    scene.airflow["scheduler"].terminate_all()
    time.sleep(5.0)
    scene.airflow["scheduler"].kill()
    scene.airflow["scheduler"].start()
    before = scene.looks()
    scene.until_looks(before)
    scene.gate.open()


@row("worker stopped until Airflow gives it up, then continued before its retry", "in_a_worker_retried_late")
def worker_continues_before_its_retry(scene: Scene) -> None:
    scene.trigger_and_wait_until_polled()
    worker = scene.airflow.worker_of(scene.dag_id, scene.run_id, scene.task_id)
    for process in worker:
        send(process, signal.SIGSTOP)
    scene.until_state("up_for_retry")
    for process in worker:
        send(process, signal.SIGCONT)
    gone, _ = psutil.wait_procs(worker[1:], timeout=PATIENCE)
    assert gone, "the stopped task was never ended"
    assert scene.statuses() == ["Processing"], scene.story()
    seen = len(scene.history())
    scene.until_state("running", after=seen)
    scene.gate.open()


@row(
    "marked failed while deferred, the platform answers 503 for 70 s",
    invocations=["Cancelled"],
    state="failed",
)
def marked_failed_in_an_outage(scene: Scene) -> None:
    scene.trigger_and_wait_until_deferred()
    scene.proxy.fault(EVERYTHING, rejection(503), times=10**6)
    scene.proxy.cut()
    scene.mark("failed")
    time.sleep(OUTAGE)
    assert scene.statuses() == ["Processing"], scene.story()
    since = time.time()
    scene.proxy.lift()
    scene.remark(f"cancelled {scene.seconds_until_cancelled(since):.1f} s after the outage")


@row(
    "marked failed in a worker, the platform answers 503 for 30 s",
    "in_a_worker",
    invocations=["Cancelled"],
    state="failed",
)
def marked_failed_in_a_worker_in_an_outage(scene: Scene) -> None:
    scene.trigger_and_wait_until_polled()
    scene.proxy.fault(EVERYTHING, rejection(503), times=10**6)
    scene.proxy.cut()
    scene.mark("failed")
    time.sleep(30.0)
    scene.proxy.lift()
    scene.reconcile()


@row(
    "connection deleted, marked failed while deferred, connection back",
    invocations=["Cancelled"],
    state="failed",
)
def marked_failed_without_a_connection(scene: Scene) -> None:
    scene.trigger_and_wait_until_deferred()
    scene.airflow.disconnect(scene.conn_id)
    scene.mark("failed")
    time.sleep(8.0)
    since = time.time()
    scene.connect(scene.airflow)
    scene.remark(f"cancelled after {scene.seconds_until_cancelled(since):.1f} s")


@row(
    "the DAG run is marked failed and deleted while deferred",
    invocations=["Cancelled"],
    state="failed",
)
def run_deleted_while_deferred(scene: Scene) -> None:
    scene.trigger_and_wait_until_deferred()
    scene.airflow.mark_run(scene.dag_id, scene.run_id, "failed")
    scene.airflow.delete_run(scene.dag_id, scene.run_id)
    scene.until_status(InvocationStatus.Cancelled)


@row(
    "an XCom can't be stored, no retry is left",
    "deferred_without_retries",
    invocations=["Cancelled"],
    state="failed",
    quick=LOCAL,
)
def xcom_not_stored(scene: Scene) -> None:
    scene.airflow.execution_api.fault(f"xcom:{scene.run_id}", not_found)
    scene.trigger()


@row("an XCom can't be stored, a retry is left")
def xcom_not_stored_with_retries(scene: Scene) -> None:
    scene.airflow.execution_api.fault(f"xcom:{scene.run_id}", not_found)
    scene.trigger()
    scene.gate.open()


@row(
    "worker SIGKILL without retries, cleared after the DAG run has ended",
    "in_a_worker_without_retries",
    invocations=["Cancelled", "Completed"],
)
def cleared_after_worker_was_lost(scene: Scene) -> None:
    scene.trigger_and_wait_until_polled()
    scene.kill_worker()
    scene.until_run_ends()
    seen = len(scene.history())
    scene.clear()
    scene.until_state("running", after=seen)
    scene.until_status(InvocationStatus.Cancelled, index=0)
    scene.gate.open()


@row("cleared while deferred, not durable", "not_durable", invocations=["Cancelled", "Completed"])
def cleared_not_durable(scene: Scene) -> None:
    scene.trigger_and_wait_until_deferred()
    scene.clear()
    scene.until_invocations(2)
    scene.until_status(InvocationStatus.Cancelled, index=0)
    scene.gate.open()


@row("cleared while deferred, queries answer 503", invocations=["Cancelled", "Completed"])
def cleared_while_queries_fail(scene: Scene) -> None:
    scene.trigger_and_wait_until_deferred()
    scene.proxy.fault("query", rejection(503), times=10)
    scene.clear()
    scene.until_invocations(2)
    scene.until_status(InvocationStatus.Cancelled, index=0)
    scene.gate.open()
