"""`@task.invoke_action` in `dag.test()` against the real server: plain, deferred, mapped, templated."""

from __future__ import annotations

from typing import Any

import pytest
from airflow.sdk import DAG, task

from airflow_invocations.hooks import RobotoHook

from .conftest import on_every_database, script
from .dag_runs import run


def results(dag_run: Any) -> list[Any]:
    return [
        instance.xcom_pull(task_ids=instance.task_id, map_indexes=instance.map_index)
        for instance in sorted(dag_run.get_task_instances(), key=lambda one: (one.task_id, one.map_index))
    ]


@on_every_database
@pytest.mark.usefixtures("database")
def test_functions_say_what_to_invoke_with(hook: RobotoHook) -> None:
    action = script(hook, "sleep 0.2; echo $ROBOTO_PARAM_file")
    with DAG("decorated", schedule=None) as dag:

        @task.invoke_action(action="{{ dag_run.conf['action'] }}", poll_interval=0.1)
        def a_plain(name: str) -> dict[str, Any]:
            return {"file": f"{name}.csv", "left": "{{ ds }}"}

        @task.invoke_action(action="never", deferrable=True, poll_interval=0.1, defer_after=0)
        def b_whole() -> dict[str, Any]:
            return {"action": action, "parameters": {"file": "whole.csv"}, "timeout": 7}

        @task.invoke_action(action=action, poll_interval=0.1)
        def c_mapped(name: str, ti: Any = None) -> dict[str, Any]:
            return {"file": f"{name}-{ti.map_index}.csv"}

        a_plain("{{ dag_run.conf['name'] }}")
        b_whole()
        c_mapped.expand(name=["x", "y"])
    dag_run = run(dag, {"action": action, "name": "rendered"})
    assert dag_run.state == "success"
    pushed = results(dag_run)
    assert [one["status"] for one in pushed] == ["Completed"] * 4
    records = [hook.get(one["invocation_id"]) for one in pushed]
    assert [record.parameter_values for record in records] == [
        # Arguments are templates, as everywhere; what a function returns is data.
        {"file": "rendered.csv", "left": "{{ ds }}"},
        {"file": "whole.csv"},
        {"file": "x-0.csv"},
        {"file": "y-1.csv"},
    ]
    assert records[1].timeout == 7
    assert [one["provenance"]["map_index"] for one in pushed] == [-1, -1, 0, 1]


@pytest.mark.usefixtures("database")
def test_a_resumed_task_knows_its_request_as_before(hook: RobotoHook) -> None:
    action = script(hook, "sleep 3")
    template = "{{ task.parameters['recording'] }} by {{ task.action }} in {{ task.timeout }} min"
    with DAG("resumed", schedule=None) as dag:

        @task.invoke_action(action="never", deferrable=True, map_index_template=template)
        def check(recording: str) -> dict[str, Any]:
            request = {"recording": recording}
            return {"action": action, "parameters": request, "timeout": 7}

        check.expand(recording=["a", "b"])
    dag_run = run(dag)
    # The action takes longer than `defer_after`, so both tasks have deferred and resumed.
    assert dag_run.state == "success"
    labels = {one.map_index: one.rendered_map_index for one in dag_run.get_task_instances()}
    assert labels == {0: f"a by {action} in 7 min", 1: f"b by {action} in 7 min"}


@pytest.mark.usefixtures("database")
def test_a_function_that_fails_on_resume_does_not_fail_the_task(hook: RobotoHook) -> None:
    action = script(hook, "sleep 0.5")
    calls: list[int] = []
    with DAG("resumed_once", schedule=None) as dag:

        @task.invoke_action(action=action, deferrable=True, defer_after=0)
        def once() -> dict[str, Any]:
            calls.append(1)
            if len(calls) > 1:
                raise RuntimeError("the queue is empty")
            return {"n": 1}

        once()
    dag_run = run(dag)
    assert (dag_run.state, len(calls)) == ("success", 2)
