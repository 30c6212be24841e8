"""The asset URI of a dataset that actions write into: invocation-dataset://CONN_ID/DATASET_ID.

The connection's id stands for the platform: a DAG that runs against the local server today and the platform
tomorrow keeps its assets. Airflow imports this module when it reads any asset's URI, so it imports nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlsplit

if TYPE_CHECKING:
    from urllib.parse import SplitResult

    from airflow.providers.common.compat.openlineage.facet import Dataset
    from airflow.sdk import Asset

SCHEME = "invocation-dataset"


def sanitize_uri(uri: SplitResult) -> SplitResult:
    """A URI of this scheme in the one form that it is compared in.

    Raises:
        ValueError: what is wrong, what is allowed.
    """
    wrong = None
    if not uri.netloc:
        wrong = "it names no connection"
    elif uri.query:
        wrong = "it has a query"
    elif not (dataset_id := unquote(uri.path.removeprefix("/"))):
        wrong = "it names no dataset"
    elif "/" in uri.path[1:]:
        wrong = "a dataset's id is one segment of a path"
    if wrong:
        raise ValueError(f"asset URI {uri.geturl()!r}: {wrong}; allowed: {SCHEME}://CONN_ID/DATASET_ID")
    return uri._replace(path=f"/{quote(dataset_id, safe='')}")


def create_asset(
    *, conn_id: str, dataset_id: str, name: str | None = None, extra: dict[str, object] | None = None
) -> Asset:
    """The asset of a dataset; see `dataset_asset`."""
    return dataset_asset(conn_id, dataset_id, name=name, extra=extra)


def dataset_asset(
    conn_id: str, dataset_id: str, *, name: str | None = None, extra: dict[str, object] | None = None
) -> Asset:
    """The asset of a dataset behind a connection, for `outlets` and `schedule`.

    Raises:
        ValueError: an id is empty.
    """
    from airflow.sdk import Asset

    uri = dataset_uri(conn_id, dataset_id)
    return Asset(name=name or uri, uri=uri, extra=extra)  # type: ignore[arg-type]


def dataset_uri(conn_id: str, dataset_id: str) -> str:
    """The URI of a dataset behind a connection. Raises ValueError: an id is empty."""
    if not conn_id or not dataset_id:
        raise ValueError(
            f"a dataset's asset needs a connection and a dataset, not {conn_id!r}, {dataset_id!r}"
        )
    return f"{SCHEME}://{quote(conn_id, safe='')}/{quote(dataset_id, safe='')}"


def convert_to_openlineage(asset: Asset, lineage_context: object) -> Dataset:
    """The asset's dataset as OpenLineage names it: namespace invocation-dataset://CONN_ID, name its id."""
    from airflow.providers.common.compat.openlineage.facet import Dataset

    namespace, _, name = asset.uri.rpartition("/")
    return Dataset(namespace=namespace, name=name)


def dataset_of(uri: str) -> tuple[str, str] | None:
    """The ids of connection and dataset that a URI names; None: it is of another scheme, or malformed."""
    parts = urlsplit(uri)
    if parts.scheme != SCHEME:
        return None
    try:
        clean = sanitize_uri(parts)
    except ValueError:
        return None
    return unquote(clean.netloc), unquote(clean.path[1:])
