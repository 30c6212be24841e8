"""Write invocations as JSON, from their rows and events, without building models."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pydantic_core
import sqlalchemy as sa

from ...models import InvocationRecord, InvocationStatus
from ..timestamps import now, timestamp
from .tables import events, invocations
from .transitions import require_invocation

#: The columns of an invocation's row that its JSON, or the token of the next page, needs.
JSON_COLUMNS = (
    invocations.c.invocation_id,
    invocations.c.number,
    invocations.c.created,
    invocations.c.last_heartbeat,
    invocations.c.last_status,
    invocations.c.record,
)

# Built once: building a statement takes longer than running it.
_STEPS = (
    sa.select(
        events.c.invocation_id, events.c.status, events.c.detail, events.c.exit_code, events.c.timestamp
    )
    # One parameter with all ids: with a parameter per id, each number of ids would be another statement.
    .where(
        events.c.invocation_id.in_(sa.select(sa.func.json_each(sa.bindparam("ids")).table_valued("value")))
    )
    .order_by(events.c.number)
)


def load_record(connection: sa.Connection, invocation_id: str, org_id: str | None = None) -> InvocationRecord:
    """Return an invocation with its whole history. Raises NotFoundError."""
    return to_record(connection, require_invocation(connection, invocation_id, org_id))


def to_record(connection: sa.Connection, row: sa.Row[Any]) -> InvocationRecord:
    """Return the invocation of a row, with its whole history."""
    (document,) = to_json(connection, [row])
    return InvocationRecord.model_validate_json(document)


def to_json(connection: sa.Connection, rows: Sequence[sa.Row[Any]]) -> list[str]:
    """Return invocations as JSON objects, in the order of their rows, each with its status history."""
    steps: dict[str, list[str]] = {row.invocation_id: [] for row in rows}
    changed: dict[str, int] = {}
    started: dict[str, int] = {}
    ids = pydantic_core.to_json(list(steps)).decode()
    for invocation_id, status, detail, code, at in connection.execute(_STEPS, {"ids": ids}).all():
        detail_json = "null" if detail is None else pydantic_core.to_json(detail).decode()
        exit_code = "" if code is None else f'"exit_code":{code},'
        steps[invocation_id].append(
            f'{{"status":{status},"detail":{detail_json},{exit_code}"timestamp":"{timestamp(at)}"}}'
        )
        changed[invocation_id] = at
        if status == InvocationStatus.Queued:  # the next attempt begins
            started.pop(invocation_id, None)
        elif status == InvocationStatus.Processing:
            started.setdefault(invocation_id, at)
    present = now()
    documents: list[str] = []
    for row in rows:
        is_terminal = InvocationStatus(row.last_status).is_terminal
        end = changed[row.invocation_id] if is_terminal else present
        duration = end - started.get(row.invocation_id, end)
        documents.append(_document(row, steps[row.invocation_id], duration))
    return documents


def _document(row: sa.Row[Any], steps: Sequence[str], duration: int) -> str:
    """Return an invocation as the JSON of an InvocationRecord.

    :param steps: its status history, each status as a JSON object.
    :param duration: microseconds from the last attempt's start to its end, or to now.
    """
    heartbeat = "null" if row.last_heartbeat is None else f'"{timestamp(row.last_heartbeat)}"'
    duration_json = pydantic_core.to_json(timedelta(microseconds=duration)).decode()
    # `record` is the JSON object of what never changes; what changes is appended to it.
    return (
        f'{row.record[:-1]},"created":"{timestamp(row.created)}","last_heartbeat":{heartbeat},'
        f'"last_status":{row.last_status},"status":[{",".join(steps)}],"duration":{duration_json}}}'
    )
