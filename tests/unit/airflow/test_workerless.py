"""Which tasks may start in the triggerer, what Airflow is told of them, and who is rejected at parse."""

from __future__ import annotations

import json
from typing import Any

import pytest
from airflow.sdk import DAG, Asset, XComArg, task, task_group

from airflow_invocations import triggers
from airflow_invocations.models import ContainerParameters
from airflow_invocations.operators import InvokeActionOperator
from airflow_invocations.retry_policy import invocation_retry_policy
from airflow_invocations.sensors import InvocationSensor

from ...support.airflow_version import DagSerialization, since

starts_in_triggerer = since("3.3", "tasks that start in the triggerer")


def rejected(match: str, **arguments: Any) -> str:
    with DAG("fleet"), pytest.raises(ValueError, match=match) as raised:
        InvokeActionOperator(**{"task_id": "ask", "action": "a", "start_from_trigger": True, **arguments})
    return str(raised.value)


@starts_in_triggerer
def test_a_task_that_starts_in_the_triggerer_says_with_what() -> None:
    with DAG("fleet") as dag:
        InvokeActionOperator(
            task_id="ask",
            action="a",
            parameters={"file": "{{ dag_run.run_after | ds }}/{{ params.name }}.csv"},
            container_parameters=ContainerParameters(command=["run"]),
            start_from_trigger=True,
        )
    encoded = DagSerialization.to_dict(dag)
    json.dumps(encoded)
    read = DagSerialization.from_dict(encoded).get_task("ask")
    assert read.start_from_trigger is True
    arguments = read.start_trigger_args
    assert arguments.trigger_cls == "airflow_invocations.triggers.InvokeActionTrigger"
    kwargs = dag.get_task("ask").start_trigger_args.trigger_kwargs
    assert kwargs["parameters"] == {"file": "{{ dag_run.run_after | ds }}/{{ params.name }}.csv"}
    assert kwargs["container_parameters"] == {"command": ["run"]}
    trigger = triggers.InvokeActionTrigger(**kwargs)
    assert trigger.serialize()[1] == kwargs
    # What is a template field of the operator is rendered if the trigger has it under the same name.
    assert all(hasattr(trigger, name) for name in InvokeActionOperator.template_fields)


@starts_in_triggerer
def test_a_sensor_that_starts_in_the_triggerer_says_with_what() -> None:
    with DAG("fleet"):
        sensor = InvocationSensor(
            task_id="wait", action="a", start_from_trigger=True, timeout=60, soft_fail=True
        )
    arguments = sensor.start_trigger_args
    assert arguments.trigger_cls == "airflow_invocations.triggers.SensorTrigger"
    assert arguments.timeout.total_seconds() == 60
    trigger = triggers.SensorTrigger(**arguments.trigger_kwargs)
    assert trigger.serialize()[1] == arguments.trigger_kwargs
    assert trigger.soft_fail is True
    assert all(hasattr(trigger, name) for name in InvocationSensor.template_fields)


def test_others_start_in_a_worker() -> None:
    with DAG("fleet"):
        assert InvokeActionOperator(task_id="ask", action="a").start_from_trigger is False
        assert InvocationSensor(task_id="wait", invocation_id="iv_1").start_from_trigger is False


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"parameters": {"n": "{{ ti.xcom_pull('up') }}"}}, "argument 'parameters' needs ti"),
        ({"action": "{{ task_instance.task_id }}"}, "argument 'action' needs task_instance"),
        ({"conn_id": "{{ my_macro() }}"}, "argument 'conn_id' needs my_macro"),
        ({"conn_id": "{{ ti.start_date | ds }}"}, "argument 'conn_id' needs ti"),
        ({"conn_id": "{% if ti is odd_one %}x{% endif %}"}, "argument 'conn_id' needs ti"),
        ({"timeout": "{{ prev_start_date_success }}"}, "needs prev_start_date_success"),
        ({"input_data": {"files": {"paths": ["{{ triggering_asset_events }}"]}}}, "needs triggering_asset"),
        ({"outlets": [Asset("a")]}, "outlets emit no asset event there"),
        pytest.param(
            {"retry_policy": invocation_retry_policy()},
            "retry_policy isn't used there",
            marks=since("3.3", "retry policies"),
        ),
        ({"on_execute_callback": print}, "on_execute_callback isn't called there"),
        ({"pre_execute": print}, "pre_execute isn't called there"),
        ({"on_success_callback": print}, "on_success_callback isn't called there"),
        ({"on_skipped_callback": print}, "on_skipped_callback isn't called there"),
        ({"executor_config": {"KubernetesExecutor": {}}}, "executor_config applies to executors only"),
        ({"run_as_user": "ada"}, "run_as_user applies to workers only"),
        ({"pool": "scarce"}, "pool isn't checked, so it limits nothing"),
        ({"pool_slots": 2}, "pool_slots aren't checked"),
        ({"max_active_tis_per_dag": 1}, "max_active_tis_per_dag isn't checked"),
        ({"max_active_tis_per_dagrun": 1}, "max_active_tis_per_dagrun isn't checked"),
    ],
)
def test_arguments_that_need_a_worker_are_rejected(arguments: dict[str, Any], named: str) -> None:
    said = rejected("DAG 'fleet', task 'ask': argument 'start_from_trigger'", **arguments)
    assert named in said
    assert "use deferrable=True" in said


def test_obstacles_are_reported_together() -> None:
    said = rejected("the task needs a worker", outlets=[Asset("a")], action="{{ ti.task_id }}")
    assert "outlets" in said
    assert "argument 'action'" in said


def test_xcoms_are_rejected() -> None:
    with DAG("fleet"):
        up = InvokeActionOperator(task_id="up", action="a")
        with pytest.raises(ValueError, match="argument 'parameters' needs XComs"):
            InvokeActionOperator(
                task_id="ask", action="a", parameters={"n": XComArg(up)}, start_from_trigger=True
            )


@pytest.mark.parametrize(
    "mapped",
    [
        lambda: InvokeActionOperator.partial(task_id="ask", action="a", start_from_trigger=True),
        lambda: InvocationSensor.partial(task_id="ask", start_from_trigger=True),
    ],
)
@pytest.mark.filterwarnings("error")
def test_mapped_tasks_are_rejected(mapped: Any) -> None:
    with (
        DAG("fleet"),
        pytest.raises(ValueError, match="DAG 'fleet', task 'ask': argument 'start_from_trigger': a mapped"),
    ):
        mapped()


def test_where_only_the_dag_says_it_mapped_tasks_run_in_workers() -> None:
    with DAG("fleet", default_args={"start_from_trigger": True}) as dag:
        mapped = InvokeActionOperator.partial(task_id="ask").expand(action=["a", "b"])
    assert mapped.start_from_trigger is False
    unmapped = mapped.unmap({"action": "a", "parameters": {"n": "{{ ti }}"}, "start_from_trigger": True})
    assert unmapped.start_from_trigger is False
    assert dag.get_task("ask").is_mapped


def test_so_are_tasks_of_a_mapped_group() -> None:
    @task_group
    def each(n: int) -> None:
        InvokeActionOperator(task_id="ask", action="a", start_from_trigger=True)

    with DAG("fleet"), pytest.raises(ValueError, match="a mapped task group"):
        each.expand(n=[1, 2])


def test_a_function_needs_a_worker() -> None:
    with pytest.raises(ValueError, match="a function needs a worker"):
        task.invoke_action(action="a", start_from_trigger=True)

    @task.invoke_action(action="a")
    def ask() -> None:
        return None

    with DAG("fleet"), pytest.raises(ValueError, match=r"task 'ask': .* a function needs a worker"):
        ask.override(start_from_trigger=True)()
