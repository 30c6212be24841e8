"""Reconciliation against the real server: 1,000 active invocations, and the operator in `dag.test()`."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Any

import pytest
from airflow.sdk import DAG

from airflow_invocations.hooks import RobotoHook
from airflow_invocations.models import (
    DagRunProvenance,
    InvocationRequest,
    InvocationStatus,
    TaskInstanceReference,
)
from airflow_invocations.operators import InvokeActionOperator, ReconcileInvocationsOperator
from airflow_invocations.platforms.roboto.client import RobotoClient
from airflow_invocations.platforms.roboto.platform import RobotoPlatform
from airflow_invocations.tasks.reconciliation import (
    Limits,
    TaskKey,
    TaskSnapshot,
    key_of,
    reconcile,
)

from .conftest import connect_to, on_every_database, script
from .dag_runs import results, run, states

S = InvocationStatus
URL = "https://reconciled.example"
COUNT = 1000


class Airflow:
    """Task instances that are all deferred, but those of some indexes have failed."""

    def __init__(self, failed: Collection[int]) -> None:
        self.failed = failed
        self.reads = 0

    def read(self, references: Collection[TaskInstanceReference]) -> dict[TaskKey, TaskSnapshot]:
        self.reads += 1
        return {
            key_of(one): TaskSnapshot("failed" if one.map_index in self.failed else "deferred")
            for one in references
        }

    def awaited(self, reference: TaskInstanceReference) -> str | None:
        raise AssertionError("no task instance has several invocations")


async def invoke_many(platform: RobotoPlatform, action: str) -> None:
    slots = asyncio.Semaphore(20)

    async def invoke(index: int) -> None:
        asked = DagRunProvenance(
            dag_id="fleet", run_id="r", run_type="scheduled", task_id="ask", map_index=index, try_number=1,
            base_url=URL,
        )  # fmt: skip
        request = InvocationRequest(
            invocation_source=asked.source.source_type, invocation_source_id=asked.source_id
        )
        async with slots:
            await platform.invoke(action, request)

    await asyncio.gather(*(invoke(index) for index in range(COUNT)))


def test_a_thousand_active_invocations_need_one_listing(
    start_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start_server("--slots", "1", "--grace", "0.5")
    connect_to(server, monkeypatch)
    hook = RobotoHook()
    action = script(hook, "sleep 600")
    hook.ask(lambda platform: invoke_many(platform, action))
    requests: list[str] = []
    call = RobotoClient.call

    async def counted(self: RobotoClient, method: str, path: str, **arguments: Any) -> Any:
        requests.append(f"{method} {path}")
        return await call(self, method, path, **arguments)

    monkeypatch.setattr(RobotoClient, "call", counted)
    airflow = Airflow(failed=())
    result = reconcile(hook.ask, URL, airflow)
    assert result.counts()["wanted"] == COUNT
    assert (requests, airflow.reads) == (["POST v1/actions/invocations/query"], 1)
    requests.clear()
    result = reconcile(hook.ask, URL, Airflow(failed=range(5)), limits=Limits(pause=0))
    assert (result.counts()["wanted"], result.counts()["cancelled"]) == (COUNT - 5, 5)
    # The listing, and a cancel and a read for each; a running one may be read more than once.
    assert 11 <= len(requests) <= 25, requests
    hook.ask(lambda platform: platform._client.call("POST", "v1/actions/invocations/cancel/all", body={}))


@on_every_database
@pytest.mark.usefixtures("database")
def test_operator_cancels_what_no_task_waits_for(hook: RobotoHook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", URL)
    action = script(hook, "sleep 600")
    with DAG("reconciled", schedule=None) as dag:
        InvokeActionOperator(task_id="a_invoke", action=action, wait=False)
    first = run(dag)
    assert states(first) == {("a_invoke", -1): "success"}
    detached = results(first, "a_invoke")["invocation_id"]
    # What a task started that was then marked as failed: the same task, which would have waited.
    waited = orphan_of(hook, detached)
    gone = orphan_of(hook, detached, run_id="deleted")
    with DAG("reconciles", schedule=None) as dag:
        ReconcileInvocationsOperator(task_id="dry", conn_ids=["roboto_default"], dry_run=True)
    counts = results(run(dag), "dry")["roboto_default"]
    assert (counts["orphaned"], counts["cancelled"]) == (2, 0)
    with DAG("reconciles", schedule=None) as dag:
        ReconcileInvocationsOperator(task_id="wet", conn_ids=["roboto_default"])
    counts = results(run(dag), "wet")["roboto_default"]
    assert (counts["orphaned"], counts["cancelled"], counts["failed"]) == (2, 2, 0)
    assert {hook.get(one).current.status for one in (waited, gone)} == {S.Cancelled}
    assert not hook.get(detached).current.status.is_terminal
    hook.cancel(detached)


def orphan_of(hook: RobotoHook, invocation_id: str, **changes: Any) -> str:
    """Invoke as the same task would have done if it had waited."""
    record = hook.get(invocation_id)
    asked = DagRunProvenance.from_environment(record.container_parameters.env_vars)
    assert asked is not None
    asked = asked.model_copy(update={"is_detached": False, **changes})
    request = InvocationRequest(
        invocation_source=asked.source.source_type, invocation_source_id=asked.source_id
    )
    return hook.invoke(record.provenance.action.name, request).invocation_id
