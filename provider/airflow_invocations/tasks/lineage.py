"""OpenLineage: the run that an invocation belongs to, and the datasets that it reads and writes.

OpenLineage is imported only if its provider is installed and enabled.
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
    """Return whether this Airflow emits lineage."""
    if not has_openlineage():
        return False
    from airflow.providers.openlineage import conf

    return not conf.is_disabled()


def parent_and_root_of(task_instance: Any) -> tuple[str, str] | None:
    """Return the runs of a task and of its DAG, each as `namespace/job/run id`; None without lineage."""
    if not is_switched_on():
        return None
    try:
        from airflow.providers.openlineage.plugins.macros import lineage_parent_id, lineage_root_parent_id

        return lineage_parent_id(task_instance), lineage_root_parent_id(task_instance)
    except Exception as error:
        # A task must not fail because of its lineage.
        _log.warning("Could not read the lineage run of the task; it is not passed to the action: %s", error)
        return None


def lineage_of(
    inputs: list[str], outputs: list[str], record: InvocationRecord | None, where: str
) -> OperatorLineage[Any, Any]:
    """Return the lineage of a task.

    :param inputs: the asset URIs of the datasets that the action has read. A dataset is named as its asset:
        namespace `invocation-dataset://CONN_ID`, name its id.
    :param outputs: the asset URIs of the datasets that it has written.
    :param record: the invocation; None if it is not known.
    :param where: the platform's address.
    """
    from airflow.providers.common.compat.openlineage.facet import Dataset, ExternalQueryRunFacet
    from airflow.providers.openlineage.extractors import OperatorLineage

    def dataset(uri: str) -> Dataset:
        namespace, _, name = uri.rpartition("/")
        return Dataset(namespace=namespace, name=name)

    facets = {}
    if record is not None:
        facets["externalQuery"] = ExternalQueryRunFacet(externalQueryId=record.invocation_id, source=where)
    return OperatorLineage(
        inputs=[dataset(uri) for uri in inputs],
        outputs=[dataset(uri) for uri in outputs],
        run_facets=facets,
    )
