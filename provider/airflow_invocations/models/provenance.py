"""Who asked for an invocation: the platform's side of the record, and Airflow's."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit

import pydantic

from .base import WireModel

#: Environment variable that hands an action its whole DagRunProvenance, as JSON.
PROVENANCE_VARIABLE = "AIRFLOW_CTX_PROVENANCE"

#: How many consumed asset events a provenance names; a run may consume thousands.
MAX_ASSET_EVENTS = 50

#: Run types of DAG runs that a person started; every other type was started by a schedule or by data.
_MANUAL_RUN_TYPES = frozenset({"manual", "asset_materialization"})


class InvocationSource(StrEnum):
    """What started an invocation: a trigger of some kind, or a person."""

    Trigger = "Trigger"
    Manual = "Manual"


class SourceProvenance(WireModel):
    """What started an invocation, and which one of its kind."""

    source_type: InvocationSource
    source_id: str


class ActionProvenance(WireModel):
    """The action that was invoked, and its version."""

    name: str
    org_id: str
    digest: str | None = None


class ExecutableProvenance(WireModel):
    """The container image that ran; empty for an action that runs as a process."""

    container_image_uri: str | None = None
    container_image_digest: str | None = None


class InvocationProvenance(WireModel):
    """Where an invocation comes from: action, executable and source."""

    action: ActionProvenance
    executable: ExecutableProvenance
    source: SourceProvenance


class AssetEvent(pydantic.BaseModel):
    """An asset event that a DAG run consumed, and the task that emitted it (None: not a task)."""

    name: str
    uri: str
    timestamp: datetime.datetime
    source_dag_id: str | None = None
    source_run_id: str | None = None
    source_task_id: str | None = None
    source_map_index: int | None = None


class DagRunProvenance(pydantic.BaseModel):
    """Which try of which task of which DAG run asked for an invocation, and what started that run.

    `logical_date` and the data interval are None for runs that have none (asset-triggered ones, say);
    `map_index` is -1 for a task that isn't mapped; `iteration` is the iteration of the task loop that the
    task is in, as Airflow's pages show it, None outside of loops; there `region_id` and `region_index` are
    the task instance's address in Airflow's API
    (https://airflow.apache.org/docs/apache-airflow/stable/stable-rest-api-ref.html);
    `clear_number` counts how often anything of the run had been cleared; `triggered_by` is the user, None
    for a run that no user started;
    of the consumed asset events the first MAX_ASSET_EVENTS are named, and of each asset at least one;
    `lineage_parent` and `lineage_root` are OpenLineage's runs of the task and of the DAG, each as
    `namespace/job/run id`, None where no lineage is emitted; `base_url` is where people find this
    Airflow, None where its `[api] base_url` doesn't say.
    """

    dag_id: str
    run_id: str
    run_type: str
    task_id: str
    map_index: int = -1
    iteration: int | None = None
    region_id: str | None = None
    region_index: int | None = None
    try_number: int
    clear_number: int = 0
    logical_date: datetime.datetime | None = None
    data_interval_start: datetime.datetime | None = None
    data_interval_end: datetime.datetime | None = None
    triggered_by: str | None = None
    consumed_asset_events: list[AssetEvent] = []
    dag_version: str | None = None
    owner: str | None = None
    base_url: str | None = None
    lineage_parent: str | None = None
    lineage_root: str | None = None

    @property
    def source(self) -> SourceProvenance:
        """How the platform records it: Manual for a run that a person started, else Trigger."""
        manual = self.run_type in _MANUAL_RUN_TYPES
        return SourceProvenance(
            source_type=InvocationSource.Manual if manual else InvocationSource.Trigger,
            source_id=self.source_id,
        )

    @property
    def source_id(self) -> str:
        """The task instance as a URI, laid out as in Airflow's own pages; `task_instance_of` reads it."""
        task = source_id_prefix(self.dag_id, self.run_id, self.task_id, self.map_index, self.iteration)
        query = {
            "try_number": self.try_number,
            "clear_number": self.clear_number or None,
            "region_id": self.region_id,
            "region_index": self.region_index,
        }
        return task + urlencode({name: value for name, value in query.items() if value is not None})

    def environment(self) -> dict[str, str]:
        """AIRFLOW_CTX_* variables for the action's process, and OPENLINEAGE_* ones where lineage is emitted.

        The first six are those that Airflow itself gives a task's subprocess, the last two those that
        OpenLineage's own integrations read; a value that a run does not have is left out.
        """
        values = {
            "DAG_OWNER": self.owner,
            "DAG_ID": self.dag_id,
            "TASK_ID": self.task_id,
            "LOGICAL_DATE": _iso(self.logical_date),
            "TRY_NUMBER": str(self.try_number),
            "DAG_RUN_ID": self.run_id,
            "RUN_TYPE": self.run_type,
            "MAP_INDEX": str(self.map_index),
            "LOOP_ITERATION": None if self.iteration is None else str(self.iteration),
            "DATA_INTERVAL_START": _iso(self.data_interval_start),
            "DATA_INTERVAL_END": _iso(self.data_interval_end),
            "TRIGGERED_BY": self.triggered_by,
        }
        named = {f"AIRFLOW_CTX_{name}": value for name, value in values.items() if value}
        runs = {
            "OPENLINEAGE_PARENT_ID": self.lineage_parent,
            "OPENLINEAGE_ROOT_PARENT_ID": self.lineage_root,
        }
        lineage = {name: value for name, value in runs.items() if value}
        return {**named, **lineage, PROVENANCE_VARIABLE: self.model_dump_json(exclude_none=True)}

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None) -> DagRunProvenance | None:
        """The provenance in an invocation's environment variables; None if nothing readable is there."""
        text = (environment or {}).get(PROVENANCE_VARIABLE)
        if text is None:
            return None
        try:
            return cls.model_validate(json.loads(text))
        except ValueError:
            return None


def source_id_prefix(
    dag_id: str,
    run_id: str | None = None,
    task_id: str | None = None,
    map_index: int | None = None,
    iteration: int | None = None,
) -> str:
    """Return the common prefix of every `source_id` of a DAG, a run, a task or a task instance.

    `iteration` counts only beside a task; None leaves out what is in a loop where `map_index` is given.
    """
    prefix = f"airflow:dags/{_quoted(dag_id)}/"
    if run_id is not None:
        prefix += f"runs/{_quoted(run_id)}/"
    if task_id is not None:
        prefix += f"tasks/{_quoted(task_id)}"
        if iteration is not None:
            prefix += f"/iterations/{iteration}"
    if map_index is not None:
        prefix += f"/mapped/{map_index}?" if map_index >= 0 else "?"
    return prefix


class TaskInstanceReference(pydantic.BaseModel):
    """The task instance that a `source_id` names; the fields are those of `DagRunProvenance`."""

    dag_id: str
    run_id: str
    task_id: str
    map_index: int = -1
    iteration: int | None = None
    region_id: str | None = None
    region_index: int | None = None
    try_number: int
    clear_number: int = 0


@dataclass(frozen=True, slots=True)
class SourceFilter:
    """The task instances whose invocations to find; None stands for any.

    `map_index` -1 is a task that isn't mapped. Without `iteration`, every iteration of a loop is meant.
    """

    dag_id: str
    run_id: str | None = None
    task_id: str | None = None
    map_index: int | None = None
    iteration: int | None = None

    @property
    def prefixes(self) -> tuple[str, ...]:
        """The prefixes of a matching `source_id`; not every `source_id` with one of them matches."""
        if self.task_id is None or self.map_index is None:
            return (source_id_prefix(self.dag_id, self.run_id, self.task_id, None, self.iteration),)
        own = source_id_prefix(self.dag_id, self.run_id, self.task_id, self.map_index, self.iteration)
        if self.iteration is not None:
            return (own,)
        task = source_id_prefix(self.dag_id, self.run_id, self.task_id)
        return (own, f"{task}/iterations/")

    def matches(self, source_id: str) -> bool:
        """Whether a `source_id` names one of these task instances."""
        named = task_instance_of(source_id)
        return named is not None and all(
            wanted in (None, of_it)
            for wanted, of_it in (
                (self.dag_id, named.dag_id),
                (self.run_id, named.run_id),
                (self.task_id, named.task_id),
                (self.map_index, named.map_index),
                (self.iteration, named.iteration),
            )
        )


#: The segments that may follow a task in a `source_id`, in this order.
_INDEXES = ("iterations", "mapped")


def task_instance_of(source_id: str) -> TaskInstanceReference | None:
    """Read a `source_id` written by DagRunProvenance; None for one in another form."""
    try:
        uri = urlsplit(source_id)
    except ValueError:
        return None
    parts = [unquote(part) for part in uri.path.split("/")]
    query = parse_qs(uri.query)
    match (uri.scheme, parts, query.get("try_number")):
        case ("airflow", ["dags", dag_id, "runs", run_id, "tasks", task_id, *rest], [try_number]):
            indexes = dict(zip(rest[::2], rest[1::2], strict=False))
            if 2 * len(indexes) != len(rest) or list(indexes) != [one for one in _INDEXES if one in indexes]:
                return None
            try:
                return TaskInstanceReference(
                    dag_id=dag_id,
                    run_id=run_id,
                    task_id=task_id,
                    map_index=int(indexes.get("mapped", -1)),
                    iteration=int(indexes["iterations"]) if "iterations" in indexes else None,
                    region_id=query.get("region_id", [None])[-1],
                    region_index=int(query["region_index"][-1]) if "region_index" in query else None,
                    try_number=int(try_number),
                    clear_number=int(query.get("clear_number", ["0"])[-1]),
                )
            except ValueError:
                return None
    return None


def _quoted(part: str) -> str:
    return quote(part, safe="")


def _iso(moment: datetime.datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()
