"""Operators that invoke actions, cancel and reconcile invocations, and fetch logs.

A module is imported when one of its names is first used: a DAG file needs few of them, and sensors use the
private modules of this package only.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .cancel_invocation import CancelInvocationOperator
    from .fetch_invocation_logs import FetchInvocationLogsOperator
    from .invoke_action import InvokeActionOperator
    from .reconcile_invocations import ReconcileInvocationsOperator

__all__ = [
    "CancelInvocationOperator",
    "FetchInvocationLogsOperator",
    "InvokeActionOperator",
    "ReconcileInvocationsOperator",
]

_MODULES = {
    "CancelInvocationOperator": ".cancel_invocation",
    "FetchInvocationLogsOperator": ".fetch_invocation_logs",
    "InvokeActionOperator": ".invoke_action",
    "ReconcileInvocationsOperator": ".reconcile_invocations",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = getattr(importlib.import_module(_MODULES[name], __name__), name)
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
