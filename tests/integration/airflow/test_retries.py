"""What is retried, by Airflow itself in `dag.test()`: by what has happened, and by the ready policy."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest
from airflow.sdk import DAG

from airflow_invocations.hooks import RobotoHook
from airflow_invocations.operators import InvokeActionOperator
from airflow_invocations.retry_policy import invocation_retry_policy
from airflow_invocations.version_compat import has_retry_policies

from ...support.airflow_version import since
from .conftest import connect_to, on_every_database, script
from .dag_runs import run


@on_every_database
@pytest.mark.usefixtures("database")
def test_a_failure_is_invoked_anew_and_what_a_retry_can_not_mend_is_not(hook: RobotoHook) -> None:
    soon = timedelta(seconds=0.1)
    retried = {"poll_interval": 0.1, "retries": 1, "retry_delay": soon}
    by_policy = {**retried, "retry_policy": invocation_retry_policy(failed_delay=soon)}
    in_a_second = {"action": script(hook, "sleep 60"), "execution_timeout": timedelta(seconds=1)}
    # Without retry policies, before 3.3, a timeout is retried as anything else is.
    late = 1 if has_retry_policies() else 2
    expected = {
        "fails": 2, "fails_by_policy": 2, "bad_data": 1, "late_in_a_worker": late, "late_deferred": late
    }  # fmt: skip
    with DAG("retried", schedule=None) as dag:

        def ask(task_id: str, **arguments: Any) -> None:
            InvokeActionOperator(task_id=task_id, **arguments)

        ask("fails", action=script(hook, "exit 3"), **retried)
        ask("fails_by_policy", action=script(hook, "exit 3"), **by_policy)
        ask("bad_data", action=script(hook, "exit 65"), **retried)
        ask("late_in_a_worker", **in_a_second, **by_policy)
        ask("late_deferred", deferrable=True, defer_after=0, **in_a_second, **by_policy)
    dag_run = run(dag)
    found = {task_id: hook.find("retried", dag_run.run_id, task_id) for task_id in expected}
    assert {task_id: len(records) for task_id, records in found.items()} == expected
    assert {one.current.status.name for task_id in found for one in found[task_id] if "late" in task_id} == {
        "Cancelled"
    }


@since("3.4", "reschedules")
@pytest.mark.usefixtures("database")
def test_an_outage_uses_up_no_retry(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow.sdk.definitions.retry_policy import RetryPolicy

    connect_to(server, monkeypatch)
    action = script(RobotoHook(), "true")
    away = {"conn_type": "roboto", "host": "http://127.0.0.1:9", "password": "t"}
    monkeypatch.setenv("AIRFLOW_CONN_ROBOTO_DEFAULT", json.dumps(away))
    decisions: list[str] = []

    class Comes(RetryPolicy):
        """Asks the ready policy, and has the platform come back."""

        def evaluate(self, *asked: Any, **more: Any) -> Any:
            ready = invocation_retry_policy(outage_delay=timedelta(seconds=0.1))
            assert ready is not None
            decision = ready.evaluate(*asked, **more)
            decisions.append(decision.action.name)
            connect_to(server, monkeypatch)
            return decision

    with DAG("outage", schedule=None) as dag:
        InvokeActionOperator(
            task_id="ask", action=action, outage_limit=0.1, retries=0, retry_policy=Comes(), poll_interval=0.1
        )
    dag_run = run(dag)
    assert dag_run.state == "success"
    assert decisions == ["RESCHEDULE"]
    assert [one.try_number for one in dag_run.get_task_instances()] == [1]
