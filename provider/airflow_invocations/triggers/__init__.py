"""Triggers: wait in the triggerer, or run a whole task there; start DAGs when invocations end."""

from .events import InvocationEventTrigger
from .invocation import InvocationTrigger
from .invocations import InvocationsTrigger, SensorTrigger
from .invoke_action import InvokeActionTrigger

__all__ = [
    "InvocationEventTrigger",
    "InvocationTrigger",
    "InvocationsTrigger",
    "InvokeActionTrigger",
    "SensorTrigger",
]
