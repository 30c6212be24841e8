"""Rows for workers that are killed at each step in which a worker handles an invocation."""

from __future__ import annotations

import signal

import psutil

from airflow_invocations.models import InvocationStatus

from ..components import send
from ..scene import PATIENCE, Scene
from .row import BOTH, CELERY, LOCAL, row


@row("worker SIGKILL before submit", executors=BOTH)
def before_submit(scene: Scene) -> None:
    hold = scene.proxy.hold("submit")
    scene.trigger()
    scene.until_held(hold)
    scene.kill_worker()
    hold.release(forward=False)
    scene.gate.open()


@row("worker SIGKILL after the request left", executors=BOTH, quick=BOTH)
def after_the_request_left(scene: Scene) -> None:
    hold = scene.proxy.hold("submit")
    scene.trigger()
    scene.until_held(hold)
    scene.kill_worker()
    hold.release()
    scene.gate.open()


@row("worker SIGKILL, its request arrives after the retry's")
def the_request_is_late(scene: Scene) -> None:
    hold = scene.proxy.hold("submit")
    scene.trigger()
    scene.until_held(hold)
    scene.kill_worker()
    scene.until_invocations(1)
    hold.release()
    scene.gate.open()


@row("worker SIGKILL after the answer", executors=BOTH)
def after_the_answer(scene: Scene) -> None:
    hold = scene.airflow.execution_api.hold(f"xcom:{scene.run_id}")
    scene.trigger()
    scene.until_held(hold)
    scene.until_invocations(1)
    scene.kill_worker()
    hold.release(forward=False)
    scene.gate.open()


@row("worker SIGKILL while polling", "in_a_worker", executors=BOTH, quick=BOTH)
def while_polling(scene: Scene) -> None:
    scene.trigger_and_wait_until_polled()
    seen = len(scene.history())
    scene.kill_worker()
    scene.until_state("running", after=seen)
    scene.gate.open()


@row("the whole worker machine is gone while polling", "in_a_worker", executors=CELERY, disturbs=True)
def machine_gone(scene: Scene) -> None:
    scene.trigger_and_wait_until_polled()
    seen = len(scene.history())
    supervisor, _ = scene.airflow.worker_of(scene.dag_id, scene.run_id, scene.task_id)
    scene.airflow.machine_of(supervisor).kill()
    scene.until_state("running", after=seen)
    scene.gate.open()


@row("worker SIGKILL while polling, the invocation completes before the retry", "in_a_worker")
def completes_without_a_worker(scene: Scene) -> None:
    scene.trigger_and_wait_until_polled()
    scene.kill_worker()
    scene.gate.open()
    scene.until_status(InvocationStatus.Completed)


@row("task process SIGKILL while polling (out of memory)", "in_a_worker", executors=BOTH)
def out_of_memory(scene: Scene) -> None:
    scene.trigger_and_wait_until_polled()
    seen = len(scene.history())
    scene.kill_task_process()
    scene.until_state("running", after=seen)
    scene.gate.open()


@row(
    "worker stopped until its retry has taken over, then continued",
    "in_a_worker",
    executors=BOTH,
)
def stopped_and_replaced(scene: Scene) -> None:
    scene.trigger_and_wait_until_polled()
    seen = len(scene.history())
    worker = scene.airflow.worker_of(scene.dag_id, scene.run_id, scene.task_id)
    for process in worker:
        send(process, signal.SIGSTOP)
    before = scene.looks()
    scene.until_state("running", after=seen)
    scene.until_looks(before)
    for process in worker:
        send(process, signal.SIGCONT)
    # Its supervisor learns that the task is reassigned, and ends it.
    gone, _ = psutil.wait_procs(worker[1:], timeout=PATIENCE)
    assert gone, "the stopped task was never ended"
    scene.gate.open()


def _kill_when_telling(scene: Scene, state: str, *, answer: bool) -> None:
    """Kill the worker when it reports a state to Airflow; with `answer`, when Airflow has recorded it."""
    submit = scene.proxy.hold("submit")
    scene.trigger()
    scene.until_held(submit)
    ti_id = scene.until_state("running").ti_id
    telling = scene.airflow.execution_api.hold(f"{state}:{ti_id}", answer=answer)
    submit.release()
    if state == "success":
        scene.gate.open()
    scene.until_held(telling)
    scene.kill_worker()
    telling.release(forward=False)
    scene.gate.open()


@row("worker SIGKILL while deferring, Airflow hasn't heard of it", executors=BOTH, quick=LOCAL)
def while_deferring(scene: Scene) -> None:
    _kill_when_telling(scene, "deferred", answer=False)


@row("worker SIGKILL while deferring, Airflow has heard of it", executors=BOTH)
def deferred_already(scene: Scene) -> None:
    _kill_when_telling(scene, "deferred", answer=True)


@row("worker SIGKILL when resumed, before Airflow hears of the success", executors=BOTH)
def before_success_is_told(scene: Scene) -> None:
    _kill_when_telling(scene, "success", answer=False)
