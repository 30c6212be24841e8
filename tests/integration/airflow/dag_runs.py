"""Runs a DAG by `dag.test()`, with an Airflow database of the tests' own."""

from __future__ import annotations

import os
from typing import Any

from airflow.dag_processing.dagbag import DagBag, sync_bag_to_db
from airflow.sdk import DAG


def run(dag: DAG, conf: dict[str, Any] | None = None) -> Any:
    """The DAG run, at its end."""
    bag = DagBag(dag_folder=os.devnull)
    bag.bag_dag(dag)
    sync_bag_to_db(bag, "dags-folder", None)
    return dag.test(run_conf=conf)
