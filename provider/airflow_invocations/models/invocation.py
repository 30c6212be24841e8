"""Invocations: requests, records, statuses and log pages."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Any

import pydantic

from .action import ComputeRequirements, ContainerParameters
from .base import WireModel
from .provenance import DagRunProvenance, InvocationProvenance, InvocationSource
from .status import InvocationStatus

#: `data_source_id` of an invocation that names no dataset.
UNSPECIFIED_DATA_SOURCE = "__UNSPECIFIED_DATA_SOURCE__"


class DataSourceType(StrEnum):
    """The kind of `data_source_id`; the platform has datasets only."""

    Dataset = "Dataset"


class DataSource(WireModel):
    """The source of an invocation's input."""

    data_source_type: DataSourceType = DataSourceType.Dataset
    data_source_id: str = UNSPECIFIED_DATA_SOURCE

    @property
    def is_unspecified(self) -> bool:
        """Whether it names no dataset."""
        return self.data_source_id == UNSPECIFIED_DATA_SOURCE


class UploadDestinationType(StrEnum):
    """The kind of `destination_id`. Unknown represents a kind that this version does not know."""

    Dataset = "Dataset"
    Unknown = "Unknown"

    @classmethod
    def _missing_(cls, value: object) -> UploadDestinationType | None:
        return cls.Unknown if isinstance(value, str) else None


class UploadDestination(WireModel):
    """The destination of an invocation's output folder."""

    destination_type: UploadDestinationType = UploadDestinationType.Dataset
    destination_id: str | None = None


class DataSelector(WireModel):
    """Which topics or sessions an invocation reads: at least one of query (RoboQL), ids, names."""

    query: str | None = None
    ids: list[str] | None = None
    names: list[str] | None = None
    dataset_id: str | None = None

    @pydantic.field_validator("ids", "names")
    @classmethod
    def _each_once(cls, value: list[str] | None) -> list[str] | None:
        return None if value is None else list(dict.fromkeys(value))

    @pydantic.model_validator(mode="after")
    def _selects_something(self) -> DataSelector:
        if not any(getattr(self, field) for field in self._selecting_fields()):
            raise ValueError(f"a selector needs at least one of: {', '.join(self._selecting_fields())}")
        return self

    @classmethod
    def _selecting_fields(cls) -> tuple[str, ...]:
        return ("query", "ids", "names")


class FileSelector(DataSelector):
    """Which files an invocation reads: at least one of query (RoboQL), ids, names, paths (patterns)."""

    paths: list[str] | None = None

    @classmethod
    def _selecting_fields(cls) -> tuple[str, ...]:
        return ("query", "ids", "names", "paths")


class InvocationInput(WireModel):
    """The input of an invocation: selectors of at least one of files, topics, sessions."""

    files: FileSelector | list[FileSelector] | None = None
    sessions: DataSelector | list[DataSelector] | None = None
    topics: DataSelector | list[DataSelector] | None = None

    @pydantic.model_validator(mode="after")
    def _selects_something(self) -> InvocationInput:
        if not (self.files or self.sessions or self.topics):
            raise ValueError("an input needs at least one of: files, sessions, topics")
        return self

    @property
    def file_selectors(self) -> list[FileSelector]:
        """The selectors of files; empty if there are none."""
        if self.files is None:
            return []
        return self.files if isinstance(self.files, list) else [self.files]


class InvocationRequest(WireModel):
    """`POST v1/actions/{name}/invoke`.

    The same `idempotency_id` never runs twice: the first invocation comes back. `timeout` is in minutes.
    """

    data_source_id: str = UNSPECIFIED_DATA_SOURCE
    data_source_type: DataSourceType = DataSourceType.Dataset
    input_data: list[str] = []
    invocation_source: InvocationSource
    invocation_source_id: str | None = None
    idempotency_id: str | None = pydantic.Field(default=None, min_length=1, max_length=256)
    rich_input_data: InvocationInput | None = None
    parameter_values: dict[str, Any] | None = None
    compute_requirement_overrides: ComputeRequirements | None = None
    container_parameter_overrides: ContainerParameters | None = None
    timeout: int | None = pydantic.Field(default=None, ge=1)
    upload_destination: UploadDestination | None = None

    @property
    def provenance(self) -> DagRunProvenance | None:
        """The Airflow task that made the request, from the environment variables of the action."""
        overrides = self.container_parameter_overrides
        return DagRunProvenance.from_environment(overrides.env_vars if overrides else None)

    @property
    def own_container_parameters(self) -> ContainerParameters | None:
        """The container overrides without the provenance variables; None if nothing else is set."""
        overrides = self.container_parameter_overrides
        if overrides is None:
            return None
        added = self.provenance.environment() if self.provenance else {}
        variables = {name: value for name, value in (overrides.env_vars or {}).items() if name not in added}
        own = overrides.model_copy(update={"env_vars": variables or None})
        return None if own == ContainerParameters() else own

    def wire(self) -> dict[str, Any]:
        """Return the JSON object to send, always with the data source, as the published client does."""
        always = {"data_source_id", "data_source_type", "input_data"}
        unset = {name for name in type(self).model_fields if name not in self.model_fields_set | always}
        return self.model_dump(mode="json", exclude=unset, exclude_none=True)


class StatusRecord(WireModel):
    """One status of an invocation, when it was reached, and why."""

    status: InvocationStatus
    detail: str | None = None
    timestamp: datetime.datetime
    #: The exit code of the action's process, if it exited and the platform reports it. The local server
    #: does; the invocation API has no such field.
    exit_code: int | None = pydantic.Field(default=None, exclude_if=lambda code: code is None)
    #: The platform's own name of the status, if it differs from the invocation API's.
    platform_status: str | None = pydantic.Field(default=None, exclude_if=lambda word: word is None)


class InvocationRecord(WireModel):
    """An invocation as the platform returns it. `timeout` is in minutes.

    `duration` is the platform's own value; `started_at`, `ended_at`, `ran_for` and `queued_for` mean the
    same on every platform.
    """

    created: datetime.datetime
    data_source: DataSource
    input_data: list[str] = []
    rich_input_data: InvocationInput | None = None
    upload_destination: UploadDestination | None = None
    invocation_id: str
    idempotency_id: str | None = None
    compute_requirements: ComputeRequirements
    container_parameters: ContainerParameters
    last_heartbeat: datetime.datetime | None = None
    last_status: InvocationStatus
    org_id: str
    parameter_values: dict[str, Any] = {}
    provenance: InvocationProvenance
    status: list[StatusRecord] = []
    duration: datetime.timedelta = datetime.timedelta()
    timeout: int
    #: Not part of the API's records.
    _parameter_digests: dict[str, str] | None = pydantic.PrivateAttr(default=None)

    @property
    def parameter_digests(self) -> dict[str, str] | None:
        """Digests of the parameters (`digests_of`), where a platform keeps no values."""
        return self._parameter_digests

    def with_parameter_digests(self, digests: dict[str, str] | None) -> InvocationRecord:
        """Return the same record with these digests."""
        record = self.model_copy()
        record._parameter_digests = digests
        return record

    @property
    def current(self) -> StatusRecord:
        """The present status: the last of `status` by (timestamp, status value)."""
        if not self.status:
            return StatusRecord(status=self.last_status, timestamp=self.created)
        return max(self.status, key=lambda step: (step.timestamp, step.status))

    @property
    def started_at(self) -> datetime.datetime | None:
        """When the last attempt was first Processing; None if that attempt hasn't started."""
        return started_at(self.status)

    @property
    def ended_at(self) -> datetime.datetime | None:
        """When the invocation reached its terminal status; None while it is active."""
        step = self.current
        return step.timestamp if step.status.is_terminal else None

    @property
    def ran_for(self) -> datetime.timedelta | None:
        """Its duration, `ended_at` minus `started_at`; None: it is active, or ended before it started."""
        started, ended = self.started_at, self.ended_at
        return None if started is None or ended is None else ended - started

    @property
    def queued_for(self) -> datetime.timedelta | None:
        """From `created` to `started_at`, earlier attempts included; None: it hasn't started."""
        started = self.started_at
        return None if started is None else started - self.created


def started_at(steps: Iterable[StatusRecord]) -> datetime.datetime | None:
    """Return when the last attempt was Processing for the first time; None: it hasn't started.

    An attempt begins where an invocation is Queued, or active again after a terminal status.
    """
    started = None
    begins = True
    for step in sorted(steps, key=lambda step: (step.timestamp, step.status)):
        if step.status is InvocationStatus.Queued or (begins and not step.status.is_terminal):
            started = None
        if step.status is InvocationStatus.Processing and started is None:
            started = step.timestamp
        begins = step.status.is_terminal
    return started


def elapsed(steps: Sequence[StatusRecord], present: datetime.datetime) -> datetime.timedelta:
    """Return how long the last attempt has run, up to its end or to `present`; 0 before its start."""
    started = started_at(steps)
    if started is None:
        return datetime.timedelta()
    last = max(steps, key=lambda step: (step.timestamp, step.status))
    return (last.timestamp if last.status.is_terminal else present) - started


class LogProcess(StrEnum):
    """The process that wrote a log line."""

    LogRouter = "firelens_log_router"
    Monitor = "monitor"
    Setup = "setup"
    Action = "action"
    OutputHandler = "output_handler"


class LogRecord(WireModel):
    """One log line, or one part of a long line; the parts of a line have the same `partial_id`."""

    partial_id: str | None = None
    log: str
    process: LogProcess
    timestamp: datetime.datetime


class LogPage(WireModel):
    """Log lines in order, and the cursor after them (`last_read`).

    `has_next`: whether more lines are known to be available now. If not, poll again later.
    """

    items: list[LogRecord]
    has_next: bool
    last_read: str | None = None
