"""The provenance of a DAG run: sent to the platform, to an action's process, and read back."""

from __future__ import annotations

import datetime
import json
from typing import Any

import pytest

from airflow_invocations.models import (
    MAX_ASSET_EVENTS,
    AssetEvent,
    DagRunProvenance,
    InvocationSource,
    TaskInstanceReference,
    task_instance_of,
)
from airflow_invocations.models.provenance import PROVENANCE_VARIABLE

NOON = datetime.datetime(2026, 1, 31, 12, tzinfo=datetime.UTC)

NASTY = [
    "manual__2026-01-31T12:00:00+00:00",
    "a/b",
    "..",
    "100%",
    "%2F",
    "a b+c",
    "a?try_number=9",
    "a#b",
    "a&b=c;d",
    "naïve/日本語/🤖",
    "x:y",
    "tab\there",
    "quote'\"",
    "back\\slash",
]


def provenance(**changes: Any) -> DagRunProvenance:
    values: dict[str, Any] = {
        "dag_id": "fleet",
        "run_id": "scheduled__2026-01-31",
        "run_type": "scheduled",
        "task_id": "find",
        "try_number": 2,
    }
    return DagRunProvenance(**{**values, **changes})


@pytest.mark.parametrize(
    ("run_type", "source"),
    [
        ("scheduled", InvocationSource.Trigger),
        ("backfill", InvocationSource.Trigger),
        ("operator_triggered", InvocationSource.Trigger),
        ("asset_triggered", InvocationSource.Trigger),
        ("invented_tomorrow", InvocationSource.Trigger),
        ("manual", InvocationSource.Manual),
        ("asset_materialization", InvocationSource.Manual),
    ],
)
def test_source_is_manual_for_a_user_and_else_a_trigger(run_type: str, source: InvocationSource) -> None:
    asked = provenance(run_type=run_type)
    assert asked.source.source_type is source
    assert asked.source.source_id == asked.source_id


def test_run_types_of_airflow_are_all_tested() -> None:
    from airflow.utils.types import DagRunType

    assert {kind.value for kind in DagRunType} <= {
        "scheduled", "backfill", "operator_triggered", "asset_triggered", "manual", "asset_materialization",
    }  # fmt: skip


@pytest.mark.parametrize("map_index", [-1, 0, 12])
@pytest.mark.parametrize("text", NASTY)
def test_source_id_identifies_the_task_instance_for_any_ids(text: str, map_index: int) -> None:
    for field in ("dag_id", "run_id", "task_id"):
        asked = provenance(**{field: text}, map_index=map_index)
        assert task_instance_of(asked.source_id) == TaskInstanceReference(
            dag_id=asked.dag_id,
            run_id=asked.run_id,
            task_id=asked.task_id,
            map_index=map_index,
            try_number=2,
        )


def test_source_ids_of_different_task_instances_differ() -> None:
    asked = [
        provenance(**{field: text}, map_index=map_index)
        for field in ("dag_id", "run_id", "task_id")
        for text in NASTY
        for map_index in (-1, 0, 1)
    ] + [provenance(try_number=3), provenance(map_index=2)]
    assert len({one.source_id for one in asked}) == len(asked)


def test_source_id_has_the_path_of_airflows_pages() -> None:
    asked = provenance(run_id="manual__2026-01-31T12:00:00+00:00", map_index=3)
    assert asked.source_id == (
        "airflow:dags/fleet/runs/manual__2026-01-31T12%3A00%3A00%2B00%3A00/tasks/find/mapped/3?try_number=2"
    )


@pytest.mark.parametrize(
    "foreign",
    [
        "",
        "ada@example.com",
        "tr_0123456789",
        "https://example.com/dags/d/runs/r/tasks/t?try_number=1",
        "airflow:dags/d/runs/r/tasks/t",
        "airflow:dags/d/runs/r/tasks/t?try_number=one",
        "airflow:dags/d/runs/r/tasks/t?try_number=1&try_number=2",
        "airflow:dags/d/runs/r/tasks/t/mapped?try_number=1",
        "airflow:dags/d/runs/r/tasks/t/mapped/x?try_number=1",
        "airflow:dags/d/runs/r/tasks/t/elsewhere/1?try_number=1",
        "airflow:dags/d/tasks/t/runs/r?try_number=1",
        "http://[broken",
    ],
)
def test_foreign_source_id_names_no_task_instance(foreign: str) -> None:
    assert task_instance_of(foreign) is None


def test_environment_has_the_variables_of_airflows_own_tasks() -> None:
    asked = provenance(
        run_type="manual",
        map_index=4,
        logical_date=NOON,
        data_interval_start=NOON - datetime.timedelta(days=1),
        data_interval_end=NOON,
        triggered_by="ada",
        owner="robots",
    )
    environment = asked.environment()
    assert json.loads(environment.pop(PROVENANCE_VARIABLE))["triggered_by"] == "ada"
    assert environment == {
        "AIRFLOW_CTX_DAG_OWNER": "robots",
        "AIRFLOW_CTX_DAG_ID": "fleet",
        "AIRFLOW_CTX_TASK_ID": "find",
        "AIRFLOW_CTX_LOGICAL_DATE": "2026-01-31T12:00:00+00:00",
        "AIRFLOW_CTX_TRY_NUMBER": "2",
        "AIRFLOW_CTX_DAG_RUN_ID": "scheduled__2026-01-31",
        "AIRFLOW_CTX_RUN_TYPE": "manual",
        "AIRFLOW_CTX_MAP_INDEX": "4",
        "AIRFLOW_CTX_DATA_INTERVAL_START": "2026-01-30T12:00:00+00:00",
        "AIRFLOW_CTX_DATA_INTERVAL_END": "2026-01-31T12:00:00+00:00",
        "AIRFLOW_CTX_TRIGGERED_BY": "ada",
    }


def test_environment_lacks_values_that_the_run_lacks() -> None:
    environment = provenance().environment()
    assert "AIRFLOW_CTX_LOGICAL_DATE" not in environment
    assert "AIRFLOW_CTX_TRIGGERED_BY" not in environment
    assert all(isinstance(value, str) and value for value in environment.values())


@pytest.mark.parametrize("text", NASTY)
def test_provenance_is_read_from_the_environment_unchanged(text: str) -> None:
    event = AssetEvent(
        name=text,
        uri=f"s3://{text}",
        timestamp=NOON,
        source_dag_id=text,
        source_run_id=text,
        source_map_index=0,
    )
    asked = provenance(
        run_id=text, logical_date=NOON, triggered_by=text, consumed_asset_events=[event], dag_version="3"
    )
    assert DagRunProvenance.from_environment(asked.environment()) == asked


def test_maximum_asset_events_fit_into_one_variable() -> None:
    event = AssetEvent(
        name="n" * 250,
        uri="s3://" + "u" * 1000,
        timestamp=NOON,
        source_dag_id="d" * 250,
        source_run_id="r" * 250,
        source_task_id="t" * 250,
        source_map_index=10_000,
    )
    asked = provenance(consumed_asset_events=[event] * MAX_ASSET_EVENTS)
    assert len(asked.environment()[PROVENANCE_VARIABLE].encode()) < 128 * 1024  # Linux: MAX_ARG_STRLEN


@pytest.mark.parametrize(
    "environment",
    [
        None,
        {},
        {"AIRFLOW_CTX_DAG_ID": "fleet"},
        {PROVENANCE_VARIABLE: ""},
        {PROVENANCE_VARIABLE: "{"},
        {PROVENANCE_VARIABLE: "[]"},
        {PROVENANCE_VARIABLE: '{"dag_id": "fleet"}'},
    ],
)
def test_environment_without_readable_provenance_has_none(environment: dict[str, str] | None) -> None:
    assert DagRunProvenance.from_environment(environment) is None
