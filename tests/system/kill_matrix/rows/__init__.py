"""The rows of the matrix, by cause; importing this package registers them."""

from . import faults, intent, invocations, people, platform, scheduler, triggerer, worker
from .row import ROWS, Row

__all__ = [
    "ROWS",
    "Row",
    "faults",
    "intent",
    "invocations",
    "people",
    "platform",
    "scheduler",
    "triggerer",
    "worker",
]
