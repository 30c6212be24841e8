"""The rows of the matrix, by what goes wrong; importing this package fills the table."""

from . import faults, invocations, people, platform, scheduler, triggerer, worker
from .row import ROWS, Row

__all__ = ["ROWS", "Row", "faults", "invocations", "people", "platform", "scheduler", "triggerer", "worker"]
