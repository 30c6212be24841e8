"""A repository of its own for each test, and the shortest words for what is put into it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_invocations.models import (
    ActionParameter,
    ActionRecord,
    ContainerParameters,
    CreateActionRequest,
    InvocationRecord,
    InvocationRequest,
    InvocationSource,
)
from airflow_invocations.runtime import PreparedEnvironment
from airflow_invocations.server.catalog import LocalCatalog
from airflow_invocations.server.datasets import DatasetFiles
from airflow_invocations.server.db import LOCAL_ORG, LOCAL_USER, Store
from airflow_invocations.server.execution.logs import LogFiles
from airflow_invocations.server.execution.overrides import accept_overrides
from airflow_invocations.server.execution.runner import Runner
from airflow_invocations.server.execution.workspace import Workspace
from airflow_invocations.server.secrets import Secrets
from airflow_invocations.server.settings import ServerSettings
from airflow_invocations.server.tokens import Tokens

ORG, USER = LOCAL_ORG, LOCAL_USER
RUNNER, OTHER_RUNNER = "runner-1", "runner-2"


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "server.db"


@pytest.fixture
def store(database: Path) -> Iterator[Store]:
    store = Store(database)
    yield store
    store.close()


def runner_of(store: Store, logs: LogFiles, settings: ServerSettings) -> Runner:
    """A runner with all that it needs, in the folders of `settings`."""
    datasets = DatasetFiles(store, settings.datasets)
    secrets = Secrets(store, settings.secrets_key, environment={})
    return Runner(store, datasets, secrets, logs, Tokens("token", store), settings)


def prepare(workspace: Workspace, record: InvocationRecord, store: Store) -> PreparedEnvironment:
    """Make a workspace as a runner does."""
    datasets = DatasetFiles(store, workspace.folder.parent / "datasets")
    secrets = Secrets(store, workspace.folder.parent / "secrets.key", environment={})
    catalog = LocalCatalog(datasets, record.org_id, lambda: None, print)
    return workspace.prepare(record, catalog, secrets.reader(record.org_id), lambda: True, print)


def request(**fields: Any) -> InvocationRequest:
    """What a person asks for, in so far as nothing else is said."""
    return InvocationRequest(**{"invocation_source": InvocationSource.Manual, **fields})


def new_action(name: str = "act", **fields: Any) -> CreateActionRequest:
    """An action that runs a process."""
    container = ContainerParameters(command=["true"])
    return CreateActionRequest(**{"name": name, "container_parameters": container, **fields})


def declared(*names: str) -> list[ActionParameter]:
    """Parameters of any type, as an action declares them."""
    return [ActionParameter(name=name) for name in names]


def create(store: Store, name: str = "act", **fields: Any) -> ActionRecord:
    return store.actions.create(new_action(name, **fields), ORG, USER)


def invoke(store: Store, name: str = "act", **fields: Any) -> InvocationRecord:
    return store.invocations.create(name, request(**fields), ORG, USER, check_overrides=accept_overrides)
