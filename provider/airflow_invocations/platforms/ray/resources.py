"""Find out whether a cluster of fixed size can ever run a job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...models.text import figure
from .shapes import Json, object_at

#: Ray's names of the resources that a job's fields ask for.
_NAMES = {"entrypoint_num_cpus": "CPU", "entrypoint_num_gpus": "GPU", "entrypoint_memory": "memory"}


def demand_of(job: Mapping[str, Any]) -> dict[str, float]:
    """Return what a job reserves, by Ray's names of resources."""
    named = {ray: job.get(field) or 0 for field, ray in _NAMES.items()}
    return {
        name: amount for name, amount in {**named, **object_at(job, "entrypoint_resources")}.items() if amount
    }


def unmet_demand(job: Mapping[str, Any], cluster: Json) -> str | None:
    """Return why no node of a cluster can ever run a job; None if one can, or Ray doesn't say.

    Ray lets such a job wait for 15 minutes, because an autoscaler may add a node. Only a cluster without an
    autoscaler, whose nodes Ray names after their ids, is known to stay as it is.

    :param cluster: the response to `/api/cluster_status`.
    """
    demand = demand_of(job)
    status = object_at(cluster, "data", "clusterStatus")
    nodes = object_at(status, "autoscalerReport", "nodeTypeMapping")
    is_fixed = bool(nodes) and all(kind == f"node_{node}" for node, kind in nodes.items())
    sizes = _node_sizes(object_at(status, "loadMetricsReport").get("nodeTypes"))
    if not demand or not is_fixed or not sizes:
        return None
    if any(all(size.get(name, 0) >= amount for name, amount in demand.items()) for size in sizes):
        return None
    asked = ", ".join(f"{name} {figure(amount)}" for name, amount in demand.items())
    most = ", ".join(f"{name} {figure(max(size.get(name, 0) for size in sizes))}" for name in demand)
    return f"it reserves {asked}; there is no autoscaler, and the most of a node is {most}"


def _node_sizes(node_types: object) -> Sequence[dict[str, float]]:
    """Return the resources of each kind of node."""
    pairs = node_types if isinstance(node_types, list) else []
    return [
        {name: amount for name, amount in pair[0].items() if isinstance(amount, int | float)}
        for pair in pairs
        if isinstance(pair, list) and pair and isinstance(pair[0], dict)
    ]
