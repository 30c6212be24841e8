"""Which Airflow the tests run in: what only newer ones have is skipped in others, and the reason says so."""

from __future__ import annotations

import pytest

from airflow_invocations.version_compat import VERSION

if VERSION >= (3, 2):
    from airflow.dag_processing.dagbag import DagBag, sync_bag_to_db
    from airflow.sdk.exceptions import (
        AirflowException,
        AirflowFailException,
        AirflowRescheduleException,
        AirflowSensorTimeout,
        AirflowSkipException,
        TaskDeferred,
    )
    from airflow.sdk.providers_manager_runtime import ProvidersManagerTaskRuntime as ProvidersManager
    from airflow.serialization.serialized_objects import DagSerialization
else:
    from airflow.exceptions import (
        AirflowException,
        AirflowFailException,
        AirflowRescheduleException,
        AirflowSensorTimeout,
        AirflowSkipException,
        TaskDeferred,
    )
    from airflow.models.dagbag import DagBag, sync_bag_to_db
    from airflow.providers_manager import ProvidersManager
    from airflow.serialization.serialized_objects import SerializedDAG as DagSerialization

__all__ = [
    "AirflowException",
    "AirflowFailException",
    "AirflowRescheduleException",
    "AirflowSensorTimeout",
    "AirflowSkipException",
    "DagBag",
    "DagSerialization",
    "ProvidersManager",
    "TaskDeferred",
    "since",
    "sync_bag_to_db",
]


def since(version: str, what: str) -> pytest.MarkDecorator:
    """A mark for tests of what Airflow has since a version, as `since("3.3", "retry policies")`."""
    is_there = tuple(int(part) for part in version.split(".")) <= VERSION
    return pytest.mark.skipif(not is_there, reason=f"Airflow has {what} since {version}")
