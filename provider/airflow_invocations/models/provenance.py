"""Who started an invocation: the platform's record of it, and Airflow's."""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit

import pydantic

from .base import WireModel

#: Environment variable with an action's whole DagRunProvenance, as JSON.
PROVENANCE_VARIABLE = "AIRFLOW_CTX_PROVENANCE"

#: The number of consumed asset events that a provenance lists; a run may consume thousands.
MAX_ASSET_EVENTS = 50

#: Run types of DAG runs that a user started; all others were started by a schedule or by data.
_MANUAL_RUN_TYPES = frozenset({"manual", "asset_materialization"})


class InvocationSource(StrEnum):
    """What started an invocation: a trigger of any kind, or a user."""

    Trigger = "Trigger"
    Manual = "Manual"


class SourceProvenance(WireModel):
    """What started an invocation, with its id."""

    source_type: InvocationSource
    source_id: str


class ActionProvenance(WireModel):
    """The action that was invoked, and its version."""

    name: str
    org_id: str
    digest: str | None = None


class ExecutableProvenance(WireModel):
    """The container image; empty for an action that runs as a process."""

    container_image_uri: str | None = None
    container_image_digest: str | None = None


class InvocationProvenance(WireModel):
    """The action, executable and source of an invocation."""

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
    """The task instance that started an invocation, its try, and what started its DAG run.

    :param map_index: -1 for a task that isn't mapped.
    :param iteration: the iteration of the task loop that contains the task, as in Airflow's UI; None outside
        of loops.
    :param region_id: with `region_index`, the address of a task instance in a loop in Airflow's API
        (https://airflow.apache.org/docs/apache-airflow/stable/stable-rest-api-ref.html).
    :param clear_number: how often anything in the run was cleared before.
    :param logical_date: None, like the data interval, for runs without one, such as asset-triggered runs.
    :param instance_id: Airflow's id of this try; each try has its own, also in another run of the same id.
    :param max_tries: the tries that Airflow allows. Retries leave it as it is, a clear changes it. None: not
        known, as in a triggerer.
    :param is_detached: whether the invocation is to go on after its task (`wait=False`,
        `cancel_on_kill=False`).
    :param triggered_by: the user; None for a run that no user started.
    :param consumed_asset_events: the first MAX_ASSET_EVENTS, and at least one of each asset.
    :param base_url: the URL of this Airflow; None if `[api] base_url` isn't set.
    :param lineage_parent: OpenLineage's run of the task as `namespace/job/run id`; None without lineage.
    :param lineage_root: OpenLineage's run of the DAG, in the same form.
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
    instance_id: str | None = None
    max_tries: int | None = None
    is_detached: bool = False
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
        """The source as the platform records it: Manual for a run that a user started, else Trigger."""
        manual = self.run_type in _MANUAL_RUN_TYPES
        return SourceProvenance(
            source_type=InvocationSource.Manual if manual else InvocationSource.Trigger,
            source_id=self.source_id,
        )

    @property
    def source_id(self) -> str:
        """The task instance as a URI, with the path of Airflow's own pages; `task_instance_of` parses it."""
        task = source_id_prefix(self.dag_id, self.run_id, self.task_id, self.map_index, self.iteration)
        query = {
            "try_number": self.try_number,
            "clear_number": self.clear_number or None,
            "region_id": self.region_id,
            "region_index": self.region_index,
            "instance_id": self.instance_id,
            "max_tries": self.max_tries,
            "detached": 1 if self.is_detached else None,
            "deployment": deployment_id(self.base_url),
        }
        return task + urlencode({name: value for name, value in query.items() if value is not None})

    def environment(self) -> dict[str, str]:
        """Return environment variables for the action's process; a value that a run lacks is left out.

        The first six are those that Airflow gives a task's subprocess. The OPENLINEAGE_* variables are those
        that OpenLineage's integrations read.
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
        """Return the provenance in environment variables; None if there is none, or it is malformed."""
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

    :param map_index: -1 for a task that isn't mapped; None for any index.
    :param iteration: used only with a task; with None and a `map_index`, no task in a loop matches.
    """
    prefix = f"{SOURCE_ID_BEGIN}{_quoted(dag_id)}/"
    if run_id is not None:
        prefix += f"runs/{_quoted(run_id)}/"
    if task_id is not None:
        prefix += f"tasks/{_quoted(task_id)}"
        if iteration is not None:
            prefix += f"/iterations/{iteration}"
    if map_index is not None:
        prefix += f"/mapped/{map_index}?" if map_index >= 0 else "?"
    return prefix


def deployment_id(base_url: str | None) -> str | None:
    """Return what names an Airflow in a `source_id`: a digest of its base URL; None without one."""
    if not base_url:
        return None
    return hashlib.sha256(base_url.rstrip("/").encode()).hexdigest()[:16]


class TaskInstanceReference(pydantic.BaseModel):
    """The task instance that a `source_id` names, with the fields of `DagRunProvenance`.

    :param deployment: which Airflow it is an instance of (`deployment_id`); None: it doesn't say.
    """

    dag_id: str
    run_id: str
    task_id: str
    map_index: int = -1
    iteration: int | None = None
    region_id: str | None = None
    region_index: int | None = None
    try_number: int
    clear_number: int = 0
    instance_id: str | None = None
    max_tries: int | None = None
    is_detached: bool = False
    deployment: str | None = None


@dataclass(frozen=True, slots=True)
class SourceFilter:
    """The task instances whose invocations to find; None matches any value.

    :param map_index: -1 for a task that isn't mapped.
    :param iteration: an iteration of the task loop that contains the task.
    """

    dag_id: str
    run_id: str | None = None
    task_id: str | None = None
    map_index: int | None = None
    iteration: int | None = None

    @property
    def prefixes(self) -> tuple[str, ...]:
        """The possible prefixes of a matching `source_id`. Others may have them too."""
        if self.task_id is None or self.map_index is None:
            return (source_id_prefix(self.dag_id, self.run_id, self.task_id, None, self.iteration),)
        own = source_id_prefix(self.dag_id, self.run_id, self.task_id, self.map_index, self.iteration)
        if self.iteration is not None:
            return (own,)
        task = source_id_prefix(self.dag_id, self.run_id, self.task_id)
        return (own, f"{task}/iterations/")

    def matches(self, source_id: str) -> bool:
        """Return whether a `source_id` names one of these task instances."""
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


#: How every `source_id` of a task instance begins.
SOURCE_ID_BEGIN = "airflow:dags/"

#: The segments that may follow a task in a `source_id`, in this order.
_INDEXES = ("iterations", "mapped")


def task_instance_of(source_id: str) -> TaskInstanceReference | None:
    """Parse a `source_id` that DagRunProvenance wrote; return None for any other."""
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
                    instance_id=query.get("instance_id", [None])[-1],
                    max_tries=int(query["max_tries"][-1]) if "max_tries" in query else None,
                    is_detached="detached" in query,
                    deployment=query.get("deployment", [None])[-1],
                )
            except ValueError:
                return None
    return None


def _quoted(part: str) -> str:
    return quote(part, safe="")


def _iso(moment: datetime.datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()
