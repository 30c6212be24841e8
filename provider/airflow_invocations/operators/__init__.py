"""Operators: tasks that invoke actions."""

from .action import InvokeActionOperator

__all__ = ["InvokeActionOperator"]
