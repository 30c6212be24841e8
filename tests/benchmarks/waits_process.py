"""The process that waits: triggers of one provider in one event loop, as a triggerer runs them.

It takes commands from stdin and answers each on stdout, one line of JSON a time. Connections reach the
triggers by `AIRFLOW_CONN_*`. Nothing else of Airflow's runs in it: no supervisor, and no log is written,
which spares most those triggers that log each poll.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from airflow.triggers.base import BaseTrigger

from .waits_server import PLAIN, number_of

#: The id of each provider's connection.
CONN_ID = "bench"

#: Seconds between two polls, of all that poll.
POLL_INTERVAL = 2.0

MakeTrigger = Callable[[str], BaseTrigger]


def invocation_triggers() -> MakeTrigger:
    """Ours. Whether it is pushed to or polls is the server's choice."""
    from airflow_invocations.triggers import InvocationTrigger

    return lambda invocation_id: InvocationTrigger(
        conn_id=CONN_ID, invocation_id=invocation_id, poll_interval=POLL_INTERVAL, stream_logs=False
    )


def log_streaming_triggers() -> MakeTrigger:
    """Ours, with the action's log lines."""
    from airflow_invocations.triggers import InvocationTrigger

    return lambda invocation_id: InvocationTrigger(
        conn_id=CONN_ID, invocation_id=invocation_id, poll_interval=POLL_INTERVAL, stream_logs=True
    )


def dbt_triggers() -> MakeTrigger:
    """The dbt Cloud provider's. Its hook knows https only; here it is spared the TLS."""
    from airflow.providers.dbt.cloud.hooks.dbt import DbtCloudHook
    from airflow.providers.dbt.cloud.triggers.dbt import DbtCloudRunJobTrigger

    address_of = DbtCloudHook.get_request_url_params

    def plain(*arguments: Any, **options: Any) -> tuple[str, dict[str, Any]]:
        url, data = address_of(*arguments, **options)
        return url.replace("https://", "http://", 1), data

    DbtCloudHook.get_request_url_params = staticmethod(plain)  # type: ignore[method-assign]
    return lambda invocation_id: DbtCloudRunJobTrigger(
        conn_id=CONN_ID,
        run_id=number_of(invocation_id),
        end_time=time.time() + 7 * 24 * 3600,
        poll_interval=POLL_INTERVAL,
        account_id=1,
    )


def http_triggers() -> MakeTrigger:
    """The http provider's sensor, deferred."""
    from airflow.providers.http.triggers.http import HttpSensorTrigger

    return lambda invocation_id: HttpSensorTrigger(
        endpoint=f"{PLAIN}{invocation_id}", http_conn_id=CONN_ID, poke_interval=POLL_INTERVAL
    )


TRIGGERS: dict[str, Callable[[], MakeTrigger]] = {
    "ours": invocation_triggers,
    "ours-with-logs": log_streaming_triggers,
    "dbt": dbt_triggers,
    "http": http_triggers,
}


class Holds:
    """For how long a single callback has kept the event loop to itself."""

    def __init__(self) -> None:
        self.worst = 0.0

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Measure each callback of every event loop until the block ends."""
        run = asyncio.Handle._run
        clock = time.perf_counter

        def timed(handle: asyncio.Handle) -> None:
            began = clock()
            run(handle)
            took = clock() - began
            if took > self.worst:
                self.worst = took

        asyncio.Handle._run = timed  # type: ignore[assignment, method-assign]
        try:
            yield
        finally:
            asyncio.Handle._run = run  # type: ignore[method-assign]


class Waits:
    """The waits that are under way, and what became of those that aren't any more."""

    def __init__(self, make: MakeTrigger) -> None:
        self._make = make
        self._tasks: set[asyncio.Task[None]] = set()
        self.fired: dict[str, float] = {}
        self.broken: list[str] = []

    async def start(self, ids: list[str], seconds: float) -> None:
        """Begin to wait for each of these, evenly over a time; in a loop that lags, for many at once."""
        began = time.monotonic()
        started = 0
        while started < len(ids):
            due = len(ids) * (time.monotonic() - began) / seconds if seconds else len(ids)
            for invocation_id in ids[started : int(due) + 1]:
                task = asyncio.create_task(self._wait(invocation_id))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
                started += 1
            await asyncio.sleep(0.001)

    async def stop(self) -> None:
        """Cancel what still waits, as a triggerer that ends does."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _wait(self, invocation_id: str) -> None:
        trigger = self._make(invocation_id)
        try:
            async for event in trigger.run():
                self.fired[invocation_id] = time.time()
                if isinstance(event.payload, dict) and event.payload.get("status") == "error":
                    self.broken.append(f"{invocation_id}: {event.payload}")
                return
        except Exception as error:
            self.broken.append(f"{invocation_id}: {error!r}")


def resident() -> int:
    """Bytes of memory that this process holds, without garbage."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


async def obey(kind: str, answers: int) -> None:
    """Do what stdin says, until it is closed; the answers go to a descriptor."""
    waits, holds = Waits(TRIGGERS[kind]()), Holds()
    commands = asyncio.StreamReader(limit=2**24)
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)

    async def obey_one(command: dict[str, Any]) -> dict[str, Any]:
        match command:
            case {"do": "start", "ids": [*ids], "seconds": float(seconds)}:
                await waits.start(ids, seconds)
                return {}
            case {"do": "look"}:
                return {"clock": time.monotonic(), "cpu": time.process_time(), "hold": holds.worst}
            case {"do": "weigh"}:
                return {"resident": resident()}
            case {"do": "tell"}:
                return {"fired": waits.fired, "broken": waits.broken}
        raise ValueError(f"{command!r} is no command")

    with holds.measured():
        while line := await commands.readline():
            command = json.loads(line)
            answer = await obey_one(command)
            os.write(answers, json.dumps(answer).encode() + b"\n")
            if command["do"] != "start":
                # What obeying cost is not the triggers' doing.
                await asyncio.sleep(0)
                holds.worst = 0.0
        await waits.stop()


def main() -> None:
    # What anything prints must not get among the answers.
    answers = os.dup(1)
    os.dup2(2, 1)
    asyncio.run(obey(sys.argv[1], answers))


if __name__ == "__main__":
    main()
