"""A task instance as the Task SDK describes it, without an Airflow around it."""

from __future__ import annotations

import datetime
from types import SimpleNamespace
from typing import Any

from airflow_invocations.models import DagRunProvenance

NOON = datetime.datetime(2026, 1, 31, 12, tzinfo=datetime.UTC)
PROVENANCE = DagRunProvenance(
    dag_id="fleet", run_id="manual__1", run_type="manual", task_id="ask", try_number=1, triggered_by="ada"
)


def record_state(trigger: Any, state: str) -> None:
    """Give a trigger a task instance, with this state in Airflow's record."""

    async def states(_: object) -> set[str]:
        return {state}

    trigger.task_instance = SimpleNamespace(task_id="ask", map_index=-1)
    trigger._task_states = states


def context(**changes: Any) -> dict[str, Any]:
    """The parts of a task's context that the provider reads; `changes` are the DAG run's."""
    run = {
        "run_type": "scheduled",
        "logical_date": NOON,
        "data_interval_start": NOON - datetime.timedelta(days=1),
        "data_interval_end": NOON,
        "triggering_user_name": None,
        "consumed_asset_events": [],
        "start_date": NOON,
        "run_after": NOON,
        "clear_number": 0,
    }
    instance = {
        "id": "01999999-0000-7000-8000-000000000001",
        "dag_id": "fleet",
        "run_id": "scheduled__2026-01-31T12:00:00+00:00",
        "task_id": "ask",
        "map_index": -1,
        "try_number": 2,
        "max_tries": 3,
        "start_date": NOON,
        "dag_version_id": "01999999-0000-7000-8000-000000000000",
    }
    return {
        "dag_run": SimpleNamespace(**{**run, **changes}),
        "ti": SimpleNamespace(**instance),
        "task": SimpleNamespace(owner="ada", retries=3),
    }
