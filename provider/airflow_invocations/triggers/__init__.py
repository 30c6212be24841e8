"""Triggers: what waits in the triggerer."""

from .invocation import InvocationTrigger

__all__ = ["InvocationTrigger"]
