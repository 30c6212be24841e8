"""The runtime of an action: what the action's own process imports.

    from airflow_invocations.runtime import InvocationContext

    context = InvocationContext.from_env()

It needs neither Airflow nor the published client. Names that need pydantic are imported on first use, so that
an action that only reads a parameter starts quickly.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from ..exit_codes import ExitCode
from .context import ActionRuntime, InvocationContext
from .exceptions import (
    ActionRuntimeException,
    PlatformError,
    PlatformNotFound,
    PlatformRejected,
    PlatformUnavailable,
    PrepareEnvException,
)

if TYPE_CHECKING:
    from ..models import MetadataChangeset
    from ..models.dataset import ActionInputRecord
    from .changesets import FilesChangesetFileManager, read_dataset_changeset, read_file_changesets
    from .inputs import ActionInput
    from .prepare import InvocationPaths, PreparedEnvironment, input_of, prepare_invocation_environment
    from .resolver import ActionInputResolver, InputCatalog

#: Module of each name that is imported on first use.
_LATER = {
    "ActionInput": ".inputs",
    "ActionInputRecord": "..models.dataset",
    "ActionInputResolver": ".resolver",
    "FilesChangesetFileManager": ".changesets",
    "InputCatalog": ".resolver",
    "InvocationPaths": ".prepare",
    "MetadataChangeset": "..models",
    "PreparedEnvironment": ".prepare",
    "input_of": ".prepare",
    "prepare_invocation_environment": ".prepare",
    "read_dataset_changeset": ".changesets",
    "read_file_changesets": ".changesets",
}

__all__ = [
    "ActionInput",
    "ActionInputRecord",
    "ActionInputResolver",
    "ActionRuntime",
    "ActionRuntimeException",
    "ExitCode",
    "FilesChangesetFileManager",
    "InputCatalog",
    "InvocationContext",
    "InvocationPaths",
    "MetadataChangeset",
    "PlatformError",
    "PlatformNotFound",
    "PlatformRejected",
    "PlatformUnavailable",
    "PrepareEnvException",
    "PreparedEnvironment",
    "input_of",
    "prepare_invocation_environment",
    "read_dataset_changeset",
    "read_file_changesets",
]


def __getattr__(name: str) -> object:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found: object = getattr(importlib.import_module(_LATER[name], __name__), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
