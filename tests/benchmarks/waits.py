"""Measure the cost of waiting for 1,000 or 10,000 invocations, and the delay of their ends.

`python -m tests.benchmarks.waits [--waits 1000,10000] [--only push] [--airflow]` prints a markdown table. Our
trigger waits with a push stream and with batched polling; the peers are the dbt Cloud trigger and the http
provider's sensor. All have the same setup: one waiting process with one event loop, one server in
memory in a separate process (waits_server.py), polls every 2 s, plain HTTP. The local server is also
measured as the server that pushes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import httpx

from airflow_invocations.models import InvocationRecord

from ..integration.conftest import LocalServer
from ..support.waiting import until
from .figures import Figure, Times, table
from .load import Connection
from .server import fill, serving
from .waits_process import CONN_ID, POLL_INTERVAL
from .waits_server import CONTROL, invocation_id_of

#: Longest wait for any event, in seconds.
PATIENCE = 90.0


@dataclass(frozen=True, slots=True)
class Plan:
    """Duration and size of the measurement."""

    #: Seconds without ends, during which requests and CPU are counted, and then seconds with ends.
    window: float = 25.0
    #: Number of ends at random times in the second window.
    ends: int = 200
    #: Seconds to settle after all waits have begun.
    settle: float = 5.0
    #: Kinds measured at the same time; with more than one the figures are meaningless.
    at_once: int = 1


QUICK = Plan(window=3.0, ends=5, settle=1.0, at_once=2)


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of trigger and its server."""

    name: str
    #: Name of the triggers (waits_process.TRIGGERS).
    triggers: str
    conn_type: str
    #: Whether the server has the watch stream.
    pushes: bool = False
    #: Whether the server is the local server.
    local_server: bool = False
    #: The required figures.
    must_reach: str | None = None


PUSH, BATCHED = "push", "batched polling"

KINDS = {
    "push": Kind("push", "ours", "roboto", pushes=True, must_reach=PUSH),
    "service": Kind(
        "push by the local server", "ours", "roboto", pushes=True, local_server=True, must_reach=PUSH
    ),
    "batched": Kind("batched polling", "ours", "roboto", must_reach=BATCHED),
    "logs": Kind("push, logs wanted", "ours-with-logs", "roboto", pushes=True),
    "dbt": Kind("dbt", "dbt", "dbt_cloud"),
    "http": Kind("http sensor", "http", "http"),
}
PEERS = ("dbt", "http")


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits for a number of waits: requests/s, % of a core, kB, seconds."""

    requests: float
    cpu: float
    memory: float
    p50: float
    p99: float
    #: Longest callback of the event loop with 1,000 waits, in seconds.
    hold: float | None = None


WANTED = {
    (PUSH, 1_000): Limits(0.2, 2, 10, 0.050, 0.300, 0.050),
    (PUSH, 10_000): Limits(0.2, 5, 10, 0.100, 0.500),
    (BATCHED, 1_000): Limits(0.6, 4, 10, 1.2, 2.5, 0.050),
    (BATCHED, 10_000): Limits(6, 20, 10, 1.5, 3.0),
}


@dataclass(frozen=True, slots=True)
class Measured:
    """The figures of a number of waits of one kind."""

    waits: int
    #: Requests per second while nothing ends.
    requests: float
    #: Requests per ended invocation.
    requests_per_end: float
    #: % of a core while nothing ends, and while some invocations end.
    cpu: float
    cpu_ending: float
    #: kB per wait after the first.
    memory: float
    #: Seconds from an end to its TriggerEvent.
    delays: Times
    #: Longest callback: with the first wait, while others begin, while nothing ends, while some end.
    holds: tuple[float, float, float, float]
    ended: int
    untold: int
    #: Waits that fired early, reported an error, or failed.
    false: int

    @property
    def is_right(self) -> bool:
        """Return whether exactly the ends were reported."""
        return not self.untold and not self.false


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.waits", description=__doc__)
    parser.add_argument("--waits", help="how many, such as 1000,10000 (which is the default)")
    parser.add_argument("--only", choices=sorted(KINDS), action="append", help="only this one")
    parser.add_argument("--quick", action="store_true", help="little of each: shows that it runs, no more")
    parser.add_argument(
        "--airflow", action="store_true", help="instead: from an end to the task's success, in a real Airflow"
    )
    options = parser.parse_args(arguments)
    load = os.getloadavg()[0]
    if options.airflow:
        from .waits_airflow import measure_airflow

        figures = measure_airflow()
    else:
        plan = QUICK if options.quick else Plan()
        sizes = options.waits or ("20" if options.quick else "1000,10000")
        figures = measure_waits(
            [int(size) for size in sizes.split(",")],
            options.only or [name for name in KINDS if name != "logs"],
            plan,
        )
    print(table(figures))
    print(f"\n{os.cpu_count()} processors, load {load:.1f} before, {os.getloadavg()[0]:.1f} after")
    return 0


def measure_waits(sizes: Sequence[int], kinds: Sequence[str], plan: Plan) -> list[Figure]:
    """Measure every kind at every size in turn."""
    figures: list[Figure] = []
    for waits in sizes:
        with ThreadPoolExecutor(plan.at_once) as pool:
            measured = pool.map(partial(measure, waits=waits, plan=plan), (KINDS[name] for name in kinds))
            figures += figures_of(waits, dict(zip(kinds, measured, strict=True)))
    return figures


def measure(kind: Kind, waits: int, plan: Plan) -> Measured:
    """Measure a number of waits of one kind, from their beginning until some of them have ended."""
    print(f"measuring: {waits:,} waits, {kind.name}", file=sys.stderr, flush=True)
    with (
        tempfile.TemporaryDirectory(prefix="waits-benchmark-") as folder,
        server_for(kind, waits, Path(folder)) as server,
        Waiter(kind, server, Path(folder) / "errors") as waiter,
    ):
        first, *others = server.ids
        waiter.start([first], 0.0)
        server.wait_until_asked(1)
        time.sleep(plan.settle)
        alone = waiter.look()
        weight_of_one = waiter.weigh()
        # Evenly over at least one poll interval: after a burst, polls would stay synchronised.
        waiter.start(others, max(POLL_INTERVAL, waits / 1000))
        server.wait_until_asked(waits)
        time.sleep(plan.settle)
        begun = waiter.look()
        added = (waiter.weigh() - weight_of_one) / 1e3 / max(1, len(others))

        requests, look = server.requests(), waiter.look()
        time.sleep(plan.window)
        idle, asked = waiter.look(), server.requests() - requests
        ended = server.end(random.sample(server.ids, min(plan.ends, waits)), plan.window)
        ending, asked_ending = waiter.look(), server.requests() - requests - asked
        told = waiter.wait_until_told(ended)
        broken = {line.partition(":")[0] for line in waiter.broken}
        early = {each for each, moment in told.items() if moment < ended.get(each, math.inf)}
        for line in waiter.broken[:3]:
            print(f"  {line}", file=sys.stderr)

    rate = asked / idle.since(look)
    during = ending.since(idle)
    return Measured(
        waits=waits,
        requests=rate,
        requests_per_end=max(0.0, asked_ending - rate * during) / len(ended),
        cpu=idle.cpu_since(look),
        cpu_ending=ending.cpu_since(idle),
        memory=added,
        delays=Times.of(
            [told[each] - ended[each] for each in ended.keys() & told.keys() - early - broken] or [math.inf]
        ),
        holds=(alone.hold, begun.hold, idle.hold, ending.hold),
        ended=len(ended),
        untold=len(ended.keys() - told.keys()),
        false=len(early | broken),
    )


# -- the table ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Aspect:
    """The rows of the table for each kind: figure, format and limit."""

    what: str
    said: Callable[[Measured], str]
    wanted: Callable[[Limits], str] = lambda _: ""
    met: Callable[[Measured, Limits], bool | None] = lambda *_: None


ASPECTS = (
    Aspect(
        "requests/s while nothing ends (and for each end)",
        lambda measured: f"{measured.requests:.2f} ({measured.requests_per_end:.2f})",
        lambda limits: f"at most {limits.requests:g}",
        lambda measured, limits: measured.requests <= limits.requests,
    ),
    Aspect(
        "CPU of the waiting process while nothing ends (while some do)",
        lambda measured: f"{measured.cpu:.1f}% ({measured.cpu_ending:.1f}%)",
        lambda limits: f"at most {limits.cpu:g}%",
        lambda measured, limits: measured.cpu <= limits.cpu,
    ),
    Aspect(
        "memory added by each wait",
        lambda measured: f"{measured.memory:.1f} kB",
        lambda limits: f"at most {limits.memory:g} kB",
        lambda measured, limits: measured.memory <= limits.memory,
    ),
    Aspect(
        "an end to its event, p50 / p99",
        lambda measured: (
            f"{seconds(measured.delays.median)} / {seconds(measured.delays.p99)}"
            + (f", {measured.untold} of {measured.ended} never" if measured.untold else "")
            + (f", {measured.false} false" if measured.false else "")
        ),
        lambda limits: f"at most {seconds(limits.p50)} / {seconds(limits.p99)}",
        lambda measured, limits: (
            measured.is_right and measured.delays.median <= limits.p50 and measured.delays.p99 <= limits.p99
        ),
    ),
    Aspect(
        "the loop's longest callback: one wait / more begin / wait / end",
        lambda measured: " / ".join(seconds(hold) for hold in measured.holds),
        lambda limits: "" if limits.hold is None else f"at most {seconds(limits.hold)}, but for the first",
        # The first wait of a process includes the lazy imports of Airflow and httpx.
        lambda measured, limits: None if limits.hold is None else max(measured.holds[1:]) <= limits.hold,
    ),
)


def figures_of(waits: int, measured: Mapping[str, Measured]) -> Iterator[Figure]:
    """Return the rows for one number of waits, with the peers' figures."""
    peers = {name: measured[name] for name in PEERS if name in measured}
    ours = {name: each for name, each in measured.items() if name not in peers}
    for aspect in ASPECTS:
        beside = "; ".join(f"{KINDS[name].name} {aspect.said(each)}" for name, each in peers.items())
        for name, each in (ours or peers).items():
            what = f"{aspect.what}, {waits:,} waits, {KINDS[name].name}"
            limits = WANTED.get((KINDS[name].must_reach or "", waits))
            yield Figure(
                what,
                aspect.said(each),
                beside if ours else "",
                aspect.wanted(limits) if limits else "",
                aspect.met(each, limits) if limits else None,
            )


def seconds(duration: float) -> str:
    """Format a duration."""
    return f"{duration:.2f} s" if duration >= 1 else f"{duration * 1e3:.0f} ms"


# -- servers -----------------------------------------------------------------------------------------


class Server(ABC):
    """A server with invocations to wait for and to end."""

    endpoint: str
    token = "benchmark"
    ids: list[str]

    @abstractmethod
    def requests(self) -> int:
        """Return the number of requests, without the benchmark's own."""

    @abstractmethod
    def wait_until_asked(self, count: int) -> None:
        """Wait until `count` invocations are awaited, or the timeout has passed."""

    @abstractmethod
    def end(self, ids: Sequence[str], within: float) -> dict[str, float]:
        """End invocations at random times within some seconds; return when each ended."""


class InMemory(Server):
    """The server in memory."""

    def __init__(self, port: int, count: int) -> None:
        self.endpoint = f"http://127.0.0.1:{port}"
        self.ids = [invocation_id_of(number) for number in range(count)]
        self._client = httpx.Client(base_url=self.endpoint, trust_env=False, timeout=60)

    def requests(self) -> int:
        count: int = self._control("counts")["requests"]
        return count

    def wait_until_asked(self, count: int) -> None:
        # Triggers that are too slow may never get that far; missing events are counted.
        deadline = time.monotonic() + PATIENCE
        while self._control("counts")["asked"] < count and time.monotonic() < deadline:
            time.sleep(0.2)

    def end(self, ids: Sequence[str], within: float) -> dict[str, float]:
        self._control("end", {"ids": ids, "seconds": within})
        time.sleep(within)
        until(lambda: self._control("counts")["to_end"] == 0, within=60)
        ended: dict[str, float] = self._control("ended")["ended"]
        return ended

    def _control(self, what: str, order: object = None) -> dict[str, Any]:
        answer: dict[str, Any] = self._client.post(f"{CONTROL}{what}", json=order).raise_for_status().json()
        return answer


class Real(Server):
    """The local server, with invocations that it doesn't run."""

    def __init__(self, service: LocalServer, ids: list[str]) -> None:
        self._service = service
        self.endpoint, self.token = service.endpoint, service.token
        self.ids = ids
        self._own = 0

    def requests(self) -> int:
        return int(self._sum("invocations_http_requests_total", '"/v1/')) - self._own

    def wait_until_asked(self, count: int) -> None:
        # All waits have joined the watcher when its number of requests is constant.
        quiet_since, last = time.monotonic(), -1

        def all_joined() -> bool:
            nonlocal quiet_since, last
            if (requests := self.requests()) != last or not self._sum("invocations_open_watches"):
                quiet_since, last = time.monotonic(), requests
            return time.monotonic() - quiet_since > 2

        until(all_joined, within=120)

    def end(self, ids: Sequence[str], within: float) -> dict[str, float]:
        asyncio.run(self._cancel(ids, within))
        ended = {}
        for invocation_id in ids:
            answer = self._service.request("GET", f"v1/actions/invocations/{invocation_id}")
            record = InvocationRecord.model_validate(answer.raise_for_status().json()["data"])
            assert record.current.status.is_terminal, record
            ended[invocation_id] = record.current.timestamp.timestamp()
        self._own += 2 * len(ids)
        return ended

    async def _cancel(self, ids: Sequence[str], within: float) -> None:
        moments = sorted(random.uniform(0, within) for _ in ids)
        began = time.monotonic()
        async with Connection(self.endpoint, self.token) as connection:
            for invocation_id, moment in zip(ids, moments, strict=True):
                await asyncio.sleep(max(0.0, began + moment - time.monotonic()))
                await connection.post(f"v1/actions/invocations/{invocation_id}/cancel", {})

    def _sum(self, metric: str, part: str = "") -> float:
        """Return the sum of a metric over the labels that contain `part`."""
        text = self._service.request("GET", "metrics").raise_for_status().text
        lines = (line for line in text.splitlines() if line.startswith(metric) and part in line)
        return sum(float(line.rpartition(" ")[2]) for line in lines)


@contextmanager
def server_for(kind: Kind, count: int, folder: Path) -> Iterator[Server]:
    """Run a server process with a number of invocations."""
    if kind.local_server:
        ids = fill(folder / "data", count, queued=True)
        with serving(folder / "data", "--slots", "0") as service:
            yield Real(service, ids)
        return
    command = [sys.executable, "-m", f"{__package__}.waits_server", str(count)]
    if not kind.pushes:
        command.append("--without-watch")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield InMemory(int(process.stdout.readline()), count)
        finally:
            process.terminate()


# -- the waiting process -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Look:
    """The state of the waiting process at one time."""

    clock: float
    #: CPU seconds so far.
    cpu: float
    #: Longest callback since the previous sample, in seconds.
    hold: float

    def since(self, earlier: Look) -> float:
        """Return the seconds between two samples."""
        return self.clock - earlier.clock

    def cpu_since(self, earlier: Look) -> float:
        """Return the CPU usage between two samples, in % of a core."""
        return 100 * (self.cpu - earlier.cpu) / self.since(earlier)


class Waiter:
    """The waiting process (waits_process.py), from its start to its end."""

    def __init__(self, kind: Kind, server: Server, errors: Path) -> None:
        self._errors = errors
        self.broken: list[str] = []
        host = server.endpoint if kind.conn_type != "dbt_cloud" else server.endpoint.partition("://")[2]
        connection = {"conn_type": kind.conn_type, "host": host, "password": server.token}
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")},
            "AIRFLOW_HOME": str(errors.with_name("airflow")),
            "AIRFLOW__LOGGING__LOGGING_LEVEL": "ERROR",
            f"AIRFLOW_CONN_{CONN_ID.upper()}": json.dumps(connection),
        }
        with errors.open("w") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", f"{__package__}.waits_process", kind.triggers],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                env=environment,
                text=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def start(self, ids: Sequence[str], seconds: float) -> None:
        """Add waits, which begin evenly within some seconds."""
        self._tell({"do": "start", "ids": ids, "seconds": seconds})

    def look(self) -> Look:
        """Return its state."""
        return Look(**self._tell({"do": "look"}))

    def weigh(self) -> int:
        """Return its memory in bytes, after a garbage collection."""
        resident: int = self._tell({"do": "weigh"})["resident"]
        return resident

    def wait_until_told(self, ids: Collection[str]) -> dict[str, float]:
        """Return when each event was fired; wait for those of the given ids."""
        deadline = time.monotonic() + PATIENCE
        while True:
            told = self._tell({"do": "tell"})
            self.broken = told["broken"]
            fired: dict[str, float] = told["fired"]
            if set(ids) <= fired.keys() or time.monotonic() > deadline:
                return fired
            time.sleep(0.5)

    def _tell(self, command: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        if not (line := self._process.stdout.readline()):
            raise RuntimeError(f"the waiting process ended: {self._errors.read_text()[-2000:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer


if __name__ == "__main__":
    sys.exit(main())
