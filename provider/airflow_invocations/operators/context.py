"""Reads a task's context: which try of which task of which DAG run, and what started that run."""

from __future__ import annotations

from airflow.sdk import Context
from airflow.sdk.configuration import conf

from ..model import MAX_ASSET_EVENTS, AssetEvent, DagRunProvenance
from ..waiting import TaskIdentity


def provenance_of(context: Context) -> DagRunProvenance:
    """The provenance of whatever this task asks for."""
    run = context["dag_run"]
    instance = context["ti"]
    return DagRunProvenance(
        dag_id=instance.dag_id,
        run_id=instance.run_id,
        run_type=str(getattr(run.run_type, "value", run.run_type)),
        task_id=instance.task_id,
        map_index=-1 if instance.map_index is None else instance.map_index,
        try_number=instance.try_number,
        clear_number=getattr(run, "clear_number", 0) or 0,
        logical_date=run.logical_date,
        data_interval_start=run.data_interval_start,
        data_interval_end=run.data_interval_end,
        triggered_by=getattr(run, "triggering_user_name", None),
        consumed_asset_events=[
            AssetEvent(
                name=event.asset.name,
                uri=event.asset.uri,
                timestamp=event.timestamp,
                source_dag_id=event.source_dag_id,
                source_run_id=event.source_run_id,
                source_task_id=event.source_task_id,
                source_map_index=event.source_map_index,
            )
            for event in (run.consumed_asset_events or [])[:MAX_ASSET_EVENTS]
        ],
        dag_version=str(instance.dag_version_id) if instance.dag_version_id else None,
        owner=context["task"].owner,
    )


def identity_of(context: Context) -> TaskIdentity:
    """What tells this task's work from any other's, and is the same for each of its retries.

    `[api] base_url` and the run's start date tell apart what has the same names: another Airflow on the same
    platform, and a run that was deleted and made again. Airflow leaves a run's start date alone for as long
    as the run hasn't ended (`clear_task_instances`), so retries don't change it.
    """
    run = context["dag_run"]
    instance = context["ti"]
    return TaskIdentity(
        deployment=conf.get("api", "base_url", fallback="") or "",
        dag_id=instance.dag_id,
        run_id=instance.run_id,
        run_started=run.start_date,
        task_id=instance.task_id,
        map_index=-1 if instance.map_index is None else instance.map_index,
        incarnation=instance.max_tries - (context["task"].retries or 0),
    )
