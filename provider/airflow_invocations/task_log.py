"""Writes an action's log lines into the task's log, without holding up whatever else the loop has to do."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from .stored import TAIL_LINES, TAIL_WIDTH

if TYPE_CHECKING:
    from .model import LogRecord

#: Lines written at a stretch; one costs the triggerer's loop about 0.4 ms (facts/airflow.md, section 9).
STRETCH = 50

#: The source that Airflow shows beside each line.
_action_log = logging.getLogger("airflow_invocations.action")


class ActionLog:
    """An action's lines in the task's log, and the last of them.

    :param last: the last lines that were written before.
    """

    def __init__(self, last: Iterable[str] = ()) -> None:
        self._last = deque(last, maxlen=TAIL_LINES)

    @property
    def last(self) -> list[str]:
        """The last lines, shortened."""
        return list(self._last)

    async def write(self, records: Sequence[LogRecord]) -> None:
        """Write lines as they are; long ones come in the parts in which they were kept."""
        for number, record in enumerate(records):
            if number and number % STRETCH == 0:
                await asyncio.sleep(0)
            _action_log.info("%s", record.log)
        self._last.extend(record.log[:TAIL_WIDTH] for record in records[-TAIL_LINES:])
