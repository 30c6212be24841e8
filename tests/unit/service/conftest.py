"""A repository of its own for each test, and the shortest words for what is put into it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_invocations.model import (
    ActionRecord,
    ContainerParameters,
    CreateActionRequest,
    InvocationRecord,
    InvocationRequest,
    InvocationSource,
)
from airflow_invocations.service.store import LOCAL_ORG, LOCAL_USER, Store

ORG, USER = LOCAL_ORG, LOCAL_USER
RUNNER, OTHER_RUNNER = "runner-1", "runner-2"


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "service.db"


@pytest.fixture
def store(database: Path) -> Iterator[Store]:
    store = Store(database)
    yield store
    store.close()


def request(**fields: Any) -> InvocationRequest:
    """What a person asks for, in so far as nothing else is said."""
    return InvocationRequest(**{"invocation_source": InvocationSource.Manual, **fields})


def new_action(name: str = "act", **fields: Any) -> CreateActionRequest:
    """An action that runs a process."""
    container = ContainerParameters(command=["true"])
    return CreateActionRequest(**{"name": name, "container_parameters": container, **fields})


def create(store: Store, name: str = "act", **fields: Any) -> ActionRecord:
    return store.create_action(new_action(name, **fields), ORG, USER)


def invoke(store: Store, name: str = "act", **fields: Any) -> InvocationRecord:
    return store.invoke(name, request(**fields), ORG, USER)
