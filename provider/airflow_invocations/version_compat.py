"""What differs between the versions of Airflow: where a name is, and what is done where one lacks something.

No other module asks which Airflow this is. What an older one lacks is said once in each process that misses
it; docs/airflow-versions.md has the same as a table.
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

#: Whether a trigger hears that its task was killed. Before 3.3 it is only ended, as it is when the triggerer
#: stops, and has to ask for its task's state.
TELLS_OF_KILLS = VERSION >= (3, 3)

#: Seconds that a deferral lasts at least. Up to about 6 s after a task has deferred, the executor may report
#: that the task's process ended. Before 3.4 the scheduler takes that for a crash if the task is queued again
#: by then, and fails the task (https://github.com/apache/airflow/issues/71580).
SHORTEST_DEFERRAL = 0.0 if VERSION >= (3, 4) else 8.0

#: Where names are that have moved: in the newest Airflow, then in older ones. Each is imported when it is
#: asked for, as a DAG file needs few of them.
_PLACES = {
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

if not TYPE_CHECKING:  # a type checker takes the names from where the newest Airflow has them

    def __getattr__(name: str) -> object:
        for place in _PLACES.get(name, ()):
            try:
                found = getattr(importlib.import_module(place), name)
            except (ImportError, AttributeError):
                continue
            globals()[name] = found
            return found
        raise AttributeError(f"module {__name__!r} has no {name!r} with Airflow {__version__}")


@cache
def _say_once(lack: str) -> None:
    _log.warning("Airflow %s %s", __version__, lack)


def starts_tasks_in_triggerer() -> bool:
    """Whether a task with `start_from_trigger` needs no worker (since 3.3)."""
    if VERSION >= (3, 3):
        return True
    _say_once(
        "starts no task in the triggerer (3.3 does): where start_from_trigger is asked for, a worker begins "
        "the task and the triggerer waits, as with deferrable=True"
    )
    return False


def asset_states_of(trigger: object) -> AssetStateStoreAccessors | None:
    """The states of the assets that an event trigger watches for (since 3.3); None: there are none."""
    store: AssetStateStoreAccessors | None = getattr(trigger, "asset_state_store", None)
    if store is None:
        _say_asset_states_are_missing()
    return store


def asset_state(name: str) -> AssetStateStoreAccessor | None:
    """The state of an asset, for a task (since 3.3); None: this Airflow keeps none."""
    if VERSION < (3, 3):
        _say_asset_states_are_missing()
        return None
    from airflow.sdk.execution_time.context import AssetStateStoreAccessor

    return AssetStateStoreAccessor(name=name)


def _say_asset_states_are_missing() -> None:
    _say_once(
        "keeps no state for assets (3.3 does): after a restart InvocationEventTrigger begins with what ends "
        "from then on; it doesn't wait for a DAG to take a batch over; and it passes over what any DAG run "
        "has invoked that assets have started, unless include_own_runs is set"
    )


async def read_variable(key: str) -> str | None:
    """Return an Airflow variable from within a trigger; None where there is none."""
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
    """Whether tasks take a `retry_policy` (since 3.3)."""
    if VERSION >= (3, 3):
        return True
    _say_once(
        "has no retry policies (3.3 has): what can't be mended isn't retried, all else is as `retries` and "
        "`retry_delay` say"
    )
    return False


def has_reschedules() -> bool:
    """Return whether a retry policy can have a task run again without using up a retry (since 3.4)."""
    return VERSION >= (3, 4)


def known_arguments(arguments: dict[str, Any]) -> dict[str, Any]:
    """A task's arguments without those that this Airflow's BaseOperator doesn't take yet: `retry_policy`."""
    if "retry_policy" not in arguments or has_retry_policies():
        return arguments
    return {name: value for name, value in arguments.items() if name != "retry_policy"}


async def read_connection(conn_id: str) -> tuple[Connection, dict[str, Any]]:
    """A connection and its extra, read without holding up the loop.

    Before 3.3.2 Airflow masks what it has read by a synchronous call, which a loop can't make, and before 3.2
    only a thread can ask from within a worker: so there all of it is done in a thread.

    Raises:
        AirflowNotFoundException: there is no such connection.
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
    """Whether the OpenLineage provider is installed."""
    try:
        return find_spec(_LINEAGE) is not None
    except ModuleNotFoundError:
        return False
