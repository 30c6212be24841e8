"""OpenLineage: the run that an invocation belongs to, and which datasets it reads and writes.

Nothing of OpenLineage is imported unless its provider is installed and switched on.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from ..version_compat import has_openlineage

if TYPE_CHECKING:
    from airflow.providers.openlineage.extractors import OperatorLineage

    from ..models import InvocationRecord

_log = logging.getLogger(__name__)


def is_switched_on() -> bool:
    """Whether this Airflow emits lineage."""
    if not has_openlineage():
        return False
    from airflow.providers.openlineage import conf

    return not conf.is_disabled()


def parent_and_root_of(task_instance: Any) -> tuple[str, str] | None:
    """The runs of a task and of its DAG, each as `namespace/job/run id`; None: no lineage is emitted."""
    if not is_switched_on():
        return None
    try:
        from airflow.providers.openlineage.plugins.macros import lineage_parent_id, lineage_root_parent_id

        return lineage_parent_id(task_instance), lineage_root_parent_id(task_instance)
    except Exception as error:
        # No task fails for the sake of its lineage.
        _log.warning("the action isn't told which lineage run it belongs to: %s", error)
        return None


def lineage_of(
    conn_id: str,
    inputs: list[str],
    outputs: list[str],
    record: InvocationRecord | None,
    where: str,
) -> OperatorLineage[Any, Any]:
    """What a task has to say: the datasets by their ids, and the invocation, if it is known.

    A dataset has the name that its asset has: namespace `invocation-dataset://CONN_ID`, name its id.
    """
    from airflow.providers.common.compat.openlineage.facet import Dataset, ExternalQueryRunFacet
    from airflow.providers.openlineage.extractors import OperatorLineage

    from ..assets.dataset import dataset_uri

    def dataset(dataset_id: str) -> Dataset:
        namespace, _, name = dataset_uri(conn_id, dataset_id).rpartition("/")
        return Dataset(namespace=namespace, name=name)

    facets = {}
    if record is not None:
        facets["externalQuery"] = ExternalQueryRunFacet(externalQueryId=record.invocation_id, source=where)
    return OperatorLineage(
        inputs=[dataset(one) for one in inputs],
        outputs=[dataset(one) for one in outputs],
        run_facets=facets,
    )
