"""Who asked, for every kind of DAG run, mapped and retried tasks: what the platform is told, and links."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest
from airflow.sdk import DAG, Asset

from airflow_invocations.hooks import RobotoHook
from airflow_invocations.models import DagRunProvenance, InvocationRecord, deployment_id, task_instance_of
from airflow_invocations.operators import InvokeActionOperator

from .conftest import script
from .dag_runs import run, states, watched

pytestmark = pytest.mark.usefixtures("database")


def asked_by(record: InvocationRecord) -> DagRunProvenance:
    found = DagRunProvenance.from_environment(record.container_parameters.env_vars)
    assert found is not None
    return found


@pytest.mark.parametrize(
    "run_type", ["scheduled", "manual", "asset_triggered", "backfill", "operator_triggered"]
)
def test_each_invocation_says_which_try_of_which_task_of_which_run(
    hook: RobotoHook, tmp_path: Path, run_type: str
) -> None:
    once = script(hook, f"test -e {tmp_path}/seen || {{ touch {tmp_path}/seen; exit 3; }}")
    with DAG(f"asks_{run_type}", schedule=[Asset("readings")], default_args={"owner": "robots"}) as dag:
        asking = {"poll_interval": 0.1, "retry_delay": datetime.timedelta(0)}
        InvokeActionOperator.partial(
            task_id="each", action=script(hook, "exit $ROBOTO_PARAM_code"), **asking
        ).expand(parameters=[{"code": 0}, {"code": 65}])
        InvokeActionOperator(task_id="twice", action=once, retries=1, **asking)
    is_by_asset = run_type == "asset_triggered"
    dag_run = run(dag, consumed=watched("readings", {}) if is_by_asset else lambda _: [], run_type=run_type)
    assert states(dag_run) == {("each", 0): "success", ("each", 1): "failed", ("twice", -1): "success"}

    records = hook.find(dag.dag_id, dag_run.run_id)
    tries = sorted((one.task_id, one.map_index, one.try_number) for one in map(asked_by, records))
    assert tries == [("each", 0, 1), ("each", 1, 1), ("twice", -1, 1), ("twice", -1, 2)]
    for record in records:
        asked = asked_by(record)
        assert (asked.dag_id, asked.run_id, asked.run_type) == (dag.dag_id, dag_run.run_id, run_type)
        assert (asked.owner, asked.logical_date) == ("robots", dag_run.logical_date)
        assert [event.name for event in asked.consumed_asset_events] == (["readings"] if is_by_asset else [])
        assert record.provenance.source.source_type == ("Manual" if run_type == "manual" else "Trigger")
        instance = task_instance_of(record.provenance.source.source_id)
        assert instance is not None
        assert instance.deployment == deployment_id(asked.base_url)
        shared = type(instance).model_fields.keys() - {"deployment"}
        assert instance.model_dump(include=shared) == {name: getattr(asked, name) for name in shared}
        # The button of the task instance, mapped or not, failed or not, leads to what its last try invoked.
        if (asked.task_id, asked.try_number) != ("twice", 1):
            (found,) = [
                one for one in dag_run.get_task_instances()
                if (one.task_id, one.map_index) == (asked.task_id, asked.map_index)
            ]  # fmt: skip
            link = found.xcom_pull(
                task_ids=found.task_id, key="_link_InvocationLink", map_indexes=found.map_index
            )
            assert link == hook.url(record.invocation_id)
