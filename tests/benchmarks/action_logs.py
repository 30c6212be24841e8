"""Measure what action logs cost a triggerer: its CPU time and the delay of ends, with and without lines.

`python -m tests.benchmarks.action_logs [--waits 2000] [--lines 400] [--writers 40] [--seconds 60]
[--provider FOLDER] [--quick]`: a real `airflow triggerer` on PostgreSQL (INVOCATIONS_TEST_POSTGRES), in which
`--waits` waits are deferred. Some of them end at random times, first without log lines, then while other
actions write `--lines` lines per second in total. The lines in the log files, and those that the worker
would show, are then compared with the written ones. `--provider` makes the triggerer use another
version of the provider.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import secrets
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import psutil
import sqlalchemy as sa

from airflow_invocations.action_log import ShownLog

from ..integration.conftest import LocalServer
from ..system.conftest import SystemServer
from ..system.kill_matrix.components import Component
from ..system.kill_matrix.deployment import POSTGRES, create_database, drop_database
from ..system.real_triggerer import RealTriggerer
from ..system.test_action_logs import connection_to, invoke, rest_of
from .figures import Figure, Times, table
from .server import fill

#: Largest ratio of an end's delay with lines to that without.
BOUND = 1.5

#: Writes its lines at an even rate with their times, once a file exists.
_WRITER = """
import os, sys, time
go, count, pause = (os.environ[f"ROBOTO_PARAM_{name}"] for name in ("go", "count", "pause"))
count, pause = int(count), float(pause)
print("ready", flush=True)
while not os.path.exists(go):
    time.sleep(0.2)
began = time.time()
for number in range(count):
    print(f"{time.time():.6f} line {number} of an action that has much to say", flush=True)
    time.sleep(max(0.0, began + (number + 1) * pause - time.time()))
"""

WRITER = {
    "name": "writer",
    "parameters": [{"name": name, "required": True} for name in ("go", "count", "pause")],
    "container_parameters": {"command": [sys.executable, "-c", _WRITER]},
}


@dataclass(frozen=True, slots=True)
class Plan:
    """The size of the measurement."""

    waits: int
    #: Lines per second of all writers, the number of writers, and the seconds for which they write.
    lines: int
    writers: int
    seconds: float
    #: Number of ends in each of the two windows.
    ends: int


@dataclass(frozen=True, slots=True)
class Window:
    """The figures of one window of time."""

    #: Seconds from each end to its task instance.
    delays: Times
    #: CPU seconds per minute: of the triggerer with its runner, and of the runner alone.
    cpu: float
    cpu_of_runner: float


@dataclass(frozen=True, slots=True)
class Lines:
    """The result of comparing the lines."""

    written: int
    live: int
    lost: int
    twice: int
    #: Seconds from writing a line to its task's log file, for lines that were shown live.
    delays: Times


class Quiet:
    """A server with invocations that stay queued until they are ended one by one."""

    def __init__(self, server: LocalServer, ids: Sequence[str]) -> None:
        self.server = server
        self.ids = list(ids)
        self.left = list(ids)

    def end_some(self, count: int, seconds: float) -> dict[str, datetime]:
        """End `count` invocations at random times; return when each ended, by the server's clock."""
        chosen = [self.left.pop(random.randrange(len(self.left))) for _ in range(count)]
        moments = sorted(random.uniform(0, seconds) for _ in chosen)
        began = time.monotonic()
        for invocation_id, moment in zip(chosen, moments, strict=True):
            time.sleep(max(0.0, began + moment - time.monotonic()))
            self.server.request("POST", f"v1/actions/invocations/{invocation_id}/cancel").raise_for_status()
        time.sleep(max(0.0, began + seconds - time.monotonic()))
        return {each: self._ended(each) for each in chosen}

    def _ended(self, invocation_id: str) -> datetime:
        record = self.server.request("GET", f"v1/actions/invocations/{invocation_id}").json()["data"]
        return max(datetime.fromisoformat(step["timestamp"]) for step in record["status"])


def measure_on_sqlite(plan: Plan, provider: Path | None) -> tuple[Window, Window, Lines]:
    """Run once without PostgreSQL: without lines, then with lines."""
    with tempfile.TemporaryDirectory(prefix="action-logs-") as folder:
        return _measure(plan, Path(folder), None, provider)


def measure(plan: Plan, provider: Path | None) -> tuple[Window, Window, Lines]:
    """Run once: without lines, then with lines."""
    database = f"action_logs_{secrets.token_hex(4)}"
    create_database(database)
    url = sa.make_url(POSTGRES).set(drivername="postgresql+psycopg2", database=database)
    try:
        with tempfile.TemporaryDirectory(prefix="action-logs-") as folder:
            return _measure(plan, Path(folder), url.render_as_string(hide_password=False), provider)
    finally:
        drop_database(database)


def _measure(
    plan: Plan, folder: Path, database: str | None, provider: Path | None
) -> tuple[Window, Window, Lines]:
    ids = fill(folder / "quiet", plan.waits, queued=True)
    still = LocalServer(folder / "quiet", "--slots", "0")
    still.start()
    actions = folder / "actions"
    (actions / "writer").mkdir(parents=True)
    (actions / "writer" / "action.json").write_text(json.dumps(WRITER))
    try:
        with SystemServer(folder / "writers", actions, slots=plan.writers) as server:
            server.start()
            connections = {
                "quiet": {"conn_type": "roboto", "host": still.endpoint, "password": still.token},
                "writers": connection_to(server),
            }
            os.environ["AIRFLOW_CONN_WRITERS"] = json.dumps(connections["writers"])
            with RealTriggerer(folder / "airflow", connections, database, provider) as airflow:
                return _run(plan, folder, airflow, Quiet(still, ids), server)
    finally:
        still.kill()


def _run(
    plan: Plan, folder: Path, airflow: RealTriggerer, quiet: Quiet, server: SystemServer
) -> tuple[Window, Window, Lines]:
    go = folder / "go"
    count = int(plan.lines * plan.seconds / plan.writers)
    parameters = {"go": str(go), "count": str(count), "pause": str(plan.writers / plan.lines)}
    writers = [invoke(server, "writer", parameters) for _ in range(plan.writers)]
    # The first task instances are those of the writers.
    airflow.wait_for([("writers", each) for each in writers] + [("quiet", each) for each in quiet.ids])
    triggerer = airflow.start()
    numbers = range(plan.writers)
    airflow.until("first lines", lambda: all(airflow.log(number) for number in numbers), patience=600)
    airflow.until("waits", lambda: _open_ids(quiet.server) >= 1, patience=600)
    time.sleep(10 + plan.waits / 500)
    without = _window(plan, airflow, triggerer, quiet)
    began_lines = {number: len(airflow.log(number)) for number in numbers}
    assert set(began_lines.values()) == {1}, began_lines
    live = _Tail(airflow, plan.writers)
    go.touch()
    with_lines = _window(plan, airflow, triggerer, quiet, live)
    airflow.until("the writers' ends", lambda: set(numbers) <= airflow.ended().keys(), patience=600)
    return without, with_lines, _count(airflow, writers, count, live)


class _Tail:
    """Return when each line was first seen in a log file."""

    def __init__(self, airflow: RealTriggerer, writers: int) -> None:
        self._files = {number: airflow.log_folder(number) for number in range(writers)}
        self._offsets: dict[Path, int] = {}
        self.delays: list[float] = []

    def look(self) -> None:
        now = time.time()
        for folder in self._files.values():
            for file in folder.glob("attempt=1.log.trigger.*.log"):
                offset = self._offsets.get(file, 0)
                with file.open("rb") as opened:
                    opened.seek(offset)
                    added = opened.read()
                whole = added[: added.rfind(b"\n") + 1]
                self._offsets[file] = offset + len(whole)
                for line in whole.splitlines():
                    text = json.loads(line).get("event", "")
                    if " line " in text:
                        self.delays.append(now - float(text.partition(" ")[0]))


def _window(
    plan: Plan, airflow: RealTriggerer, triggerer: Component, quiet: Quiet, live: _Tail | None = None
) -> Window:
    before, began = _cpu(triggerer), time.monotonic()
    ended: dict[str, datetime] = {}
    # In slices of a second, to read log files between them.
    slices = max(1, int(plan.seconds / 0.5))
    counts = Counter(random.randrange(slices) for _ in range(plan.ends))
    for number in range(slices):
        ended |= quiet.end_some(counts[number], 0.5)
        if live is not None:
            live.look()
    after, minutes = _cpu(triggerer), (time.monotonic() - began) / 60

    def all_ended() -> Mapping[str, datetime] | None:
        if live is not None:
            live.look()
        arrived = {each.event["invocation_id"]: each.moment for each in airflow.ended().values()}
        return arrived if ended.keys() <= arrived.keys() else None

    arrived = airflow.until("ends", all_ended, patience=600)
    return Window(
        Times.of([(arrived[each] - moment).total_seconds() for each, moment in ended.items()]),
        (after[0] - before[0]) / minutes,
        (after[1] - before[1]) / minutes,
    )


def _cpu(triggerer: Component) -> tuple[float, float]:
    """Return the CPU seconds of the triggerer's processes, and of the runner, which has no child."""
    leader = psutil.Process(triggerer.session)
    tree = [leader, *leader.children(recursive=True)]
    times = [sum(process.cpu_times()[:2]) for process in tree]
    return sum(times), times[-1]


def _open_ids(server: LocalServer) -> float:
    text = server.request("GET", "metrics").text
    values = [
        line.rpartition(" ")[2] for line in text.splitlines() if "open_watches" in line and line[0] != "#"
    ]
    return float(values[0]) if values else 0.0


def _count(airflow: RealTriggerer, writers: Sequence[str], count: int, live: _Tail) -> Lines:
    ended = airflow.ended()
    lost = twice = shown_live = 0
    for number, invocation_id in enumerate(writers):
        shown = [record["event"] for record in airflow.log(number)]
        shown_live += len(shown) - 1
        rest = rest_of(invocation_id, ShownLog.from_event(ended[number].event), "writers")
        seen = Counter(shown + rest)
        written = rest_of(invocation_id, ShownLog(), "writers")
        lost += sum(1 for line in written if line not in seen)
        twice += sum(times - 1 for times in seen.values())
    return Lines(len(writers) * count, shown_live, lost, twice, Times.of(live.delays or [0.0]))


def figures_of(plan: Plan, without: Window, with_lines: Window, lines: Lines) -> list[Figure]:
    """Return the rows of the table."""
    scenario = f"{plan.lines:,} lines/s of {plan.writers} actions, {plan.waits:,} waits"
    rows = []
    for name, late, early in (
        ("p50", with_lines.delays.median, without.delays.median),
        ("p99", with_lines.delays.p99, without.delays.p99),
    ):
        ratio = late / early
        rows.append(
            Figure(
                f"a quiet wait's end to its task instance, {name}, {scenario}",
                f"{late:.2f} s",
                f"without lines {early:.2f} s",
                f"{ratio:.2f} (at most {BOUND:g})",
                ratio <= BOUND,
            )
        )
    rows += [
        Figure(
            f"CPU s a minute, triggerer's tree / runner, {scenario}",
            f"{with_lines.cpu:.1f} / {with_lines.cpu_of_runner:.1f}",
            f"without lines {without.cpu:.1f} / {without.cpu_of_runner:.1f}",
            "",
            None,
        ),
        Figure(
            f"lines lost / shown twice, {scenario}",
            f"{lines.lost} / {lines.twice} of {lines.written:,}",
            "",
            "0 / 0",
            not (lines.lost or lines.twice),
        ),
        Figure(
            f"a line to the log file, p50 / p99, of {lines.live:,} shown live, {scenario}",
            f"{lines.delays.median:.1f} / {lines.delays.p99:.1f} s",
            "",
            "",
            None,
        ),
    ]
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.action_logs", description=__doc__)
    parser.add_argument("--waits", type=int, default=2_000)
    parser.add_argument("--lines", type=int, default=400)
    parser.add_argument("--writers", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--provider", type=Path)
    parser.add_argument("--quick", action="store_true", help="little of each, on SQLite: shows that it runs")
    options = parser.parse_args(arguments)
    # End the processes and drop the database after an interrupt too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    load = os.getloadavg()[0]
    if options.quick:
        plan = Plan(waits=20, lines=40, writers=4, seconds=3.0, ends=4)
        without, with_lines, lines = measure_on_sqlite(plan, options.provider)
    else:
        plan = Plan(options.waits, options.lines, options.writers, options.seconds, ends=60)
        without, with_lines, lines = measure(plan, options.provider)
    figures = figures_of(plan, without, with_lines, lines)
    print(table(figures))
    print(f"\n{os.cpu_count()} processors, load {load:.1f} before, {os.getloadavg()[0]:.1f} after")
    if options.quick:
        return 1 if lines.lost or lines.twice else 0
    return 0 if all(figure.ok is not False for figure in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
