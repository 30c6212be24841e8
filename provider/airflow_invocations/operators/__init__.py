"""Operators: tasks that invoke actions, and see to invocations."""

from .action import InvokeActionOperator
from .cancel import CancelInvocationOperator
from .logs import FetchInvocationLogsOperator
from .retry import RetryFailedInvocationsOperator

__all__ = [
    "CancelInvocationOperator",
    "FetchInvocationLogsOperator",
    "InvokeActionOperator",
    "RetryFailedInvocationsOperator",
]
