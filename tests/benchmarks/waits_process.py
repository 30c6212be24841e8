"""The waiting process: triggers of one provider in one event loop, as a triggerer runs them.

It reads commands from stdin and writes a line of JSON for each to stdout. Connections are passed to the
triggers in `AIRFLOW_CONN_*`. No other part of Airflow runs in it: no supervisor, and no log is written,
which helps triggers that log each poll most.
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

#: Connection id of each provider.
CONN_ID = "bench"

#: Poll interval of all triggers that poll, in seconds.
POLL_INTERVAL = 2.0

MakeTrigger = Callable[[str], BaseTrigger]


def invocation_triggers() -> MakeTrigger:
    """This provider's trigger. The server decides between push and polling."""
    from airflow_invocations.triggers import InvocationTrigger

    return lambda invocation_id: InvocationTrigger(
        conn_id=CONN_ID, invocation_id=invocation_id, poll_interval=POLL_INTERVAL, stream_logs=False
    )


def log_streaming_triggers() -> MakeTrigger:
    """This provider's trigger, with the action's log lines."""
    from airflow_invocations.triggers import InvocationTrigger

    return lambda invocation_id: InvocationTrigger(
        conn_id=CONN_ID, invocation_id=invocation_id, poll_interval=POLL_INTERVAL, stream_logs=True
    )


def dbt_triggers() -> MakeTrigger:
    """The dbt Cloud provider's trigger. Its hook supports https only; here it runs without TLS."""
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
    """The deferred sensor of the http provider."""
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
    """The longest callback of an event loop."""

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
    """The active waits, and the results of ended ones."""

    def __init__(self, make: MakeTrigger) -> None:
        self._make = make
        self._tasks: set[asyncio.Task[None]] = set()
        self.fired: dict[str, float] = {}
        self.broken: list[str] = []

    async def start(self, ids: list[str], seconds: float) -> None:
        """Begin waits evenly within some seconds; several at once if the event loop lags."""
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
        """Cancel the active waits, as a triggerer does when it ends."""
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
    """Return this process's memory in bytes, after a garbage collection."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


async def obey(kind: str, answers: int) -> None:
    """Run commands from stdin until it is closed; write the results to a descriptor."""
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
                # The cost of commands isn't that of the triggers.
                await asyncio.sleep(0)
                holds.worst = 0.0
        await waits.stop()


def main() -> None:
    # Other output must not mix with the results.
    answers = os.dup(1)
    os.dup2(2, 1)
    asyncio.run(obey(sys.argv[1], answers))


if __name__ == "__main__":
    main()
