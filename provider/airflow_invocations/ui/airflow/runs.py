"""Read from Airflow's API the DAG runs with invocations, their tries and their connections."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, TypeVar
from urllib.parse import quote

from starlette.exceptions import HTTPException

from ...get_provider_info import get_provider_info
from ...tasks.result import INVOCATION_ID_KEY
from .airflow_api import PAGE_SIZE, AirflowApi

#: DAG runs in the list of all of Airflow: the newest ones with invocations.
MAX_RUNS = 20

#: How far back to search for them; the first window with enough runs is used. None: no limit.
WINDOWS = (timedelta(days=1), timedelta(days=30), None)

#: Pages of records that one listing reads at most.
MAX_PAGES = 5

#: Concurrent requests for one viewer's page.
CONCURRENT_REQUESTS = 4

#: Connections that are queried for one DAG run; those that its tasks name come first.
MAX_CONNECTIONS = 20

#: Retried task instances of one list whose earlier tries are read.
MAX_RETRIED = 50

_ENDED = frozenset({"success", "failed"})
_VARIABLE = "AIRFLOW_CONN_"
_ALL_INSTANCES = "/dags/~/dagRuns/~/taskInstances"

#: The display name of each of this provider's connection types.
PLATFORMS: Mapping[str, str] = {
    entry["connection-type"]: entry["hook-name"] for entry in get_provider_info()["connection-types"]
}

Item = TypeVar("Item")
Result = TypeVar("Result")

_part = partial(quote, safe="")


@dataclass(frozen=True, slots=True)
class RunKey:
    """Identifies a DAG run."""

    dag_id: str
    run_id: str


@dataclass(frozen=True, slots=True)
class TryKey:
    """Identifies a task instance and, in a task loop, its iteration."""

    dag_id: str
    run_id: str
    task_id: str
    map_index: int
    region_id: str | None = None
    region_index: int | None = None


@dataclass(frozen=True, slots=True)
class Try:
    """One try of a task instance: when Airflow started and ended it (None: not yet)."""

    number: int
    started: datetime | None
    ended: datetime | None


@dataclass(frozen=True, slots=True)
class Instance:
    """A task instance: its tries, oldest first, and its name by `map_index_template` (None: it has none)."""

    tries: tuple[Try, ...] = ()
    label: str | None = None


async def run_has_ended(api: AirflowApi, run: RunKey) -> bool | None:
    """Return whether a DAG run has ended; None if there is no such run.

    :raises HTTPException: the viewer may not see the run.
    """
    found = await api.get(_path_of(run))
    return None if found is None else found["state"] in _ENDED


async def newest_runs(api: AirflowApi) -> dict[RunKey, bool]:
    """Return the newest runs in which an operator invoked an action, and whether each has ended.

    Operators push the XCom `invocation_id` right after they invoke. Invocations of the hook aren't recorded
    in Airflow. A mapped task is found by its first index.
    """
    pushed: dict[RunKey, str] = {}
    for window in WINDOWS:
        pushed = await _runs_with_invocations(api, window)
        if len(pushed) >= MAX_RUNS:
            break
    newest = sorted(pushed, key=lambda run: pushed[run], reverse=True)[:MAX_RUNS]
    ended = await _each(newest, partial(run_has_ended, api))
    return {run: has_ended for run, has_ended in zip(newest, ended, strict=True) if has_ended is not None}


async def _runs_with_invocations(api: AirflowApi, window: timedelta | None) -> dict[RunKey, str]:
    """Return, for each DAG run of a time window, when a task last pushed an invocation's id."""
    pushed: dict[RunKey, str] = {}
    since = {} if window is None else {"run_after_gte": (datetime.now(UTC) - window).isoformat()}
    for map_index in (-1, 0):
        for page in range(MAX_PAGES):
            found = await api.get(
                f"{_ALL_INSTANCES}/~/xcomEntries",
                xcom_key=INVOCATION_ID_KEY,
                map_index=map_index,
                # Airflow 3.1 and 3.2 ignore it, and sort by DAG.
                order_by="-run_after",
                limit=PAGE_SIZE,
                offset=page * PAGE_SIZE,
                **since,
            )
            entries = found["xcom_entries"] if found else []
            for entry in entries:
                run = RunKey(entry["dag_id"], entry["run_id"])
                pushed[run] = max(pushed.get(run, ""), entry["timestamp"])
            if len(entries) < PAGE_SIZE:
                break
    return pushed


async def named_connections(api: AirflowApi, runs: Collection[RunKey]) -> dict[RunKey, list[str]]:
    """Return the rendered `conn_id` of each run's tasks, for connections of any type.

    Airflow keeps rendered fields of a task's newest runs only (`[core] max_num_rendered_ti_fields_per_task`).
    Only the first instances of a mapped task are read.
    """
    found: dict[RunKey, list[str]] = {}
    for instance in await _instances(api, {"order_by": "map_index"}, runs):
        name = instance["rendered_fields"].get("conn_id")
        run = RunKey(instance["dag_id"], instance["dag_run_id"])
        if isinstance(name, str) and name and name not in found.setdefault(run, []):
            found[run].append(name)
    return {run: names for run, names in found.items() if names}


async def listed_connections(api: AirflowApi) -> dict[str, str]:
    """Return the type of each of this provider's connections that the viewer or the environment has.

    Secrets backends can't be listed; their connections are found when a task names them.
    """
    stored: dict[str, str] = {}
    for page in range(MAX_PAGES):
        try:
            found = await api.get("/connections", limit=PAGE_SIZE, offset=page * PAGE_SIZE)
        except HTTPException as error:
            if error.status_code != 403:
                raise
            break  # the viewer may not list connections, but still sees those that tasks name
        entries = found["connections"] if found else []
        stored |= {
            each["connection_id"]: each["conn_type"] for each in entries if each["conn_type"] in PLATFORMS
        }
        if len(entries) < PAGE_SIZE or len(stored) >= MAX_CONNECTIONS:
            break
    return _from_environment() | dict(list(stored.items())[:MAX_CONNECTIONS])


def _from_environment() -> dict[str, str]:
    found: dict[str, str] = {}
    for variable, value in os.environ.items():
        # A name with two underscores belongs to a team, which looks it up under another name.
        if (
            variable.startswith(_VARIABLE)
            and not variable.startswith(f"{_VARIABLE}_")
            and len(found) < MAX_CONNECTIONS
        ):
            conn_id = variable.removeprefix(_VARIABLE).lower()
            kind = _type_in(conn_id, value)
            if kind in PLATFORMS:
                found[conn_id] = kind
    return found


def _type_in(conn_id: str, value: str) -> str:
    """Return the type of a connection in a variable, a URI or JSON; empty if it is neither."""
    from airflow.secrets.environment_variables import EnvironmentVariablesBackend

    try:
        connection = EnvironmentVariablesBackend().deserialize_connection(conn_id, value)
    except Exception:  # its message may hold the secret; other providers' variables may be malformed
        return ""
    return str(connection.conn_type or "")


async def task_instances(api: AirflowApi, keys: Iterable[TryKey]) -> dict[TryKey, Instance]:
    """Return these task instances, without those beyond the page limit."""
    wanted = set(keys)
    runs = {RunKey(key.dag_id, key.run_id) for key in wanted}
    query = {"task_ids": sorted({key.task_id for key in wanted}), "order_by": "-start_date"}
    listed = await _instances(api, query, runs)
    found = {key: _instance(each) for each in listed if (key := _key_of(each)) in wanted}
    retried = [key for key, instance in found.items() if instance.tries[0].number > 1][:MAX_RETRIED]
    for key, history in zip(retried, await _each(retried, partial(_history_of, api)), strict=True):
        # The list has the newest try; the history may lag behind it.
        tries = {each.number: each for each in (*history, *found[key].tries)}
        found[key] = replace(found[key], tries=tuple(tries[number] for number in sorted(tries)))
    return found


async def _history_of(api: AirflowApi, key: TryKey) -> list[Try]:
    # A region and its index are enough to address a task instance.
    mapped = "" if key.map_index < 0 or key.region_id is not None else f"/{key.map_index}"
    path = f"{_path_of(RunKey(key.dag_id, key.run_id))}/taskInstances/{_part(key.task_id)}{mapped}/tries"
    region: dict[str, str | int] = {}
    if key.region_id is not None and key.region_index is not None:
        region = {"region_id": key.region_id, "region_index": key.region_index}
    found = await api.get(path, **region)
    tries = [_try_of(each) for each in found["task_instances"]] if found else []
    # A try that waits for its retry may be listed twice, once without its end.
    return sorted(tries, key=lambda each: each.ended is not None)


async def _instances(
    api: AirflowApi, query: Mapping[str, object], runs: Collection[RunKey]
) -> list[dict[str, Any]]:
    """Return up to MAX_PAGES pages of the task instances of some DAG runs that a query selects."""
    if not runs:
        return []
    ids = {
        "dag_ids": sorted({run.dag_id for run in runs}),
        "dag_run_ids": sorted({run.run_id for run in runs}),
    }
    listed: list[dict[str, Any]] = []
    for page in range(MAX_PAGES):
        body = {**ids, **query, "page_limit": PAGE_SIZE, "page_offset": page * PAGE_SIZE}
        found = await api.post(f"{_ALL_INSTANCES}/list", body)
        instances = found["task_instances"] if found else []
        listed += instances
        if len(instances) < PAGE_SIZE:
            break
    # Two DAGs may have runs of the same id, and only one of them may be wanted.
    return [each for each in listed if RunKey(each["dag_id"], each["dag_run_id"]) in runs]


async def _each(items: Iterable[Item], fetch: Callable[[Item], Awaitable[Result]]) -> list[Result]:
    """Fetch for each item, CONCURRENT_REQUESTS at a time; return the results in the items' order."""
    slots = asyncio.Semaphore(CONCURRENT_REQUESTS)

    async def one(item: Item) -> Result:
        async with slots:
            return await fetch(item)

    return await asyncio.gather(*(one(item) for item in items))


def _path_of(run: RunKey) -> str:
    return f"/dags/{_part(run.dag_id)}/dagRuns/{_part(run.run_id)}"


def _key_of(instance: Mapping[str, Any]) -> TryKey:
    # Since 3.4 mapped task instances have regions too, which do not tell them apart.
    region = (instance["region_id"], instance["region_index"]) if instance.get("in_loop") else (None, None)
    return TryKey(
        instance["dag_id"], instance["dag_run_id"], instance["task_id"], instance["map_index"], *region
    )


def _try_of(instance: Mapping[str, Any]) -> Try:
    started, ended = (
        None if instance[name] is None else datetime.fromisoformat(instance[name])
        for name in ("start_date", "end_date")
    )
    return Try(instance["try_number"], started, ended)


def _instance(listed: Mapping[str, Any]) -> Instance:
    label = listed["rendered_map_index"]
    return Instance((_try_of(listed),), None if label == str(listed["map_index"]) else label)
