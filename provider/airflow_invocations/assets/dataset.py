"""The asset URI of a dataset that actions write to: invocation-dataset://CONN_ID/DATASET_ID.

The connection's id stands for the platform, so a DAG keeps its assets when its connection moves from the
local server to the platform. Airflow imports this module when it reads any asset's URI, so it imports
nothing itself.
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
    """Return the canonical form of a URI of this scheme, in which URIs are compared.

    :raises ValueError: the message says what is wrong and what is allowed.
    """
    wrong = None
    if not uri.netloc:
        wrong = "the connection is missing"
    elif uri.query:
        wrong = "a query is not allowed"
    elif not (dataset_id := unquote(uri.path.removeprefix("/"))):
        wrong = "the dataset is missing"
    elif "/" in uri.path[1:]:
        wrong = "a dataset's id must be one path segment"
    if wrong:
        raise ValueError(f"asset URI {uri.geturl()!r}: {wrong}; allowed: {SCHEME}://CONN_ID/DATASET_ID")
    return uri._replace(path=f"/{quote(dataset_id, safe='')}")


def create_asset(
    *, conn_id: str, dataset_id: str, name: str | None = None, extra: dict[str, object] | None = None
) -> Asset:
    """Return the asset of a dataset; see `dataset_asset`."""
    return dataset_asset(conn_id, dataset_id, name=name, extra=extra)


def dataset_asset(
    conn_id: str, dataset_id: str, *, name: str | None = None, extra: dict[str, object] | None = None
) -> Asset:
    """Return the asset of a dataset on a connection's platform, for `outlets` and `schedule`.

    :param name: the asset's name; None for its URI.
    :param extra: the asset's extra.
    :raises ValueError: an id is empty.
    """
    from airflow.sdk import Asset

    uri = dataset_uri(conn_id, dataset_id)
    return Asset(name=name or uri, uri=uri, extra=extra)  # type: ignore[arg-type]


def dataset_uri(conn_id: str, dataset_id: str) -> str:
    """Return the URI of a dataset on a connection's platform. Raises ValueError if an id is empty."""
    if not conn_id or not dataset_id:
        raise ValueError(
            f"dataset_asset: conn_id is {conn_id!r}, dataset_id is {dataset_id!r}; both must be non-empty"
        )
    return f"{SCHEME}://{quote(conn_id, safe='')}/{quote(dataset_id, safe='')}"


def convert_to_openlineage(asset: Asset, lineage_context: object) -> Dataset:
    """Return the OpenLineage dataset: namespace invocation-dataset://CONN_ID, the dataset's id as name."""
    from airflow.providers.common.compat.openlineage.facet import Dataset

    namespace, _, name = asset.uri.rpartition("/")
    return Dataset(namespace=namespace, name=name)


def dataset_of(uri: str) -> tuple[str, str] | None:
    """Return the ids of connection and dataset in a URI; None if its scheme differs or it is malformed."""
    parts = urlsplit(uri)
    if parts.scheme != SCHEME:
        return None
    try:
        clean = sanitize_uri(parts)
    except ValueError:
        return None
    return unquote(clean.netloc), unquote(clean.path[1:])
