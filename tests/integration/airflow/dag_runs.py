"""Runs a DAG by `dag.test()`, with an Airflow database of the tests' own."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager
from typing import Any
from unittest.mock import patch

from airflow.models import dagrun
from airflow.models.asset import AssetEvent, AssetModel
from airflow.sdk import DAG
from airflow.utils.types import DagRunType
from sqlalchemy import select

from airflow_invocations.triggers import InvocationEventTrigger
from airflow_invocations.triggers._event_delivery import CURSOR_KEY

from ...support.airflow_version import DagBag, sync_bag_to_db
from .watcher import State

#: Finds the asset events that a DAG run has consumed, in an open session.
Consumed = Callable[[Any], list[AssetEvent]]


def run(
    dag: DAG,
    conf: dict[str, Any] | None = None,
    consumed: Consumed = lambda _: [],
    run_type: str = "manual",
) -> Any:
    """The DAG run, at its end; `consumed` are the events that have started it, `run_type` what kind it is."""
    bag = DagBag(dag_folder=os.devnull)
    bag.bag_dag(dag)
    sync_bag_to_db(bag, "dags-folder", None)
    with _made_so(consumed, DagRunType(run_type)):
        return dag.test(run_conf=conf)


def states(dag_run: Any) -> dict[tuple[str, int], str]:
    """The states of a run's task instances, by task id and map index."""
    return {(one.task_id, one.map_index): one.state for one in dag_run.get_task_instances()}


def results(dag_run: Any, task_id: str) -> Any:
    """What a task has returned; of a mapped one a list."""
    found = [
        one.xcom_pull(task_ids=task_id, map_indexes=one.map_index)
        for one in sorted(dag_run.get_task_instances(), key=lambda one: one.map_index)
        if one.task_id == task_id
    ]
    return found[0] if len(found) == 1 else found


def watched(asset: str, payload: dict[str, Any]) -> Consumed:
    """The event of an asset that a watcher's trigger has fired with this payload."""

    def event(session: Any) -> list[AssetEvent]:
        asset_id = session.scalar(select(AssetModel.id).where(AssetModel.name == asset))
        made = AssetEvent(asset_id=asset_id, extra={"from_trigger": True, "payload": payload})
        session.add(made)
        return [made]

    return event


def emitted_by(dag_id: str) -> Consumed:
    """All events that a DAG's tasks have emitted."""
    return lambda session: list(session.scalars(select(AssetEvent).where(AssetEvent.source_dag_id == dag_id)))


@contextmanager
def _made_so(consumed: Consumed, run_type: DagRunType) -> Iterator[None]:
    """`dag.test()` has no arguments for that, so it is done where it makes the run."""
    make = dagrun.get_or_create_dagrun

    def made(*, session: Any, **arguments: Any) -> Any:
        dag_run = make(session=session, **arguments)
        dag_run.consumed_asset_events += consumed(session)
        dag_run.run_type = run_type
        session.commit()
        return dag_run

    with patch.object(dagrun, "get_or_create_dagrun", made):
        yield


async def payload_of(trigger: InvocationEventTrigger) -> dict[str, Any]:
    """The first payload of a trigger that hears of everything since the platform began."""
    trigger.asset_state_store = state = State()  # type: ignore[assignment]
    state.values[CURSOR_KEY] = 0
    async with asyncio.timeout(60), aclosing(trigger.run()) as steps:  # type: ignore[type-var]
        payload: dict[str, Any] = (await anext(steps)).payload
    return payload
