"""Operators: tasks that invoke actions, and see to invocations."""

from .cancel_invocation import CancelInvocationOperator
from .fetch_invocation_logs import FetchInvocationLogsOperator
from .invoke_action import InvokeActionOperator

__all__ = [
    "CancelInvocationOperator",
    "FetchInvocationLogsOperator",
    "InvokeActionOperator",
]
