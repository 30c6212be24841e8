"""Writes an action's log lines into the task's log, without holding up whatever else the loop has to do."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from .model import LogRecord

#: Lines written at a stretch; one costs the triggerer's loop about 0.4 ms (facts/airflow.md, section 9).
STRETCH = 50

#: The source that Airflow shows beside each line.
_action_log = logging.getLogger("airflow_invocations.action")


async def write_lines(records: Sequence[LogRecord]) -> None:
    """Write log lines as they are; long ones come in the parts in which they were kept."""
    for number, record in enumerate(records):
        if number and number % STRETCH == 0:
            await asyncio.sleep(0)
        _action_log.info("%s", record.log)
