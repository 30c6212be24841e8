"""Triggers: what waits in the triggerer, and what does a task's whole work there."""

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
