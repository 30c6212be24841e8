"""The vocabulary of actions and invocations: records and rules, without I/O and without Airflow.

Each module is imported when one of its names is first used, because a DAG file needs few of them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .action import (
        Accessibility,
        ActionParameter,
        ActionRecord,
        ActionReference,
        ComputeRequirements,
        ContainerParameters,
        CreateActionRequest,
        OpenActionRecord,
    )
    from .base import MAX_PAGE_SIZE, canonical_json, digests_of
    from .changesets import (
        ActionParameterChangeset,
        ActionStats,
        CancelAllAnswer,
        CancelAllRequest,
        ContainerInfo,
        LogsLocation,
        MetadataChangeset,
        SetAccessibilityRequest,
        StatusUpdate,
        UpdateActionRequest,
    )
    from .invocation import (
        UNSPECIFIED_DATA_SOURCE,
        DataSelector,
        DataSource,
        DataSourceType,
        FileSelector,
        InvocationInput,
        InvocationRecord,
        InvocationRequest,
        LogPage,
        LogProcess,
        LogRecord,
        StatusRecord,
        UploadDestination,
        UploadDestinationType,
    )
    from .parameter_types import ParameterType, read_text
    from .parameters import coerce_parameters, default_misfit
    from .provenance import (
        MAX_ASSET_EVENTS,
        SOURCE_ID_BEGIN,
        ActionProvenance,
        AssetEvent,
        DagRunProvenance,
        ExecutableProvenance,
        InvocationProvenance,
        InvocationSource,
        SourceFilter,
        SourceProvenance,
        TaskInstanceReference,
        deployment_id,
        source_id_prefix,
        task_instance_of,
    )
    from .query import (
        Comparator,
        Condition,
        ConditionGroup,
        ConditionOperator,
        Page,
        QuerySpecification,
        SortDirection,
    )
    from .status import (
        DEFINITIONS,
        InvalidTransition,
        InvocationStatus,
        NotOwned,
        OwnedStatus,
        StatusDefinition,
        compute_new_owner,
        get_status_definition,
        status_record_transition,
        validate_ownership,
        validate_transition,
    )
    from .stream import (
        CaughtUp,
        CursorLost,
        EventFilter,
        InvocationEvent,
        NewLines,
        StateChanged,
        StatusSnapshot,
        StreamMessage,
        StreamOpened,
        UnreadableItem,
        UnreadableLog,
        WatchMessage,
        cursor_at,
        decode_message,
        encode_message,
        is_time,
    )

__all__ = [
    "DEFINITIONS",
    "MAX_ASSET_EVENTS",
    "MAX_PAGE_SIZE",
    "SOURCE_ID_BEGIN",
    "UNSPECIFIED_DATA_SOURCE",
    "Accessibility",
    "ActionParameter",
    "ActionParameterChangeset",
    "ActionProvenance",
    "ActionRecord",
    "ActionReference",
    "ActionStats",
    "AssetEvent",
    "CancelAllAnswer",
    "CancelAllRequest",
    "CaughtUp",
    "Comparator",
    "ComputeRequirements",
    "Condition",
    "ConditionGroup",
    "ConditionOperator",
    "ContainerInfo",
    "ContainerParameters",
    "CreateActionRequest",
    "CursorLost",
    "DagRunProvenance",
    "DataSelector",
    "DataSource",
    "DataSourceType",
    "EventFilter",
    "ExecutableProvenance",
    "FileSelector",
    "InvalidTransition",
    "InvocationEvent",
    "InvocationInput",
    "InvocationProvenance",
    "InvocationRecord",
    "InvocationRequest",
    "InvocationSource",
    "InvocationStatus",
    "LogPage",
    "LogProcess",
    "LogRecord",
    "LogsLocation",
    "MetadataChangeset",
    "NewLines",
    "NotOwned",
    "OpenActionRecord",
    "OwnedStatus",
    "Page",
    "ParameterType",
    "QuerySpecification",
    "SetAccessibilityRequest",
    "SortDirection",
    "SourceFilter",
    "SourceProvenance",
    "StateChanged",
    "StatusDefinition",
    "StatusRecord",
    "StatusSnapshot",
    "StatusUpdate",
    "StreamMessage",
    "StreamOpened",
    "TaskInstanceReference",
    "UnreadableItem",
    "UnreadableLog",
    "UpdateActionRequest",
    "UploadDestination",
    "UploadDestinationType",
    "WatchMessage",
    "canonical_json",
    "coerce_parameters",
    "compute_new_owner",
    "cursor_at",
    "decode_message",
    "default_misfit",
    "deployment_id",
    "digests_of",
    "encode_message",
    "get_status_definition",
    "is_time",
    "read_text",
    "source_id_prefix",
    "status_record_transition",
    "task_instance_of",
    "validate_ownership",
    "validate_transition",
]

#: The modules in which names are looked up, the cheapest to import first.
_MODULES = (
    "base", "status", "stream", "parameter_types", "action", "parameters", "provenance",
    "invocation", "query", "changesets",
)  # fmt: skip


def __getattr__(name: str) -> object:
    if name in __all__:
        for module in _MODULES:
            found = vars(importlib.import_module(f".{module}", __name__))
            if name in found:
                globals()[name] = found[name]
                return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
