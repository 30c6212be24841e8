"""Decorators: functions that say what to invoke an action with."""

from .invoke_action import invoke_action_task

__all__ = ["invoke_action_task"]
