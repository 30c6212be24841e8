"""The asset of a dataset that an action writes: its URI, and the outlet events that name the invocation."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import pytest
from airflow.sdk import DAG, Asset, AssetAlias
from airflow.sdk.execution_time.context import OutletEventAccessors

from airflow_invocations.assets import dataset_asset
from airflow_invocations.assets.dataset import dataset_of, sanitize_uri
from airflow_invocations.models import InvocationStatus
from airflow_invocations.operators import InvokeActionOperator
from airflow_invocations.operators._outlets import notify_outlets

from ...support.airflow_version import ProvidersManager
from ...support.events_platform import (
    NOON,
    record_of_end,
)

URL = "https://app.example/iv_1"
EXTRA = {"invocation_id": "iv_1", "url": URL, "action": "count", "digest": "d"}


def test_airflow_knows_the_scheme() -> None:
    manager = ProvidersManager()
    assert manager.asset_uri_handlers["invocation-dataset"] is sanitize_uri
    made = manager.asset_factories["invocation-dataset"](conn_id="fleet", dataset_id="ds_1")
    assert made == dataset_asset("fleet", "ds_1")


@pytest.mark.parametrize(
    ("uri", "clean"),
    [
        ("invocation-dataset://fleet/ds_1", "invocation-dataset://fleet/ds_1"),
        ("INVOCATION-DATASET://fleet/ds_1/", "invocation-dataset://fleet/ds_1"),
        ("invocation-dataset://Fleet/ds_1#part", "invocation-dataset://Fleet/ds_1"),
        ("invocation-dataset://fleet/a%20b%2Fc", "invocation-dataset://fleet/a%20b%2Fc"),
        ("invocation-dataset://fleet/a b", "invocation-dataset://fleet/a%20b"),
    ],
)
def test_equal_uris_become_the_same_text(uri: str, clean: str) -> None:
    asset = Asset(uri=uri)
    assert asset.uri == clean
    assert Asset(uri=asset.uri).uri == clean


@pytest.mark.parametrize(
    ("uri", "hint"),
    [
        ("invocation-dataset:///ds_1", "the connection is missing"),
        ("invocation-dataset://fleet", "the dataset is missing"),
        ("invocation-dataset://fleet/", "the dataset is missing"),
        ("invocation-dataset://fleet/ds_1/file", "one path segment"),
        ("invocation-dataset://fleet/ds_1?x=1", "a query is not allowed"),
    ],
)
def test_a_uri_that_cannot_be_right_is_rejected_when_the_dag_is_parsed(uri: str, hint: str) -> None:
    with pytest.raises(ValueError, match="allowed: invocation-dataset://CONN_ID/DATASET_ID") as rejected:
        Asset(uri=uri)
    assert hint in str(rejected.value)


def test_ids_survive_the_uri_whatever_is_in_them() -> None:
    asset = dataset_asset("my fleet", "a/b c", name="readings", extra={"team": "x"})
    assert (asset.name, asset.extra) == ("readings", {"team": "x"})
    assert dataset_of(asset.uri) == ("my fleet", "a/b c")
    assert dataset_of("s3://bucket/key") is None
    assert dataset_of("invocation-dataset://fleet") is None
    assert sanitize_uri(urlsplit(asset.uri)).geturl() == asset.uri


@pytest.mark.parametrize("ids", [("", "ds_1"), ("fleet", "")])
def test_an_empty_id_is_rejected(ids: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match="both must be non-empty"):
        dataset_asset(*ids)


def ended(**changes: Any) -> Any:
    destination = {"destination_type": "Dataset", "destination_id": "ds_1"}
    return record_of_end("iv_1", InvocationStatus.Completed, NOON, upload_destination=destination, **changes)


def test_the_outlet_of_the_dataset_names_the_invocation_and_no_other_does() -> None:
    mine = dataset_asset("fleet", "ds_1", name="readings")
    others = [dataset_asset("fleet", "ds_2"), dataset_asset("elsewhere", "ds_1"), Asset("plain")]
    context: Any = {"outlet_events": OutletEventAccessors()}
    context["outlet_events"][mine].extra["rows"] = 3
    notify_outlets(context, [mine, *others], "fleet", ended(), URL)
    assert context["outlet_events"][mine].extra == {"rows": 3, **EXTRA}
    assert all(context["outlet_events"][other].extra == {} for other in others)


def test_an_alias_becomes_the_dataset_that_was_written() -> None:
    alias = AssetAlias("whatever it writes")
    context: Any = {"outlet_events": OutletEventAccessors()}
    notify_outlets(context, [alias], "fleet", ended(), URL)
    (event,) = context["outlet_events"][alias].asset_alias_events
    assert event.dest_asset_key.uri == "invocation-dataset://fleet/ds_1"
    assert event.extra == EXTRA


def test_an_invocation_that_writes_nowhere_tells_nobody() -> None:
    context: Any = {}
    record = record_of_end("iv_1", InvocationStatus.Completed, NOON)
    notify_outlets(context, [AssetAlias("a"), dataset_asset("fleet", "ds_1")], "fleet", record, URL)


@pytest.mark.parametrize(
    ("destination", "hint"),
    [
        ("ds_2", "allowed: invocation-dataset://fleet/ds_2"),
        (None, "allowed: none without 'upload_destination'"),
    ],
)
def test_an_outlet_that_the_action_does_not_write_is_rejected_when_the_dag_is_parsed(
    destination: str | None, hint: str
) -> None:
    with DAG("d"), pytest.raises(ValueError, match="task 'ask': argument 'outlets'") as rejected:
        InvokeActionOperator(
            task_id="ask",
            action="a",
            conn_id="fleet",
            upload_destination=destination,
            outlets=[dataset_asset("fleet", "ds_1")],
        )
    assert hint in str(rejected.value)


@pytest.mark.parametrize("destination", ["ds_1", {"destination_id": "ds_1"}, "{{ params.dataset }}"])
def test_an_outlet_that_it_writes_or_may_write_is_taken(destination: Any) -> None:
    with DAG("d"):
        InvokeActionOperator(
            task_id="ask",
            action="a",
            conn_id="fleet",
            upload_destination=destination,
            outlets=[dataset_asset("fleet", "ds_1"), Asset("plain"), AssetAlias("alias")],
        )
