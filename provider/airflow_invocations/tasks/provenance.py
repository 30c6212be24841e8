"""Read from a task's context its task instance and try, and what started its DAG run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID

from airflow.sdk import Context

from .. import models
from ..version_compat import conf
from .idempotency import TaskInvocationKey
from .lineage import parent_and_root_of

if TYPE_CHECKING:
    from ..models import DagRunProvenance


#: The region of a task instance that is neither mapped nor in a loop.
_NO_REGION = UUID(int=0)


@dataclass(frozen=True, slots=True)
class LoopPosition:
    """The position of a task instance in a task loop (Airflow 3.4).

    The iterations of a loop share DAG, run, task and map index. `region_id` names one execution of the
    loop, or of a task that is mapped within one of its iterations; a clear that repeats iterations begins a
    new one. `region_index` is the task instance's index in it, `iteration` the number that Airflow's pages
    show.
    """

    region_id: str
    region_index: int
    iteration: int


def loop_position_of(context: Context) -> LoopPosition | None:
    """Return the position of the task instance in its loop; None outside of loops.

    A triggerer's context has no `loop`, so there the region decides: what starts in a triggerer is never
    mapped, and outside of loops only mapped tasks have regions. The region index of a task that isn't mapped
    is its iteration: Airflow counts both from 0 in the betas of 3.4, and from 1 in the release
    (https://github.com/apache/airflow/pull/74773). `loop.index` is not part of any identity.
    """
    instance: Any = context["ti"]
    loop: Any = context.get("loop")
    region_id = getattr(instance, "region_id", None)
    in_region = region_id is not None and str(region_id) != str(_NO_REGION)
    if not in_region or (loop is None and map_index_of(instance) >= 0):
        return None
    region_index = instance.region_index
    return LoopPosition(
        region_id=str(region_id),
        region_index=region_index,
        iteration=region_index if loop is None else loop.index,
    )


def map_index_of(instance: Any) -> int:
    """Return the map index of a task instance, -1 for one that isn't mapped."""
    return -1 if instance.map_index is None else int(instance.map_index)


def provenance_of(context: Context, *, in_worker: bool = True) -> DagRunProvenance:
    """Return the provenance of the invocations of a task.

    :param in_worker: a triggerer doesn't know a task instance's `max_tries`, and gives the task's `retries`
        instead (`TriggerRunner.create_runtime_ti`).
    """
    run = context["dag_run"]
    instance = context["ti"]
    position = loop_position_of(context)
    parent, root = parent_and_root_of(instance) or (None, None)
    return models.DagRunProvenance(
        dag_id=instance.dag_id,
        run_id=instance.run_id,
        run_type=str(getattr(run.run_type, "value", run.run_type)),
        task_id=instance.task_id,
        map_index=map_index_of(instance),
        iteration=position.iteration if position else None,
        region_id=position.region_id if position else None,
        region_index=position.region_index if position else None,
        try_number=instance.try_number,
        clear_number=getattr(run, "clear_number", 0) or 0,
        instance_id=str(instance.id),
        max_tries=int(instance.max_tries) if in_worker else None,
        logical_date=run.logical_date,
        data_interval_start=run.data_interval_start,
        data_interval_end=run.data_interval_end,
        triggered_by=getattr(run, "triggering_user_name", None),
        consumed_asset_events=[
            models.AssetEvent(
                name=event.asset.name,
                uri=event.asset.uri,
                timestamp=event.timestamp,
                source_dag_id=event.source_dag_id,
                source_run_id=event.source_run_id,
                source_task_id=event.source_task_id,
                source_map_index=event.source_map_index,
            )
            for event in _of_each_asset(run.consumed_asset_events or [])[: models.MAX_ASSET_EVENTS]
        ],
        dag_version=str(instance.dag_version_id) if instance.dag_version_id else None,
        owner=context["task"].owner,
        base_url=_base_url() or None,
        lineage_parent=parent,
        lineage_root=root,
    )


def _base_url() -> str:
    """Where people find this Airflow; empty: it doesn't say."""
    return conf.get("api", "base_url", fallback="") or ""


def _of_each_asset(events: Sequence[Any]) -> list[Any]:
    """Sort events so that the first of each asset comes first: a prefix then names every asset."""
    first = {(event.asset.name, event.asset.uri): event for event in reversed(events)}.values()
    named = [event for event in events if any(event is one for one in first)]
    return named + [event for event in events if not any(event is one for one in first)]


def identity_of(context: Context, incarnation: int | None = None) -> TaskInvocationKey:
    """Return the key that distinguishes this task's invocations from all others, equal for all retries.

    No part of it changes while the run exists. `[api] base_url` distinguishes Airflows that share a platform.
    The run's start date can't be a part: a clear of a run that has ended, or a PATCH of its state, changes
    it. Neither can `retries`, which a DAG's author may edit.

    :param incarnation: None: the task instance's `max_tries`, which a retry keeps and a clear changes. A
        triggerer doesn't know it.
    """
    instance = context["ti"]
    position = loop_position_of(context)
    return TaskInvocationKey(
        deployment=_base_url(),
        dag_id=instance.dag_id,
        run_id=instance.run_id,
        run_after=context["dag_run"].run_after,
        task_id=instance.task_id,
        map_index=map_index_of(instance),
        region=(position.region_id, position.region_index) if position else None,
        incarnation=int(instance.max_tries) if incarnation is None else incarnation,
    )


def first_try_of(context: Context) -> int:
    """Return the try with which this incarnation began, unless `retries` was edited since.

    A clear sets `max_tries` to the tries so far plus `retries` (`clear_task_instances`). The number is a hint
    only; `tasks.incarnation` says where it decides.
    """
    return int(context["ti"].max_tries) - (context["task"].retries or 0) + 1
