"""Measure the speed of the local server, with the limits measured in the same run.

`python -m tests.benchmarks.server [--quick]` prints a markdown table. Only ratios and limits are
meaningful; absolute numbers depend on the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import psutil
import sqlalchemy as sa

from airflow_invocations.models import (
    CreateActionRequest,
    InvocationRequest,
    InvocationStatus,
    QuerySpecification,
)
from airflow_invocations.server.db import LOCAL_ORG, LOCAL_USER, Store
from airflow_invocations.server.db.claims import ClaimRepository
from airflow_invocations.server.db.database import Database
from airflow_invocations.server.db.tables import events, invocations
from airflow_invocations.server.execution import processes
from airflow_invocations.server.execution.logs import LogFiles
from airflow_invocations.server.execution.workspace import Workspace
from airflow_invocations.server.settings import ServerSettings

from ..integration.conftest import LocalServer
from ..support.waiting import until
from ..unit.server.conftest import prepare, runner_of
from .figures import Figure, Times, table
from .load import Connection, post_many

INVOKE = "v1/actions/bench/invoke"
QUERY = "v1/actions/invocations/query"
WATCH = "v1/actions/invocations/watch"

#: Concurrent requests while requests per second are counted.
CONNECTIONS = 16

#: Commits between Queued and a stored process: the claim, and Processing with the process id.
LAUNCH_COMMITS = 2


@dataclass(frozen=True, slots=True)
class Sizes:
    """The size of each measurement."""

    invokes: int
    rounds: int
    launches: int
    log_bytes: int
    rows: int
    queries: int
    lives: int
    watched: int
    changes: int


FULL = Sizes(
    invokes=1000,
    rounds=5,
    launches=200,
    log_bytes=512_000_000,
    rows=100_000,
    queries=100,
    lives=100_000,
    watched=10_000,
    changes=2000,
)
QUICK = Sizes(
    invokes=50,
    rounds=1,
    launches=5,
    log_bytes=8_000_000,
    rows=1000,
    queries=3,
    lives=200,
    watched=200,
    changes=20,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.server", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="little of each: shows that it runs, no more")
    parser.add_argument("--only", choices=sorted(MEASUREMENTS), action="append", help="only this one")
    options = parser.parse_args(arguments)
    sizes = QUICK if options.quick else FULL
    load = os.getloadavg()[0]
    figures: list[Figure] = []
    for name in options.only or MEASUREMENTS:
        print(f"measuring: {name}", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(prefix="invocations-benchmark-") as folder:
            figures += MEASUREMENTS[name](Path(folder), sizes)
    print(table(figures))
    print(f"\n{os.cpu_count()} processors, load {load:.1f} before, {os.getloadavg()[0]:.1f} after")
    return 0


def measure_invoke(folder: Path, sizes: Sizes) -> list[Figure]:
    """Compare invoke requests per second with those of the bare route, in alternating rounds; use medians."""
    with serving(folder / "data", "--slots", "0") as server, bare(folder / "bare.db") as endpoint:
        create_action(server, ["true"])
        ours: list[float] = []
        theirs: list[float] = []

        def body(number: int) -> dict[str, Any]:
            return {"invocation_source": "Manual", "idempotency_id": f"{len(ours)}-{number}"}

        for _ in range(sizes.rounds):
            rate = asyncio.run(
                post_many(server.endpoint, server.token, INVOKE, body, sizes.invokes, CONNECTIONS)
            )
            ours.append(rate)
            theirs.append(asyncio.run(post_many(endpoint, "", "rows", body, sizes.invokes, CONNECTIONS)))
    mine, peer = statistics.median(ours), statistics.median(theirs)
    return [
        Figure(
            f"invoke, {CONNECTIONS} at once",
            f"{mine:.0f} requests/s",
            f"{peer:.0f} requests/s: a bare FastAPI route, one SQLite row, fsync'd",
            f"{mine / peer:.2f} (at least 0.5)",
            mine / peer >= 0.5,
        )
    ]


def measure_launch(folder: Path, sizes: Sizes) -> list[Figure]:
    """Measure the time from Queued to a stored process; its peers are measured alternately."""
    spawns = asyncio.run(time_spawns(folder, sizes.launches))
    bare_spawn, our_spawn = (Times.of(times) for times in zip(*spawns, strict=True))
    launches = asyncio.run(time_launches(folder, sizes.launches))
    least, launch = (Times.of(times) for times in zip(*launches, strict=True))
    return [
        Figure(
            "spawn: the runner's call that starts the process of `true`",
            str(our_spawn),
            f"{bare_spawn}: subprocess.Popen with the same pipes, session, folder, environment",
            f"{our_spawn.median / bare_spawn.median:.2f} (at most 1.5)",
            our_spawn.median <= 1.5 * bare_spawn.median,
        ),
        Figure(
            "launch: acknowledged as Queued until Processing with its process stored, one slot",
            str(launch),
            f"{least}: one Popen, the workspace's folders and files, {LAUNCH_COMMITS} commits, all bare",
            f"{launch.median / least.median:.2f} (at most 1.5)",
            launch.median <= 1.5 * least.median,
        ),
        Figure(
            "the same launch beside a Popen that nothing is stored of",
            str(launch),
            str(bare_spawn),
            f"{launch.median / bare_spawn.median:.1f}",
            None,
        ),
    ]


def measure_logs(folder: Path, sizes: Sizes) -> list[Figure]:
    """Compare an action that is `cat` of a large file with `cat` into a file."""
    source = folder / "lines"
    line = b"%08d " + b"what an action might say of a frame of a recording, a hundred bytes of it or so " * 2
    block = b"".join(line[:99] % number + b"\n" for number in range(10_000))
    with source.open("wb") as file:
        for _ in range(sizes.log_bytes // len(block)):
            file.write(block)
    size = source.stat().st_size
    began = time.perf_counter()
    with (folder / "copy").open("wb") as copy:
        subprocess.run(["cat", str(source)], stdout=copy, check=True)
    peer = size / (time.perf_counter() - began)
    (folder / "copy").unlink()
    with serving(folder / "data", "--slots", "1") as server:
        create_action(server, ["cat", str(source)])
        record = invoke(server)
        ended = until(lambda: ended_record(server, record["invocation_id"]), within=120)
        assert ended is not None
        assert ended["last_status"] == InvocationStatus.Completed, ended
        kept = (server.data_dir / "logs" / f"{record['invocation_id']}.log").stat().st_size
        assert kept >= size, (kept, size)
    seconds = moment_of(ended, InvocationStatus.Uploading) - moment_of(ended, InvocationStatus.Processing)
    rate, lines = size / seconds, size / 100 / seconds
    return [
        Figure(
            f"log ingest, {size / 1e6:.0f} MB in lines of 100 bytes, Processing to Uploading",
            f"{rate / 1e6:.0f} MB/s, {lines:,.0f} lines/s",
            f"{peer / 1e6:.0f} MB/s: `cat` into a file",
            f"{rate / peer:.2f} of cat (at least 50 MB/s or 200,000 lines/s)",
            rate >= 50e6 or lines >= 200_000,
        )
    ]


def measure_queries(folder: Path, sizes: Sizes) -> list[Figure]:
    """Measure queries for a page of 100 among many invocations, through the database and through HTTP."""
    data_dir = folder / "data"
    ids = fill(data_dir, sizes.rows)
    store = Store(data_dir / "server.db")
    try:
        direct = {
            what: Times.of(list(time_queries(store, specification, sizes.queries)))
            for what, specification in queries_over(ids)
        }
    finally:
        store.close()
    with serving(data_dir, "--slots", "0") as server:
        over_http = {
            what: Times.of(asyncio.run(time_http_queries(server, specification, sizes.queries)))
            for what, specification in queries_over(ids)
        }
    return [
        Figure(
            f"a page of 100 in {sizes.rows:,} invocations, {what}, {how}",
            str(times[what]),
            "10 ms",
            f"{times[what].median * 1e3:.1f} ms (under 10 ms)",
            times[what].median < 0.010,
        )
        for how, times in (("store", direct), ("HTTP", over_http))
        for what in times
    ]


def measure_memory(folder: Path, sizes: Sizes) -> list[Figure]:
    """Measure the memory of the server after few and after many invocations."""
    shared_memory = Path("/dev/shm")
    # In memory, without fsync, which isn't measured here.
    place = shared_memory if shared_memory.is_dir() else folder
    few = sizes.lives // 20

    def body(_: int) -> dict[str, Any]:
        return {"invocation_source": "Manual"}

    with (
        tempfile.TemporaryDirectory(dir=place, prefix="invocations-benchmark-") as data,
        serving(Path(data) / "data", "--slots", "0") as server,
    ):
        create_action(server, ["true"])
        process = psutil.Process(server.process.pid)

        def invoke_more(count: int) -> int:
            asyncio.run(post_many(server.endpoint, server.token, INVOKE, body, count, CONNECTIONS))
            resident: int = process.memory_info().rss
            return resident

        before = invoke_more(few)
        after = invoke_more(sizes.lives - few)
    return [
        Figure(
            f"memory of the server, {sizes.lives:,} invocations waiting",
            f"{after / 1e6:.1f} MB",
            f"{before / 1e6:.1f} MB after {few:,}",
            f"{after / before:.3f} (flat: at most 1.05)",
            after <= 1.05 * before,
        )
    ]


def measure_watch(folder: Path, sizes: Sizes) -> list[Figure]:
    """Measure the time from a status in the database to the watcher: with one client, and with many."""
    ids = fill(folder / "data", sizes.watched, queued=True)
    with serving(folder / "data", "--slots", "0") as server:
        calm, busy = asyncio.run(time_deliveries(server, ids, sizes.changes))
    return [
        Figure(
            f"status change to a watcher of {len(ids):,} ids, {how}",
            str(times),
            "50 ms",
            f"p99 {times.p99 * 1e3:.1f} ms (under 50 ms)",
            times.p99 < 0.050,
        )
        for how, times in (("one at a time", calm), (f"{CONNECTIONS} clients at once", busy))
    ]


MEASUREMENTS: dict[str, Callable[[Path, Sizes], list[Figure]]] = {
    "invoke": measure_invoke,
    "launch": measure_launch,
    "logs": measure_logs,
    "queries": measure_queries,
    "memory": measure_memory,
    "watch": measure_watch,
}


# -- servers and peers -------------------------------------------------------------------------------


@contextmanager
def serving(data_dir: Path, *options: str) -> Iterator[LocalServer]:
    """Run a server process with a data folder until the block ends."""
    server = LocalServer(data_dir, *options)
    server.start()
    try:
        yield server
    finally:
        server.end()


@contextmanager
def bare(database: Path) -> Iterator[str]:
    """Run the bare route in a separate process; yield its endpoint."""
    command = [sys.executable, "-m", f"{__package__}.bare", str(database)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            port = int(process.stdout.readline())
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def create_action(server: LocalServer, command: list[str]) -> None:
    body = {"name": "bench", "container_parameters": {"command": command}}
    server.request("POST", "v1/actions", json=body).raise_for_status()


def invoke(server: LocalServer) -> dict[str, Any]:
    answer = server.request("POST", INVOKE, json={"invocation_source": "Manual"})
    record: dict[str, Any] = answer.raise_for_status().json()["data"]
    return record


def ended_record(server: LocalServer, invocation_id: str) -> dict[str, Any] | None:
    """Wait until an invocation has ended; return its record."""
    record = server.request("GET", f"v1/actions/invocations/{invocation_id}").json()["data"]
    return record if InvocationStatus(record["last_status"]).is_terminal else None


def moment_of(record: dict[str, Any], status: InvocationStatus) -> float:
    """Return when an invocation reached a status, in seconds since 1970."""
    (timestamp,) = (step["timestamp"] for step in record["status"] if step["status"] == status)
    return datetime.fromisoformat(timestamp).timestamp()


# -- launching ---------------------------------------------------------------------------------------


def spawn_bare(folder: Path) -> float:
    """Return the seconds of a Popen of `true`, without waiting for its end."""
    began = time.perf_counter()
    process = subprocess.Popen(
        ["true"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=folder,
        env={"PATH": os.environ["PATH"]},
        start_new_session=True,
    )
    duration = time.perf_counter() - began
    process.communicate()
    return duration


async def time_spawns(folder: Path, count: int) -> list[tuple[float, float]]:
    """Return the seconds of starts of `true`, alternately bare and as the runner does it."""
    environment = {"PATH": os.environ["PATH"]}
    durations = []
    for _ in range(count):
        bare_one = spawn_bare(folder)
        began = time.perf_counter()
        process = processes.start(["true"], folder, environment, lambda _: True, lambda _: True)
        durations.append((bare_one, time.perf_counter() - began))
        await process.exit_code
        await process.last_output(1)
    return durations


def bare_table(database: Path) -> sqlite3.Connection:
    """Create a table of one row in a database with the server's pragmas."""
    connection = sqlite3.connect(database, isolation_level=None, check_same_thread=False)
    for statement in ("PRAGMA journal_mode = WAL", "PRAGMA synchronous = FULL", "CREATE TABLE t (status)"):
        connection.execute(statement)
    connection.execute("INSERT INTO t VALUES (0)")
    return connection


def commit_bare(connection: sqlite3.Connection) -> float:
    """Return the seconds of as many bare transactions as a launch has."""
    began = time.perf_counter()
    for number in range(LAUNCH_COMMITS):
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("UPDATE t SET status = ?", [number])
        connection.execute("COMMIT")
    return time.perf_counter() - began


def make_bare(model: Path, copy: Path) -> float:
    """Return the seconds to create the empty folders and files of a workspace."""
    made = [(path.is_dir(), copy / path.relative_to(model)) for path in sorted(model.rglob("*"))]
    began = time.perf_counter()
    copy.mkdir()
    for is_folder, path in made:
        path.mkdir() if is_folder else path.touch()
    return time.perf_counter() - began


class _ObservedClaims(ClaimRepository):
    """Claims that record when an invocation's process was stored."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.launched: dict[str, float] = {}

    def set_processing(
        self, invocation_id: str, runner: str, process_group: int, process_started: float | None
    ) -> None:
        super().set_processing(invocation_id, runner, process_group, process_started)
        self.launched[invocation_id] = time.perf_counter()


async def time_launches(folder: Path, count: int) -> list[tuple[float, float]]:
    """Return the seconds of a minimal launch, and of a launch of `true`, alternately.

    The minimal launch does the same without the server: it creates a workspace's folders and files, starts a
    process, and commits as many transactions.

    A launch lasts from the acknowledged invocation until its process is stored.
    """
    settings = ServerSettings(folder, slots=1)
    store = Store(settings.database)
    claims = store.claims = _ObservedClaims(store.database)
    store.actions.create(action_of(["true"]), LOCAL_ORG, LOCAL_USER)
    runner = runner_of(store, LogFiles(settings.logs), settings)
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()

    def note_end(committed: Sequence[Any]) -> None:
        if any(event.status.is_terminal for event in committed):
            loop.call_soon_threadsafe(ended.set)

    store.database.listen_to_events(note_end)
    await runner.start("http://127.0.0.1:1")
    durations = []
    workspace = Workspace(folder / "model")
    record = store.invocations.get(await asyncio.to_thread(invoke_in, store))
    prepare(workspace, record, store)
    async with asyncio.timeout(10):
        await ended.wait()
    ended.clear()
    with closing(bare_table(folder / "bare.db")) as peer:
        for number in range(count):
            least = make_bare(workspace.folder, folder / f"bare-{number}") + spawn_bare(folder)
            least += await asyncio.to_thread(commit_bare, peer)
            invocation_id = await asyncio.to_thread(invoke_in, store)
            queued = time.perf_counter()
            async with asyncio.timeout(10):
                await ended.wait()
            ended.clear()
            durations.append((least, claims.launched[invocation_id] - queued))
    await runner.stop()
    store.close()
    return durations


def action_of(command: list[str]) -> CreateActionRequest:
    return CreateActionRequest.model_validate({"name": "bench", "container_parameters": {"command": command}})


def invoke_in(store: Store) -> str:
    request = InvocationRequest.model_validate({"invocation_source": "Manual"})
    return store.invocations.create("bench", request, LOCAL_ORG, LOCAL_USER).invocation_id


# -- queries -----------------------------------------------------------------------------------------

#: The statuses of a successful invocation, and the percentages of other final statuses.
_LIFE = (0, 1, 2, 3, 4, 5)
_BAD_ENDS = {
    InvocationStatus.Failed: 0.02,
    InvocationStatus.Cancelled: 0.01,
    InvocationStatus.Deadly: 0.0002,
}


def fill(data_dir: Path, count: int, *, queued: bool = False) -> list[str]:
    """Store `count` invocations, ended ones with history unless `queued`; return their ids.

    The rows are copies of one that the server itself created, with all its columns.
    """
    data_dir.mkdir()
    store = Store(data_dir / "server.db")
    store.actions.create(action_of(["true"]), LOCAL_ORG, LOCAL_USER)
    invoke_in(store)
    store.close()
    chance = random.Random(1)
    ids = [f"iv_{chance.randbytes(8).hex()}" for _ in range(count)]
    engine = sa.create_engine(f"sqlite:///{data_dir / 'server.db'}")
    with engine.begin() as connection:
        row, event = (_only_row_of(connection, kind) for kind in (invocations, events))
        connection.execute(events.delete())
        connection.execute(invocations.delete())
        begin = row["created"] - count * 1_000_000
        for start in range(0, count, 5000):
            rows: list[dict[str, Any]] = []
            history: list[dict[str, Any]] = []
            for place, invocation_id in enumerate(ids[start : start + 5000], start):
                life = (0,) if queued else _life(chance)
                created = begin + place * 1_000_000
                own = {"invocation_id": invocation_id, "root_id": invocation_id}
                record = row["record"].replace(row["invocation_id"], invocation_id)
                rows.append({**row, **own, "created": created, "last_status": life[-1], "record": record})
                history += (
                    {**event, **own, "status": status, "timestamp": created + step}
                    for step, status in enumerate(life)
                )
            connection.execute(invocations.insert(), rows)
            connection.execute(events.insert(), history)
    engine.dispose()
    return ids


def _only_row_of(connection: sa.Connection, kind: sa.Table) -> dict[str, Any]:
    row = dict(connection.execute(sa.select(kind)).one()._mapping)
    del row["number"]
    return row


def _life(chance: random.Random) -> tuple[int, ...]:
    draw = chance.random()
    for status, share in _BAD_ENDS.items():
        if draw < share:
            return (0, 1, 2, 3, status.value)
        draw -= share
    return _LIFE


def queries_over(ids: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Return the queries for 100 items by name, the same for the database and for HTTP."""

    def where(condition: dict[str, Any]) -> dict[str, Any]:
        return {"condition": condition, "limit": 100}

    def both(*conditions: dict[str, Any]) -> dict[str, Any]:
        return {"operator": "AND", "conditions": list(conditions)}

    def compared(field: str, comparator: str, value: object) -> dict[str, Any]:
        return {"field": field, "comparator": comparator, "value": value}

    some = random.Random(2).sample(ids, 100)
    batch = [compared("invocation_id", "EQUALS", invocation_id) for invocation_id in some]
    yield "by id (100 EQUALS)", where({"operator": "OR", "conditions": batch})
    for status in (InvocationStatus.Completed, InvocationStatus.Failed, InvocationStatus.Deadly):
        yield f"by status ({status})", where(compared("last_status", "EQUALS", status.value))
    active = [compared("last_status", "LESS_THAN", 5)]
    yield "by status (active: none)", where(both(*active))
    present = time.time()
    since, until = (datetime.fromtimestamp(present - len(ids) * part).astimezone() for part in (0.6, 0.5))
    inside = [
        compared("created", "GREATER_THAN_OR_EQUAL", since.isoformat()),
        compared("created", "LESS_THAN", until.isoformat()),
    ]
    yield "by time (a tenth in the middle)", where(both(*inside))
    yield "by time and status (Failed)", where(both(*inside, compared("last_status", "EQUALS", 998)))


def time_queries(store: Store, specification: dict[str, Any], count: int) -> Iterator[float]:
    for _ in range(count):
        began = time.perf_counter()
        store.invocations.query(QuerySpecification.model_validate(specification), LOCAL_ORG)
        yield time.perf_counter() - began


async def time_http_queries(server: LocalServer, specification: dict[str, Any], count: int) -> list[float]:
    durations = []
    async with Connection(server.endpoint, server.token) as connection:
        await connection.post(QUERY, specification)
        for _ in range(count):
            began = time.perf_counter()
            await connection.post(QUERY, specification)
            durations.append(time.perf_counter() - began)
    return durations


# -- watching ----------------------------------------------------------------------------------------


async def time_deliveries(server: LocalServer, ids: Sequence[str], changes: int) -> tuple[Times, Times]:
    """Return the seconds from an event's time (before its commit) until the watcher has received it.

    First with one client that waits for each delivery, then with many clients that don't.
    """
    headers = {"Authorization": f"Bearer {server.token}"}
    chance = random.Random(3)
    async with httpx.AsyncClient(headers=headers, timeout=60) as client:
        body = {"ids": list(ids)}
        async with client.stream("POST", f"{server.endpoint}/{WATCH}", json=body) as answer:
            told = events_of(answer)
            known = 0
            async for name, _ in told:
                known += name == "status"
                if name == "ready":
                    break
            assert known == len(ids), (known, len(ids))
            chosen = chance.sample(ids, min(changes, len(ids)))
            half = len(chosen) // 2
            calm = await deliveries(server, told, chosen[:half], connections=1)
            busy = await deliveries(server, told, chosen[half:], connections=CONNECTIONS)
    return Times.of(calm), Times.of(busy)


async def deliveries(
    server: LocalServer, told: AsyncIterator[tuple[str, dict[str, Any]]], ids: Sequence[str], connections: int
) -> list[float]:
    """Cancel all invocations; return the seconds until each change was received."""
    remaining = iter(ids)

    async def cancel_on_one() -> None:
        async with Connection(server.endpoint, server.token) as connection:
            for invocation_id in remaining:
                await connection.post(f"v1/actions/invocations/{invocation_id}/cancel", {})

    durations: list[float] = []
    missing = set(ids)
    async with asyncio.TaskGroup() as group, asyncio.timeout(120):
        for _ in range(connections):
            group.create_task(cancel_on_one())
        async for name, data in told:
            if name == "status":
                durations.append(time.time() - datetime.fromisoformat(data["timestamp"]).timestamp())
                missing.remove(data["invocation_id"])  # a KeyError: received twice
                if not missing:
                    break
    return durations


async def events_of(answer: httpx.Response) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    """Yield the events of a stream, by name."""
    name = ""
    async for line in answer.aiter_lines():
        key, _, value = line.partition(": ")
        if key == "event":
            name = value
        elif key == "data":
            yield name, json.loads(value)


if __name__ == "__main__":
    sys.exit(main())
