"""What a trigger does for the task instance that it works for, where there is no worker to do it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from airflow.triggers.base import BaseTrigger

from ..action_log import log_relay
from ..tasks.sdk_calls import complete
from ..tasks.xcom import storable

#: Seconds after which a waiting task logs again what it waits for.
ANNOUNCEMENT_INTERVAL = 600.0


async def push_xcom(trigger: BaseTrigger, key: str, value: Any) -> None:
    """Push an XCom as the task would; what an end event carries along would arrive encoded twice."""
    from airflow.sdk.execution_time.xcom import XCom

    instance: Any = trigger.task_instance
    await complete(
        lambda: XCom.aset(
            key,
            storable(value),
            dag_id=instance.dag_id,
            task_id=instance.task_id,
            run_id=instance.run_id,
            map_index=instance.map_index,
        )
    )


async def pull_xcom(trigger: BaseTrigger, key: str) -> Any:
    """What the task has pushed, in this try or, where no worker began a new one, in those before; or None."""
    from airflow.sdk.execution_time.xcom import XCom

    instance: Any = trigger.task_instance
    return await complete(
        lambda: XCom.aget_one(
            key=key,
            dag_id=instance.dag_id,
            task_id=instance.task_id,
            run_id=instance.run_id,
            map_index=instance.map_index,
        )
    )


def has_retries(trigger: BaseTrigger) -> bool:
    """Whether Airflow might retry the task; how often it has, a triggerer isn't told."""
    instance: Any = trigger.task_instance
    return bool(instance.task.retries)


@asynccontextmanager
async def announced(trigger: BaseTrigger, what: object) -> AsyncIterator[None]:
    """Log what the block waits for, immediately and every `ANNOUNCEMENT_INTERVAL` seconds."""

    async def repeat() -> None:
        began = time.monotonic()
        while True:
            await asyncio.sleep(ANNOUNCEMENT_INTERVAL)
            trigger.log.info("Still waiting after %.0f s for %s", time.monotonic() - began, what)

    trigger.log.info("Waiting for %s", what)
    reminder = asyncio.create_task(repeat())
    try:
        yield
    finally:
        reminder.cancel()


async def flush_task_log() -> None:
    """Wait until a trigger's last log line has left the process, for tasks that end without a worker.

    Airflow closes the task's log when it receives the trigger's event; lines that arrive later are lost.
    """
    await log_relay().drain()
