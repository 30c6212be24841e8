"""The datasets that a task reads and writes: as assets of its outlets, and as lineage."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from airflow.sdk import Asset, AssetAlias, Context

from ..assets.dataset import dataset_asset, dataset_of, dataset_uri
from ..models import InvocationRecord
from ..tasks.validation import destination_of, is_templated, task_label
from ..tasks.xcom import storable, storable_name, storable_token

if TYPE_CHECKING:
    from airflow.providers.openlineage.extractors import OperatorLineage
    from airflow.sdk import BaseOperator

    from ..hooks import InvocationHook


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
            allowed = dataset_uri(conn_id, dataset_id) if dataset_id else "none without 'upload_destination'"
            raise ValueError(
                f"{place}: argument 'outlets': {outlet.uri!r} is not the dataset that the action writes to; "  # type: ignore[attr-defined]
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


def lineage_of_datasets(
    operator: BaseOperator,
    data_source_id: object,
    upload_destination: object,
    record: InvocationRecord | None,
    hook: InvocationHook,
) -> OperatorLineage[Any, Any]:
    """Return the lineage of a task that reads a dataset, writes into another, or both.

    :param data_source_id: the dataset that the action has read; None: none.
    :param upload_destination: where it has written; None: nowhere.
    :param record: the invocation at its end; None if it is not known.
    """
    from ..tasks.lineage import lineage_of

    destination = destination_of(task_label(operator), upload_destination)
    written = [destination.destination_id] if destination and destination.destination_id else []
    read = [str(data_source_id)] if data_source_id else []
    inputs, outputs = ([dataset_uri(hook.conn_id, one) for one in ids] for ids in (read, written))
    return lineage_of(inputs, outputs, record, hook.get_conn().where)
