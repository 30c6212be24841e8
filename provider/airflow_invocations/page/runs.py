"""What Airflow's database knows: DAG runs that invoked something, their tasks' tries, their connections."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from airflow.models.connection import Connection
from airflow.models.dagrun import DagRun
from airflow.models.renderedtifields import RenderedTaskInstanceFields
from airflow.models.taskinstance import TaskInstance
from airflow.models.taskinstancehistory import TaskInstanceHistory
from airflow.models.xcom import XComModel
from sqlalchemy import select, tuple_

from ..operators.results import INVOCATION_ID_KEY
from ..provider_info import get_provider_info

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

#: DAG runs that the list of all of Airflow shows invocations of: the newest that have any.
MAX_RUNS = 20

#: DAG runs among which it looks for those: the newest.
MAX_RUNS_SEARCHED = 2000

#: Connections that are asked about one DAG run: those that its tasks name come first.
MAX_CONNECTIONS = 20

_ENDED = frozenset({"success", "failed"})
_VARIABLE = "AIRFLOW_CONN_"

#: The name that people see of each connection type of ours.
PLATFORMS: Mapping[str, str] = {
    entry["connection-type"]: entry["hook-name"] for entry in get_provider_info()["connection-types"]
}


@dataclass(frozen=True, slots=True)
class RunKey:
    """Names a DAG run."""

    dag_id: str
    run_id: str


@dataclass(frozen=True, slots=True)
class TryKey:
    """Names a task instance; its tries have numbers from 1 on."""

    dag_id: str
    run_id: str
    task_id: str
    map_index: int


@dataclass(frozen=True, slots=True)
class Try:
    """One try of a task instance: when its work in Airflow began and ended (None: it hasn't)."""

    number: int
    began: datetime | None
    ended: datetime | None
    #: What the task's `map_index_template` says.
    label: str | None = None


def run_has_ended(run: RunKey, session: Session) -> bool | None:
    """Whether a DAG run has ended; None: there is no such run."""
    states = select(DagRun.state).where(DagRun.dag_id == run.dag_id, DagRun.run_id == run.run_id)
    found = session.execute(states).first()
    return None if found is None else found[0] in _ENDED


def newest_runs(dag_ids: Collection[str], session: Session) -> dict[RunKey, bool]:
    """The newest runs of these DAGs in which an operator has invoked something, and whether each has ended.

    Operators push the XCom `invocation_id` as soon as there is one; what only the hook has invoked isn't
    known to the database.
    """
    searched = (
        select(DagRun.id)
        .where(DagRun.dag_id.in_(dag_ids))
        .order_by(DagRun.id.desc())
        .limit(MAX_RUNS_SEARCHED)
        .subquery()
    )
    has_invoked = (
        select(XComModel.dag_run_id)
        .where(XComModel.dag_run_id == DagRun.id, XComModel.key == INVOCATION_ID_KEY)
        .exists()
    )
    newest = (
        select(DagRun.dag_id, DagRun.run_id, DagRun.state)
        .where(DagRun.id.in_(select(searched.c.id)), has_invoked)
        .order_by(DagRun.id.desc())
        .limit(MAX_RUNS)
    )
    return {RunKey(dag_id, run_id): state in _ENDED for dag_id, run_id, state in session.execute(newest)}


def named_connections(runs: Collection[RunKey], session: Session) -> dict[RunKey, list[str]]:
    """The ids that the runs' tasks had for their field `conn_id` when it was rendered, of whatever type.

    Airflow keeps rendered fields of a task's newest runs only (`[core] max_num_rendered_ti_fields_per_task`).
    """
    fields = RenderedTaskInstanceFields
    conn_id = fields.rendered_fields["conn_id"].as_string()
    named = (
        select(fields.dag_id, fields.run_id, conn_id)
        .where(tuple_(fields.dag_id, fields.run_id).in_([(run.dag_id, run.run_id) for run in runs]))
        .distinct()
        .limit(MAX_CONNECTIONS * len(runs))
    )
    found: dict[RunKey, list[str]] = {}
    for dag_id, run_id, name in session.execute(named) if runs else ():
        if name:
            found.setdefault(RunKey(dag_id, run_id), []).append(name)
    return found


def listed_connections(session: Session) -> dict[str, str]:
    """The type of each connection of ours that can be listed: in the database, or in the environment.

    Secrets backends can't be listed; their connections are found where a task names them.
    """
    stored = (
        select(Connection.conn_id, Connection.conn_type)
        .where(Connection.conn_type.in_(PLATFORMS))
        .order_by(Connection.conn_id)
        .limit(MAX_CONNECTIONS)
    )
    return _from_environment() | {row.conn_id: row.conn_type for row in session.execute(stored)}


def _from_environment() -> dict[str, str]:
    found: dict[str, str] = {}
    for variable, value in os.environ.items():
        # With two underscores it is a team's, which is looked up under another name.
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
    """The type of a connection as a variable has it, a URI or JSON; empty for what is neither."""
    from airflow.secrets.environment_variables import EnvironmentVariablesBackend

    try:
        connection = EnvironmentVariablesBackend().deserialize_connection(conn_id, value)
    except Exception:  # its text may hold the secret, and another provider's variable is not our matter
        return ""
    return str(connection.conn_type or "")


def tries_of(instances: Iterable[TryKey], session: Session) -> dict[TryKey, list[Try]]:
    """All tries of these task instances, oldest first: the present one, and those that Airflow has put by."""
    keys = {(key.dag_id, key.run_id, key.task_id, key.map_index) for key in instances}
    found: dict[TryKey, dict[int, Try]] = {}
    for table in (TaskInstanceHistory, TaskInstance):
        name = (table.dag_id, table.run_id, table.task_id, table.map_index)
        label = table.__table__.c.rendered_map_index
        rows = (
            select(*name, table.try_number, table.start_date, table.end_date, label)
            .where(tuple_(*name).in_(keys))
            .order_by(table.try_number)
        )
        for dag_id, run_id, task_id, index, *of_try in session.execute(rows) if keys else ():
            made = Try(*of_try)
            of_one = found.setdefault(TryKey(dag_id, run_id, task_id, index), {})
            # A try that waits for its retry may stand in both tables, and in one of them without its end.
            if made.number not in of_one or of_one[made.number].ended is None:
                of_one[made.number] = made
    return {key: [tries[number] for number in sorted(tries)] for key, tries in found.items()}
