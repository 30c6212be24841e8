"""Add the invocation that wrote a dataset to the asset events of a task's outlets."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from airflow.sdk import Asset, AssetAlias, Context

from ..assets.dataset import dataset_asset, dataset_of, dataset_uri
from ..models import InvocationRecord
from ..tasks.validation import destination_of, is_templated
from ..tasks.xcom import storable, storable_name, storable_token


def check_outlets(place: str, outlets: Iterable[object], conn_id: str, destination: object) -> None:
    """Check, when the DAG is parsed, that the action writes into the datasets of the outlets.

    :raises ValueError: names the task, the outlet, and what is allowed.
    """
    if is_templated(conn_id) or is_templated(destination):
        return
    upload = destination_of(place, destination)
    dataset_id = upload.destination_id if upload else None
    for outlet in outlets:
        named = dataset_of(outlet.uri) if isinstance(outlet, Asset) else None
        if named is not None and named != (conn_id, dataset_id):
            allowed = dataset_uri(conn_id, dataset_id) if dataset_id else "none, without 'upload_destination'"
            raise ValueError(
                f"{place}: argument 'outlets': {outlet.uri!r} isn't what the action writes into; "  # type: ignore[attr-defined]
                f"allowed: {allowed}"
            )


def notify_outlets(
    context: Context, outlets: Iterable[object], conn_id: str, record: InvocationRecord, url: str
) -> None:
    """Add an invocation to the event of the outlet with its dataset's URI, and to every alias.

    An alias stands for a dataset that is known only when the task runs.
    """
    dataset_id = record.upload_destination.destination_id if record.upload_destination else None
    if not dataset_id:
        return
    asset = dataset_asset(conn_id, dataset_id)
    extra: dict[str, Any] = storable(
        {
            "invocation_id": record.invocation_id,
            "url": storable_token(url) or "",
            "action": storable_name(record.provenance.action.name),
            "digest": storable_name(record.provenance.action.digest),
        }
    )
    for outlet in outlets:
        if isinstance(outlet, AssetAlias):
            context["outlet_events"][outlet].add(asset, extra=extra)
        elif isinstance(outlet, Asset) and outlet.uri == asset.uri:
            context["outlet_events"][outlet].extra.update(extra)
