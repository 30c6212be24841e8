"""Interrupt SQLite statements that take too long."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

#: Seconds between two checks of the running statements.
_INTERVAL = 0.1


class TimeLimit:
    """Interrupts statements from its own thread.

    SQLite's progress handler would cost a call into Python per row: one step of its virtual machine may
    search a text of a megabyte, so the handler would have to be called at every step.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        #: The connections that run a statement, each with its deadline (`time.monotonic`).
        self._deadlines: dict[sqlite3.Connection, float] = {}
        self._interrupts_all = False
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="query time limit", daemon=True)
        self._thread.start()

    @contextmanager
    def within(self, seconds: float, connection: sqlite3.Connection) -> Iterator[None]:
        """Interrupt the connection's statements when the block takes longer than `seconds`."""
        with self._changed:
            self._deadlines[connection] = time.monotonic() + seconds
            self._changed.notify()
        try:
            yield
        finally:
            with self._changed:
                del self._deadlines[connection]

    def interrupt_all(self) -> None:
        """Interrupt all running statements, and every later one."""
        with self._changed:
            self._interrupts_all = True

    def close(self) -> None:
        """Stop the thread; no statement may run any more."""
        with self._changed:
            self._deadlines.clear()
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._deadlines:
                    if self._closed:
                        return
                    self._changed.wait()
                for connection, deadline in self._deadlines.items():
                    if self._interrupts_all or time.monotonic() > deadline:
                        connection.interrupt()
            time.sleep(_INTERVAL)
