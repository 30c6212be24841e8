"""What the provider registry is told: everything that is public, and nothing that isn't there."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import yaml

from airflow_invocations.get_provider_info import get_provider_info

FILE = Path(__file__).parents[2] / ".airflow-registry.yaml"


@pytest.fixture(scope="module")
def told() -> Any:
    return yaml.safe_load(FILE.read_text())


@pytest.mark.parametrize("section", ["operators", "sensors", "triggers", "hooks", "other"])
def test_registered_classes_exist_and_have_docstrings(told: Any, section: str) -> None:
    for entry in told[section]:
        module, _, name = entry["module"].rpartition(".")
        assert getattr(importlib.import_module(module), name).__doc__
        assert entry["description"]


@pytest.mark.parametrize("section", ["operators", "sensors", "triggers", "hooks"])
def test_nothing_public_is_left_out(told: Any, section: str) -> None:
    package = f"airflow_invocations.{section}"
    public = {f"{package}.{name}" for name in importlib.import_module(package).__all__}
    assert {entry["module"] for entry in told[section]} == public


def test_it_says_what_airflow_is_told(told: Any) -> None:
    info = get_provider_info()
    assert (told["package-name"], told["display-name"]) == (info["package-name"], info["name"])
    named = ("connection-type", "hook-class-name")
    assert told["connection-types"] == [
        {name: one[name] for name in named} for one in info["connection-types"]
    ]
    decorators = [(one["name"], one["module"]) for one in told["task-decorators"]]
    assert decorators == [(one["name"], one["class-name"]) for one in info["task-decorators"]]
