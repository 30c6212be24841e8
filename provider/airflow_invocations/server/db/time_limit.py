"""End SQLite statements that take too long."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

#: Seconds between two looks at what runs.
_INTERVAL = 0.1


class TimeLimit:
    """Interrupts statements from a thread of its own.

    SQLite's own means, a function called at regular steps of its machine, costs each row a call into
    Python if it is to be called in time: one step may search a text of a megabyte.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        #: What runs, and until when it may (`time.monotonic`).
        self._running: dict[sqlite3.Connection, float] = {}
        self._ended = False
        self._closed = False
        self._thread = threading.Thread(target=self._watch, name="time limit of queries", daemon=True)
        self._thread.start()

    @contextmanager
    def within(self, seconds: float, connection: sqlite3.Connection) -> Iterator[None]:
        """Interrupt whatever the connection does after some seconds, until the block ends."""
        with self._changed:
            self._running[connection] = time.monotonic() + seconds
            self._changed.notify()
        try:
            yield
        finally:
            with self._changed:
                del self._running[connection]

    def end(self) -> None:
        """Interrupt everything that runs, now and from now on."""
        with self._changed:
            self._ended = True

    def close(self) -> None:
        """Stop the thread; nothing may run any more."""
        with self._changed:
            self._running.clear()
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            with self._changed:
                while not self._running:
                    if self._closed:
                        return
                    self._changed.wait()
                for connection, until in self._running.items():
                    if self._ended or time.monotonic() > until:
                        connection.interrupt()
            time.sleep(_INTERVAL)
