"""Two DAGs that are connected by a dataset: one collects drives into it, the other maps them.

They need a connection `roboto_default`, and two actions on its platform: `collect_drives`, which writes files
to its output folder, and `map_drives`, which reads files. The second DAG runs each time that the first has
written to the dataset.
"""

from __future__ import annotations

from typing import Any

from airflow.sdk import DAG, AssetAlias, get_current_context, task

from airflow_invocations.assets import dataset_of
from airflow_invocations.hooks import RobotoHook
from airflow_invocations.operators import InvokeActionOperator

# The dataset's id is known only when the task runs, so the DAGs name an alias. With a fixed id, use
# `dataset_asset("roboto_default", "ds_...")` as the outlet and in the schedule.
collected_drives = AssetAlias("collected_drives")

with DAG(
    "collect_drives",
    description="Collect new drives into one dataset",
    schedule=None,
    tags=["example", "invocations"],
):

    @task
    def drives() -> str:
        """Return the id of the dataset for drives; the first run creates it."""
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
    description="Map each collection of drives",
    schedule=[collected_drives],
    tags=["example", "invocations"],
):

    @task
    def written() -> list[dict[str, Any]]:
        """Return each dataset that was written to, once, with the invocation that wrote to it last."""
        found: dict[str, dict[str, Any]] = {}
        for events in get_current_context()["triggering_asset_events"].values():
            for event in events:
                if (dataset := dataset_of(event.asset.uri)) is not None:
                    _, dataset_id = dataset
                    found[dataset_id] = {
                        "data_source_id": dataset_id,
                        "parameters": {"collected_by": event.extra["invocation_id"]},
                    }
        return list(found.values())

    InvokeActionOperator.partial(
        task_id="map", action="map_drives", input_data=["**/*.drive"], deferrable=True
    ).expand_kwargs(written())
