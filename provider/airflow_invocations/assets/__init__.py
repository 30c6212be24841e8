"""Assets: datasets that actions write, and invocations whose ends start a DAG run."""

from .dataset import dataset_asset, dataset_of
from .events import triggering_invocations

__all__ = ["dataset_asset", "dataset_of", "triggering_invocations"]
