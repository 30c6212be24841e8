"""Records and queries of the invocation API."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any, TypeVar

import pydantic

from ...models import InvocationRecord, InvocationStatus, StatusSnapshot
from ...models.base import problems_of
from ...models.dataset import FileRecord
from ..errors import UnavailableError

#: How the detail of an invocation begins that failed by its exit code.
_EXIT_CODE = re.compile(r"exit code (\d{1,3})\b")

RecordT = TypeVar("RecordT", bound=pydantic.BaseModel)
PageT = TypeVar("PageT", "SnapshotPage", "RecordPage", "RawPage")


class Snapshot(pydantic.BaseModel):
    """The status in an InvocationRecord."""

    invocation_id: str
    last_status: InvocationStatus

    @property
    def snapshot(self) -> StatusSnapshot:
        """The status, in the provider's terms."""
        return StatusSnapshot(self.invocation_id, self.last_status)


class SnapshotPage(pydantic.BaseModel):
    """A page of records of which only the status is read."""

    items: list[Snapshot]
    next_token: str | None


class RecordPage(pydantic.BaseModel):
    """A page of records."""

    items: list[InvocationRecord]
    next_token: str | None


class RawPage(pydantic.BaseModel):
    """A page whose items are read one by one, so that an unreadable one hides no other."""

    items: list[Any]
    next_token: str | None


class FileQuery(pydantic.BaseModel):
    """A query over files, which runs in the background."""

    query_id: str
    status: str


class FilePage(pydantic.BaseModel):
    """A page of a query's files."""

    items: list[FileRecord]
    next_token: str | None = None


def read(kind: type[RecordT], data: Any) -> RecordT:
    """Return a response as a record. Raises UnavailableError for a malformed one."""
    try:
        return kind.model_validate(data)
    except pydantic.ValidationError as error:
        problems = problems_of(error.errors()[:5])
        raise UnavailableError(
            f"the platform's response is not a valid {kind.__name__}: {problems}"
        ) from None


def read_record(data: Any) -> InvocationRecord:
    """Return an invocation's record with its exit codes. Raises UnavailableError for a malformed one."""
    return with_exit_code(read(InvocationRecord, data))


def with_exit_code(record: InvocationRecord) -> InvocationRecord:
    """Return a record whose steps have the exit codes that their details state.

    A step of the published invocation API (client 0.62, `InvocationStatusRecord`) has a status, a time and a
    detail, and the exit code stands in the detail only. This is the one place that reads it there, and only
    of a step without the field `exit_code`, which the local server sends.
    """
    for step in record.status:
        if step.exit_code is None and step.status is InvocationStatus.Failed:
            stated = _EXIT_CODE.match(step.detail or "")
            step.exit_code = int(stated[1]) if stated else None
    return record


def text_field(data: object, field: str) -> str:
    """Return a field of an object of unknown shape; empty if it isn't a text."""
    value = data.get(field) if isinstance(data, dict) else None
    return value if isinstance(value, str) else ""


def compare(field: str, comparator: str, value: object) -> dict[str, Any]:
    """Return the condition that compares a field."""
    return {"field": field, "comparator": comparator, "value": value}


def any_of(field: str, values: Collection[str], comparator: str = "EQUALS") -> dict[str, Any]:
    """Return the condition that a field has one of these values; the API has no IN."""
    return {"operator": "OR", "conditions": [compare(field, comparator, value) for value in values]}


def all_of(*conditions: dict[str, Any]) -> dict[str, Any]:
    """Return the condition that all of these hold."""
    return {"operator": "AND", "conditions": list(conditions)}


#: All statuses from Completed on are terminal.
HAS_ENDED = compare("last_status", "GREATER_THAN_OR_EQUAL", int(InvocationStatus.Completed))
IS_ACTIVE = compare("last_status", "LESS_THAN", int(InvocationStatus.Completed))
