"""Two DAGs that are chained by data: one collects drives into a dataset, the other maps what has come.

They need a connection `roboto_default`, and on the platform behind it two actions: `collect_drives`, which
leaves files in its output folder, and `map_drives`, which reads files. Neither DAG knows the other's tasks;
the second starts when, and each time, the first has written.
"""

from __future__ import annotations

from typing import Any

from airflow.sdk import DAG, AssetAlias, get_current_context, task

from airflow_invocations.assets import dataset_of
from airflow_invocations.hooks import RobotoHook
from airflow_invocations.operators import InvokeActionOperator

# Which dataset it is, is known only when the task runs: the alias stands for it until then. Where its id is
# known, `dataset_asset("roboto_default", "ds_...")` is the outlet, and the schedule.
collected_drives = AssetAlias("collected_drives")

with DAG(
    "collect_drives",
    description="New drives, into one dataset",
    schedule=None,
    tags=["example", "invocations"],
):

    @task
    def drives() -> str:
        """The dataset that drives are collected in; the first run makes it."""
        return RobotoHook().dataset("drives").dataset_id

    InvokeActionOperator(
        task_id="collect",
        action="collect_drives",
        upload_destination=drives(),  # type: ignore[arg-type]
        outlets=[collected_drives],
        deferrable=True,
    )

with DAG(
    "map_drives",
    description="A map of each collection of drives",
    schedule=[collected_drives],
    tags=["example", "invocations"],
):

    @task
    def written() -> list[dict[str, Any]]:
        """What to map: each dataset that was written to, once, and which invocation wrote to it last."""
        found: dict[str, dict[str, Any]] = {}
        for events in get_current_context()["triggering_asset_events"].values():
            for event in events:
                if (named := dataset_of(event.asset.uri)) is not None:
                    _, dataset_id = named
                    found[dataset_id] = {
                        "data_source_id": dataset_id,
                        "parameters": {"collected_by": event.extra["invocation_id"]},
                    }
        return list(found.values())

    InvokeActionOperator.partial(
        task_id="map", action="map_drives", input_data=["**/*.drive"], deferrable=True
    ).expand_kwargs(written())
