"""Sensors: tasks that wait for invocations which something else started."""

from .invocation import InvocationSensor

__all__ = ["InvocationSensor"]
