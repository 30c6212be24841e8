"""Request bodies, which the server validates more strictly than the models.

Each body is built when it is defined (`defer_build=False`). Pydantic warns about the alias that FastAPI gives
every body, and FastAPI suppresses the warning only while it creates a route
(https://github.com/fastapi/fastapi/pull/14036). A body that is built with the first request would print the
warning on the server's stderr.
"""

from __future__ import annotations

from typing import Annotated, Any

import pydantic

from ...models import (
    UNSPECIFIED_DATA_SOURCE,
    ActionParameter,
    ActionParameterChangeset,
    ContainerInfo,
    ContainerParameters,
    CreateActionRequest,
    InvocationInput,
    InvocationRequest,
    LogsLocation,
    MetadataChangeset,
    QuerySpecification,
    SetAccessibilityRequest,
    StatusUpdate,
    UpdateActionRequest,
    default_misfit,
)
from ...models.action import require_flat
from ...models.base import WireModel, require_plain_json
from ...models.dataset import Association, DatasetUpdate, FileUpdate, NewDataset, NewDatasetUnlessThere
from ...models.status import KnownStatus
from ...runtime.secrets import SECRET_PREFIX
from ..execution.process_limits import MAX_TEXT, size_of_text, size_of_variable

_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
#: Names of endpoints, which would hide an action of that name.
_RESERVED = frozenset({"invocations", "query"})

#: Invocations that one watch may name, and characters that an id or a cursor may have.
MAX_IDS = 20_000
MAX_ID = 64

#: Statuses that a watch may be restricted to.
_MAX_STATUSES = 64

#: Tags of a new dataset, and patterns of a query for its files.
_MAX_TAGS = 1000
_MAX_PATTERNS = 1000

#: Characters of a description, of an id or name, of a URI, and of a custom state.
_MAX_DESCRIPTION = 64 * 1024
_MAX_NAME = 256
_MAX_URI = 4096
_MAX_STATE = 1024 * 1024

#: Parameters of an action, and entries of its command line and environment.
_MAX_PARAMETERS = 1000
_MAX_WORDS = 10_000

#: Patterns, ids or names of one selector of an invocation's input, and selectors.
_MAX_SELECTED = 10_000
_MAX_SELECTORS = 100

#: The longest timeout: a year, in minutes.
_MAX_TIMEOUT = 365 * 24 * 60


def _require_variable(name: str) -> None:
    """Raise ValueError unless a process's environment can have a variable of this name."""
    if not name or {"=", "\0"} & set(name):
        raise ValueError(f"{name!r} is not a valid name of a variable: it must not be empty or contain '='")


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    require_plain_json(values)
    return values


def _flat(metadata: dict[str, Any]) -> dict[str, Any]:
    require_plain_json(metadata)
    require_flat(metadata)
    return metadata


def _for_variables(parameters: list[ActionParameter]) -> list[ActionParameter]:
    """Check an action's parameters: names must be valid for variables, and defaults must fit their types."""
    for parameter in parameters:
        _require_variable(parameter.name)
        if (misfit := default_misfit(parameter, SECRET_PREFIX)) is not None:
            raise ValueError(misfit)
        require_plain_json(parameter.default)
        _require_no_nul(f"the default of parameter {parameter.name!r}", parameter.default)
    return parameters


def _require_no_nul(what: str, value: object) -> None:
    """Raise ValueError for a string that can't be passed to a process; in lists, JSON escapes NUL."""
    if isinstance(value, str) and "\0" in value:
        raise ValueError(f"{what} has a NUL character, which can't be passed to a process")


def _for_a_process(container: ContainerParameters | None) -> ContainerParameters | None:
    """Check that a process can be started with these parameters."""
    if container is None:
        return None
    for field in ("command", "entry_point", "env_vars"):
        if len(getattr(container, field) or ()) > _MAX_WORDS:
            raise ValueError(f"{field}: at most {_MAX_WORDS} entries are allowed")
    for field in ("entry_point", "command"):
        for part in getattr(container, field) or []:
            _require_no_nul(field, part)
            _require_small(f"a part of {field}", size_of_text(part))
    _require_no_nul("workdir", container.workdir)
    for name, value in (container.env_vars or {}).items():
        _require_variable(name)
        _require_no_nul(f"env_vars {name!r}", value)
        _require_small(f"env_vars {name!r}", size_of_variable(name, value))
    return container


def _require_small(what: str, size: int) -> None:
    if size > MAX_TEXT:
        raise ValueError(f"{what} has {size:,} bytes; a string for a process may have {MAX_TEXT:,}")


_Container = Annotated[ContainerParameters | None, pydantic.AfterValidator(_for_a_process)]


def _plain_changes(changes: MetadataChangeset | None) -> MetadataChangeset | None:
    require_plain_json((changes.put_fields if changes else None) or {})
    return changes


_Description = Annotated[str | None, pydantic.Field(max_length=_MAX_DESCRIPTION)]
_Name = Annotated[str, pydantic.Field(max_length=_MAX_NAME)]
_DeviceId = Annotated[str | None, pydantic.Field(max_length=_MAX_NAME)]
_Tags = Annotated[
    list[Annotated[str, pydantic.Field(max_length=_MAX_NAME)]], pydantic.Field(max_length=_MAX_TAGS)
]
_Changes = Annotated[MetadataChangeset | None, pydantic.AfterValidator(_plain_changes)]


class CreateActionBody(CreateActionRequest, defer_build=False):
    """A CreateActionRequest whose names are valid in a URL and in an environment."""

    name: Annotated[str, pydantic.Field(pattern=_NAME)]
    container_parameters: _Container = None
    description: _Description = None
    parameters: Annotated[
        list[ActionParameter],
        pydantic.Field(max_length=_MAX_PARAMETERS),
        pydantic.AfterValidator(_for_variables),
    ] = []
    tags: _Tags = []
    uri: Annotated[str | None, pydantic.Field(max_length=_MAX_URI)] = None
    metadata: Annotated[dict[str, Any], pydantic.AfterValidator(_flat)] = {}
    timeout: Annotated[int | None, pydantic.Field(ge=1, le=_MAX_TIMEOUT)] = None

    @pydantic.field_validator("name")
    @classmethod
    def _not_reserved(cls, name: str) -> str:
        if name in _RESERVED:
            raise ValueError(f"{name!r} is an endpoint's name and can't be an action's")
        return name


class InvokeBody(InvocationRequest, defer_build=False):
    """An InvocationRequest whose parameters can be passed to a process."""

    data_source_id: Annotated[str, pydantic.Field(max_length=_MAX_NAME)] = UNSPECIFIED_DATA_SOURCE
    input_data: Annotated[list[str], pydantic.Field(max_length=_MAX_SELECTED)] = []
    invocation_source_id: Annotated[str | None, pydantic.Field(max_length=_MAX_URI)] = None
    parameter_values: dict[str, Any] | None = None
    container_parameter_overrides: _Container = None
    timeout: Annotated[int | None, pydantic.Field(ge=1, le=_MAX_TIMEOUT)] = None

    @pydantic.field_validator("rich_input_data")
    @classmethod
    def _not_too_much(cls, wanted: InvocationInput | None) -> InvocationInput | None:
        for kind in ("files", "sessions", "topics"):
            selectors = getattr(wanted, kind, None) or []
            selectors = selectors if isinstance(selectors, list) else [selectors]
            if len(selectors) > _MAX_SELECTORS:
                raise ValueError(f"{kind}: an input may have at most {_MAX_SELECTORS} selectors")
            for selector in selectors:
                for field in ("ids", "names", "paths"):
                    if len(getattr(selector, field, None) or []) > _MAX_SELECTED:
                        raise ValueError(f"{kind}.{field}: a selector may have at most {_MAX_SELECTED}")
        return wanted

    @pydantic.field_validator("parameter_values")
    @classmethod
    def _as_variables(cls, values: dict[str, Any] | None) -> dict[str, Any] | None:
        for name, value in (values or {}).items():
            _require_variable(name)
            _require_no_nul(f"parameter {name!r}", value)
        return None if values is None else _plain(values)


class UpdateActionBody(UpdateActionRequest, defer_build=False):
    """An UpdateActionRequest whose parameters have names that are valid in an environment."""

    container_parameters: _Container = None
    description: _Description = None
    uri: Annotated[str | None, pydantic.Field(min_length=1, max_length=_MAX_URI)] = None
    timeout: Annotated[int | None, pydantic.Field(ge=1, le=_MAX_TIMEOUT)] = None
    metadata_changeset: _Changes = None

    @pydantic.field_validator("parameter_changeset")
    @classmethod
    def _declared(cls, changes: ActionParameterChangeset | None) -> ActionParameterChangeset | None:
        _for_variables(changes.put_parameters if changes else [])
        return changes


class CreateDatasetBody(NewDataset, defer_build=False):
    """A NewDataset whose metadata is plain JSON."""

    metadata: Annotated[dict[str, Any], pydantic.AfterValidator(_plain)] = {}
    tags: _Tags = []
    description: _Description = None
    device_id: _DeviceId = None


class CreateDatasetIfMissingBody(NewDatasetUnlessThere, defer_build=False):
    """A NewDatasetUnlessThere whose metadata is plain JSON."""

    create_request: CreateDatasetBody


class UpdateDatasetBody(DatasetUpdate, defer_build=False):
    """A DatasetUpdate whose metadata is plain JSON."""

    description: _Description = None
    device_id: _DeviceId = None
    metadata_changeset: _Changes = None


class UpdateFileBody(FileUpdate, defer_build=False):
    """A FileUpdate whose metadata is plain JSON."""

    description: _Description = None
    device_id: _DeviceId = None
    metadata_changeset: _Changes = None


class QueryFilesBody(WireModel, defer_build=False):
    """A query for files of a dataset by patterns as in a .gitignore; without patterns, for all files."""

    page_token: Annotated[str | None, pydantic.Field(max_length=10_000)] = None
    include_patterns: Annotated[list[str], pydantic.Field(max_length=_MAX_PATTERNS)] | None = None
    exclude_patterns: Annotated[list[str], pydantic.Field(max_length=_MAX_PATTERNS)] | None = None
    limit: Annotated[int | None, pydantic.Field(ge=1, le=1000)] = None


class RoboqlBody(WireModel, defer_build=False):
    """A query in RoboQL."""

    query: str | None = None
    target: str


class BeginUploadBody(WireModel, defer_build=False):
    """An upload to announce: the bytes of each file, by its path in the dataset."""

    association: Association
    device_id: _DeviceId = None
    resource_manifest: dict[Annotated[str, pydantic.Field(max_length=_MAX_URI)], int]


class ReportUploadBody(WireModel, defer_build=False):
    """The URIs of files whose content has been sent."""

    manifest_items: Annotated[list[str], pydantic.Field(max_length=_MAX_SELECTED)]


class RenameFileBody(WireModel, defer_build=False):
    """A file's new path in its dataset."""

    association_id: _Name
    new_path: Annotated[str, pydantic.Field(max_length=_MAX_URI)]


class CreateSecretBody(WireModel, defer_build=False):
    """A secret to create; its value is sent elsewhere."""

    name: _Name


_FilePath = Annotated[str, pydantic.Field(max_length=_MAX_URI)]


class CreateDirectoryBody(WireModel, defer_build=False):
    """A directory to create."""

    name: _FilePath
    error_if_exists: bool = False
    parent_path: _FilePath | None = None
    create_intermediate_dirs: bool = False


class RenameDirectoryBody(WireModel, defer_build=False):
    """A directory's path and its new one."""

    old_path: _FilePath
    new_path: _FilePath


class DeleteDirectoriesBody(WireModel, defer_build=False):
    """Directories to delete with all their files."""

    directory_paths: Annotated[list[_FilePath], pydantic.Field(max_length=_MAX_PATTERNS)]


class SearchSpecification(QuerySpecification, defer_build=False):
    """A QuerySpecification with a limit of all pages together."""

    max_results: Annotated[int | None, pydantic.Field(ge=1, le=2**31)] = None


class StructuredQueryBody(WireModel, defer_build=False):
    """A query of conditions."""

    query: SearchSpecification
    target: str


_Id = Annotated[str, pydantic.Field(max_length=MAX_ID)]
_Ids = Annotated[list[_Id], pydantic.Field(max_length=MAX_IDS)]
_Cursors = Annotated[dict[_Id, _Id | None], pydantic.Field(max_length=MAX_IDS)]


class OpenWatchBody(WireModel, defer_build=False):
    """The selection of a new watch.

    It selects some invocations (`ids`) or all of the organisation; of one `action`, of one tree (`root` and
    all that it has invoked), or only those that no other one has invoked (`roots_only`). `statuses` selects
    changes to these statuses, `states` adds updates of custom state. `logs` has the invocations whose log
    lines are sent, each with a cursor (null: the beginning). `since` is the number of the last event that the
    reader has.
    """

    ids: _Ids | None = None
    action: Annotated[str | None, pydantic.Field(max_length=256)] = None
    root: _Id | None = None
    roots_only: bool = False
    statuses: Annotated[list[KnownStatus], pydantic.Field(max_length=_MAX_STATUSES)] | None = None
    states: bool = False
    logs: _Cursors = {}
    since: Annotated[int, pydantic.Field(ge=0, le=2**62)] | None = None


class ChangeWatchBody(WireModel, defer_build=False):
    """Invocations to add to an open watch, and to remove from it."""

    add: _Ids = []
    remove: _Ids = []
    logs: _Cursors = {}


class SetStateBody(WireModel, defer_build=False):
    """An invocation's custom state."""

    state: Annotated[str, pydantic.Field(max_length=_MAX_STATE)]


class QueryBody(QuerySpecification, defer_build=False):
    """A QuerySpecification."""


class SetAccessibilityBody(SetAccessibilityRequest, defer_build=False):
    """A SetAccessibilityRequest."""


class ReportStatusBody(StatusUpdate, defer_build=False):
    """A StatusUpdate."""


class SetLogsLocationBody(LogsLocation, defer_build=False):
    """A LogsLocation."""


class SetContainerBody(ContainerInfo, defer_build=False):
    """A ContainerInfo."""
