"""Assets: the data that actions write, and the invocations that start a DAG run."""

from .dataset import dataset_asset
from .events import triggering_invocations

__all__ = ["dataset_asset", "triggering_invocations"]
