"""Differences between versions of Airflow: where names are, and substitutes for features that are missing.

No other module checks Airflow's version. A missing feature is logged once in each process that needs it;
docs/airflow-versions.md lists the same in a table.
"""

from __future__ import annotations

import importlib
import logging
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from airflow import __version__

if TYPE_CHECKING:
    from airflow.sdk import Connection
    from airflow.sdk.bases.decorator import determine_kwargs as determine_kwargs
    from airflow.sdk.configuration import conf as conf
    from airflow.sdk.exceptions import AirflowException as AirflowException
    from airflow.sdk.exceptions import AirflowFailException as AirflowFailException
    from airflow.sdk.exceptions import AirflowNotFoundException as AirflowNotFoundException
    from airflow.sdk.exceptions import AirflowSkipException as AirflowSkipException
    from airflow.sdk.exceptions import AirflowTaskTimeout as AirflowTaskTimeout
    from airflow.sdk.execution_time.context import AssetStateStoreAccessor, AssetStateStoreAccessors
    from airflow.sdk.plugins_manager import AirflowPlugin as AirflowPlugin

#: Major and minor.
VERSION = tuple(int(part) for part in __version__.split(".")[:2])

#: Whether Airflow notifies a trigger that its task was killed. Before 3.3 the trigger is only stopped, as
#: when the triggerer stops, and has to read its task's state.
TELLS_OF_KILLS = VERSION >= (3, 3)

#: The shortest deferral, in seconds. Up to about 6 s after a task has deferred, the executor may report that
#: the task's process ended. Before 3.4 the scheduler takes that for a crash if the task is queued again by
#: then, and fails the task (https://github.com/apache/airflow/issues/71580).
SHORTEST_DEFERRAL = 0.0 if VERSION >= (3, 4) else 8.0

#: Modules of names that have moved: in the newest Airflow, then in older ones. Each name is imported on first
#: use, because a DAG file needs few of them.
_MODULES = {
    "AirflowException": ("airflow.sdk.exceptions", "airflow.exceptions"),
    "AirflowFailException": ("airflow.sdk.exceptions", "airflow.exceptions"),
    "AirflowNotFoundException": ("airflow.sdk.exceptions", "airflow.exceptions"),
    "AirflowPlugin": ("airflow.sdk.plugins_manager", "airflow.plugins_manager"),
    "AirflowSkipException": ("airflow.sdk.exceptions", "airflow.exceptions"),
    "AirflowTaskTimeout": ("airflow.sdk.exceptions", "airflow.exceptions"),
    "conf": ("airflow.sdk.configuration", "airflow.configuration"),
    "determine_kwargs": ("airflow.sdk.bases.decorator", "airflow.utils.operator_helpers"),
}

_LINEAGE = "airflow.providers.openlineage"

_log = logging.getLogger(__name__)

if not TYPE_CHECKING:  # type checkers read the names from the newest Airflow

    def __getattr__(name: str) -> object:
        for module in _MODULES.get(name, ()):
            try:
                found = getattr(importlib.import_module(module), name)
            except (ImportError, AttributeError):
                continue
            globals()[name] = found
            return found
        raise AttributeError(f"module {__name__!r} has no {name!r} with Airflow {__version__}")


@cache
def _warn_once(lack: str) -> None:
    _log.warning("Airflow %s %s", __version__, lack)


def starts_tasks_in_triggerer() -> bool:
    """Return whether a task with `start_from_trigger` needs no worker (since 3.3)."""
    if VERSION >= (3, 3):
        return True
    _warn_once(
        "can't start tasks in the triggerer (3.3 can): with start_from_trigger, a worker starts the task and "
        "defers it, as with deferrable=True"
    )
    return False


def ends_tasks_in_triggerer() -> bool:
    """Return whether a trigger can store XComs and end its task (since 3.3)."""
    if VERSION >= (3, 3):
        return True
    _warn_once(
        "can't end tasks in the triggerer (3.3 can): with end_from_trigger, a worker ends the task, as with "
        "deferrable=True"
    )
    return False


def asset_states_of(trigger: object) -> AssetStateStoreAccessors | None:
    """Return the states of an event trigger's assets (since 3.3); None if there are none."""
    store: AssetStateStoreAccessors | None = getattr(trigger, "asset_state_store", None)
    if store is None:
        _warn_of_missing_asset_states()
    return store


def asset_state(name: str) -> AssetStateStoreAccessor | None:
    """Return the state of an asset, for a task; None before 3.3, which has none."""
    if VERSION < (3, 3):
        _warn_of_missing_asset_states()
        return None
    from airflow.sdk.execution_time.context import AssetStateStoreAccessor

    return AssetStateStoreAccessor(name=name)


def _warn_of_missing_asset_states() -> None:
    _warn_once(
        "keeps no state for assets (3.3 does): after a restart, InvocationEventTrigger starts with "
        "invocations that end from then on. It doesn't wait for acknowledgements. It skips invocations of "
        "every DAG run that assets have started, unless include_own_runs is set"
    )


async def read_variable(key: str) -> str | None:
    """Return an Airflow variable from within a trigger; None if it doesn't exist."""
    from airflow.sdk import Variable

    value: str | None
    if hasattr(Variable, "aget"):
        value = await Variable.aget(key, default=None)
    else:
        from asgiref.sync import sync_to_async

        value = await sync_to_async(Variable.get)(key, default=None)
    return value


async def write_variable(key: str, value: str, description: str) -> None:
    """Store an Airflow variable from within a trigger."""
    from airflow.sdk import Variable

    if hasattr(Variable, "aset"):
        await Variable.aset(key, value, description)
    else:
        from asgiref.sync import sync_to_async

        await sync_to_async(Variable.set)(key, value, description)


def has_trigger_queues() -> bool:
    """Return whether an event trigger can be assigned to a queue of triggerers (since 3.4)."""
    return VERSION >= (3, 4)


def has_retry_policies() -> bool:
    """Return whether tasks accept a `retry_policy` (since 3.3)."""
    if VERSION >= (3, 3):
        return True
    _warn_once(
        "has no retry policies (3.3 has): permanent failures aren't retried; `retries` and `retry_delay` "
        "apply to all others"
    )
    return False


def has_reschedules() -> bool:
    """Return whether a retry policy can have a task run again without using up a retry (since 3.4)."""
    return VERSION >= (3, 4)


def known_arguments(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return a task's arguments without those that this Airflow's BaseOperator lacks: `retry_policy`."""
    if "retry_policy" not in arguments or has_retry_policies():
        return arguments
    return {name: value for name, value in arguments.items() if name != "retry_policy"}


async def read_connection(conn_id: str) -> tuple[Connection, dict[str, Any]]:
    """Return a connection and its extra without blocking the event loop.

    Before 3.3.2, Airflow masks a connection's secrets in a synchronous call, which fails in an event loop.
    Before 3.2, only a thread can read a connection in a worker. So these versions read it in a thread.

    :raises AirflowNotFoundException: the connection doesn't exist.
    """
    from airflow.sdk import BaseHook, Connection

    if hasattr(Connection, "aextra_dejson"):
        connection = await BaseHook.aget_connection(conn_id)
        return connection, await connection.aextra_dejson()
    from asgiref.sync import sync_to_async

    def read() -> tuple[Connection, dict[str, Any]]:
        connection = BaseHook.get_connection(conn_id)
        return connection, connection.extra_dejson

    return await sync_to_async(read)()


def has_openlineage() -> bool:
    """Return whether the OpenLineage provider is installed."""
    try:
        return find_spec(_LINEAGE) is not None
    except ModuleNotFoundError:
        return False
