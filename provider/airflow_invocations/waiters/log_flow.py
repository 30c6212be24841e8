"""Flow control for the logs of one connection: a log is read only while its wait has room for lines."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ..models import NewLines
from .wait_handle import FlowState, Notice, WaitHandle, WaitTable


class LogFlow:
    """Decide which logs are read, and pass their lines to the waits.

    :param waits: the waits of the connection.
    :param on_change: called when the set of logs to read may have changed.
    """

    def __init__(self, waits: WaitTable, on_change: Callable[[], object]) -> None:
        self._waits = waits
        self._on_change = on_change

    def prepare(self, wait: WaitHandle) -> None:
        """Prepare a wait before it is added: a log has one reader.

        A second wait for the same invocation reads the log from its cursor when the invocation has ended.
        """
        if self._waits.reader(wait.invocation_id) is not None:
            wait.lines = None
        if wait.lines is not None:
            wait.on_room = wait.lines.on_room = self._on_change

    def restart(self) -> None:
        """Let the lines of all logs with room flow, in a new stream."""
        for wait in self._waits:
            wait.flow = FlowState.Flowing if wait.has_room else FlowState.Stopped

    def stopping(self) -> list[WaitHandle]:
        """Return the waits whose lines the stream is to stop sending."""
        return self._readers(FlowState.Stopping)

    def resumable(self) -> list[WaitHandle]:
        """Return the waits with stopped lines that have room again."""
        return [wait for wait in self._readers(FlowState.Stopped) if wait.has_room]

    def _readers(self, flow: FlowState) -> list[WaitHandle]:
        return [wait for wait in self._waits if wait.lines is not None and wait.flow is flow]

    def cursors(self, ids: Iterable[str]) -> dict[str, str | None]:
        """Return those of these invocations whose logs are read, each with the cursor to resume from."""
        readers = (self._waits.reader(invocation_id) for invocation_id in ids)
        flowing = (wait for wait in readers if wait is not None and wait.flow is FlowState.Flowing)
        return {wait.invocation_id: wait.cursor for wait in flowing}

    def accept(self, lines: NewLines) -> None:
        """Accept lines from the stream; they may have been sent before their log was stopped or resumed."""
        wait = self._waits.reader(lines.invocation_id)
        if wait is None or wait.flow is not FlowState.Flowing or lines.begins_at not in (None, wait.cursor):
            return
        if wait.has_room:
            wait.add_page(lines.page)
        else:
            wait.stop_lines()
            self._on_change()

    def end(self, invocation_id: str, reason: str) -> None:
        """Stop reading a log that can't be read."""
        wait = self._waits.reader(invocation_id)
        if wait is not None:
            wait.lines = None
            wait.notify(Notice(f"Cannot read the log of {invocation_id}: {reason}"))
