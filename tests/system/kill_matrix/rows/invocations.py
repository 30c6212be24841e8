"""Rows for changes of the invocation outside of Airflow."""

from __future__ import annotations

from airflow_invocations.models import InvocationStatus

from ..faults import unknown_status
from ..scene import STATUS, Scene
from .row import LOCAL, row


def _delete(scene: Scene) -> None:
    scene.platform.delete(scene.until_status(InvocationStatus.Processing).invocation_id)
    scene.until_run_ends()
    scene.gate.open()  # its record is deleted, so only the test can end its process


@row("invocation deleted", "deferred_without_retries", invocations=[], state="failed")
def deleted(scene: Scene) -> None:
    scene.trigger_and_wait_until_deferred()
    _delete(scene)


@row("invocation deleted, in a worker", "in_a_worker_without_retries", invocations=[], state="failed")
def deleted_in_a_worker(scene: Scene) -> None:
    scene.trigger_and_wait_until_polled()
    _delete(scene)


@row("invocation cancelled outside", invocations=["Cancelled"], state="failed", quick=LOCAL)
def cancelled_outside(scene: Scene) -> None:
    scene.trigger_and_wait_until_deferred()
    scene.platform.cancel(scene.until_status(InvocationStatus.Processing).invocation_id)


@row("invocation ended with an unknown status", "deferred_without_retries", state="failed", quick=LOCAL)
def unknown_end(scene: Scene) -> None:
    _unknown_end(scene)


@row("invocation ended with an unknown status, in a worker", "in_a_worker_without_retries", state="failed")
def unknown_end_in_a_worker(scene: Scene) -> None:
    _unknown_end(scene)


def _unknown_end(scene: Scene) -> None:
    scene.proxy.fault(STATUS, unknown_status, times=10**6)
    scene.trigger()
    scene.gate.open()
    scene.until_run_ends()
    log = scene.airflow.task_log(scene.dag_id, scene.run_id, scene.task_id, 1)
    assert "777" in log, "the error doesn't name the status"


def _replace_token(scene: Scene) -> None:
    revoked = scene.token_name
    scene.connect(scene.airflow)
    scene.platform.revoke_token(revoked)
    scene.proxy.cut()  # the token of an open stream isn't checked again
    scene.gate.open()


@row("token revoked, and replaced, while deferred", quick=LOCAL)
def token_replaced(scene: Scene) -> None:
    scene.trigger_and_wait_until_deferred()
    _replace_token(scene)


@row("token revoked, and replaced, in a worker", "in_a_worker")
def token_replaced_in_a_worker(scene: Scene) -> None:
    scene.trigger_and_wait_until_polled()
    _replace_token(scene)


@row("token revoked, never replaced", "deferred_without_retries", state="failed")
def token_revoked(scene: Scene) -> None:
    scene.trigger_and_wait_until_deferred()
    scene.platform.revoke_token(scene.token_name)
    scene.proxy.cut()
    scene.until_run_ends()
    scene.gate.open()
