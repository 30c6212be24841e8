"""Lineage where OpenLineage isn't installed or not switched on: nothing is imported, nothing is told."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from airflow.sdk import Asset

from airflow_invocations import version_compat
from airflow_invocations.assets import dataset_asset
from airflow_invocations.assets.dataset import convert_to_openlineage
from airflow_invocations.models import (
    ContainerParameters,
    DagRunProvenance,
    InvocationRequest,
    InvocationSource,
)
from airflow_invocations.tasks import lineage
from airflow_invocations.tasks.provenance import provenance_of

from ...support.task_context import (
    PROVENANCE,
    context,
)


def without_the_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("airflow.providers.openlineage")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(version_compat, "find_spec", lambda name: None)


def test_without_the_provider_nothing_of_it_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    without_the_provider(monkeypatch)
    provenance = provenance_of(context())  # type: ignore[arg-type]
    assert (provenance.lineage_parent, provenance.lineage_root) == (None, None)
    assert not any(name.startswith("OPENLINEAGE") for name in provenance.environment())
    assert not any(name.startswith("airflow.providers.openlineage") for name in sys.modules)


def test_a_dag_file_imports_nothing_of_it() -> None:
    code = (
        "import sys; import airflow.sdk; before = set(sys.modules); import airflow_invocations.operators, "
        "airflow_invocations.triggers, airflow_invocations.assets; "
        "print([name for name in set(sys.modules) - before if 'openlineage' in name])"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip().splitlines()[-1] == "[]"


def test_switched_off_it_tells_nothing() -> None:
    assert lineage.parent_and_root_of(object()) is None


def test_no_task_fails_for_the_sake_of_its_lineage(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lineage, "is_switched_on", lambda: True)
    assert lineage.parent_and_root_of(object()) is None
    assert "Could not read the lineage run" in caplog.text


def told(**variables: str) -> InvocationRequest:
    provenance = DagRunProvenance(
        **{**PROVENANCE.model_dump(), "lineage_parent": "here/fleet.ask/1", "lineage_root": "here/fleet/2"}
    )
    return InvocationRequest(
        invocation_source=InvocationSource.Trigger,
        container_parameter_overrides=ContainerParameters(env_vars={**provenance.environment(), **variables}),
    )


def test_the_parents_travel_in_the_variables_that_openlineage_reads() -> None:
    overrides: Any = told().container_parameter_overrides
    assert overrides.env_vars["OPENLINEAGE_PARENT_ID"] == "here/fleet.ask/1"
    assert overrides.env_vars["OPENLINEAGE_ROOT_PARENT_ID"] == "here/fleet/2"


def test_the_parents_are_nothing_that_somebody_has_asked_for() -> None:
    assert told().own_container_parameters is None
    assert told(MINE="1").own_container_parameters == ContainerParameters(env_vars={"MINE": "1"})


def test_an_assets_dataset_has_the_name_that_the_operator_gives_it() -> None:
    asset = dataset_asset("fleet", "a/b")
    converted = convert_to_openlineage(Asset(uri=asset.uri), None)
    assert (converted.namespace, converted.name) == ("invocation-dataset://fleet", "a%2Fb")
    (told,) = lineage.lineage_of(["invocation-dataset://fleet/a%2Fb"], [], None, "nowhere").inputs
    assert (told.namespace, told.name) == (converted.namespace, converted.name)
