"""Read the history of all invocations of a pynenc app, for event streams and the newest invocation."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from contextlib import suppress

from pynenc import Pynenc
from pynenc.invocation.status import InvocationStatus as Status
from pynenc.invocation.status import InvocationStatusRecord
from pynenc.state_backend.base_state_backend import InvocationHistory

from ...models import InvocationEvent, InvocationStatus, cursor_at
from ..errors import NotFoundError
from ..polling import ListedInvocation
from .records import UNKNOWN, RecordReader
from .settings import STATUSES

#: Entries of the history that are read in one call, which blocks the thread.
ROWS = 500

#: Invocations whose task is cached.
_TASKS_KEPT = 20_000

#: The prefix of pynenc's own tasks, which every app has.
_OWN_TASKS = "pynenc.core_tasks."

_S = InvocationStatus

#: Later than any entry of the history.
_LATEST = datetime.datetime.max.replace(tzinfo=datetime.UTC)


class History:
    """Reads the history, page by page.

    :param app: the app whose backend is read.
    :param reader: reads single invocations.
    """

    def __init__(self, app: Pynenc, reader: RecordReader) -> None:
        self._app = app
        self._reader = reader
        #: The tasks of invocations, by id.
        self._tasks: dict[str, str] = {}

    def changes(
        self, action: str | None, since: datetime.datetime
    ) -> tuple[list[ListedInvocation], datetime.datetime | None]:
        """Return the invocations that have changed since a moment, with their terminal or last status.

        One page of the history is read. The second value is the moment of the next page; None: there is none.
        """
        rows, following = self._rows(since, _LATEST)
        last: dict[str, tuple[InvocationStatusRecord, datetime.datetime]] = {}
        for row in rows:
            # A terminal status counts, also if the runner that wrote it has a slow clock.
            if row.invocation_id not in last or not last[row.invocation_id][0].status.is_final():
                last[row.invocation_id] = (row.status_record, row.timestamp)
        return self._listed(action, last), following

    def newest(
        self, action: str, since: datetime.datetime, until: datetime.datetime
    ) -> tuple[str | None, datetime.datetime | None]:
        """Return the invocation of a task that was registered last between two times; None: there is none.

        One page of the history is read. The second value is the moment of the next page; None: there is none.
        """
        rows, following = self._rows(since, until)
        registered = (
            row.invocation_id
            for row in reversed(rows)
            if row.status_record.status is Status.REGISTERED and row.status_record.timestamp >= since
        )
        return next((one for one in registered if self._task(one) == action), None), following

    def final(self, ids: Sequence[str]) -> list[str]:
        """Return those that are terminal, whatever the history says."""
        return list(self._app.orchestrator.filter_final(list(ids)))

    def listed(self, ids: Sequence[str]) -> list[ListedInvocation]:
        """Return invocations with their present statuses."""
        records = {one: record for one in ids if (record := self._reader.registered(one)) is not None}
        return self._listed(None, {one: (record, record.timestamp) for one, record in records.items()})

    def _listed(
        self, action: str | None, last: Mapping[str, tuple[InvocationStatusRecord, datetime.datetime]]
    ) -> list[ListedInvocation]:
        """Return those of the wanted action, without pynenc's own tasks."""
        kinds = {one: STATUSES.get(record.status.value, UNKNOWN) for one, (record, _) in last.items()}
        cancelled = self._reader.cancelled([one for one, kind in kinds.items() if kind is _S.Failed])
        listed: list[ListedInvocation] = []
        for one, (record, moment) in last.items():
            name = self._task(one)
            if name is None or name.startswith(_OWN_TASKS) or action not in (None, name):
                continue
            kind = _S.Cancelled if one in cancelled else kinds[one]
            at = record.timestamp
            listed.append(ListedInvocation(one, moment, InvocationEvent(one, kind, name, at, cursor_at(at))))
        return listed

    def _rows(
        self, since: datetime.datetime, until: datetime.datetime
    ) -> tuple[list[InvocationHistory], datetime.datetime | None]:
        """Return the first entries of the history in a range of time, oldest first.

        The second value is the moment of the next page, which repeats some entries; None: these are all.
        """
        rows: list[InvocationHistory] = []
        for page in self._app.state_backend.iter_history_in_timerange(since, until, ROWS):
            rows += page
            if len(page) == ROWS and rows[-1].timestamp > since:
                return rows, rows[-1].timestamp
        return rows, None

    def _task(self, invocation_id: str) -> str | None:
        """Return the name of an invocation's task, which is cached; None if it is unknown."""
        name = self._tasks.get(invocation_id)
        if name is None:
            with suppress(NotFoundError):
                name = self._tasks[invocation_id] = self._reader.stored(invocation_id)[1].call_id.task_id.key
            if len(self._tasks) > _TASKS_KEPT:
                del self._tasks[next(iter(self._tasks))]
        return name
