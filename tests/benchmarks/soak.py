"""Kill the local server with SIGKILL at random times, repeatedly, while all kinds of invocations run.

`python -m tests.benchmarks.soak [--kills N] [--seed N]` prints the counts; exit code 1 after a violation.
Clients retry their requests during restarts, as the provider does; a watcher
reads all changes of the organisation and resumes at its cursor.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import socket
import sqlite3
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import psutil
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from airflow_invocations.models import InvocationStatus
from airflow_invocations.server.execution.workspace import INVOCATION_VARIABLE

from ..integration.conftest import LocalServer
from ..support.waiting import until

SLOTS = 6
CLIENTS = 4

#: Timeout of a request, in seconds, also while a busy machine restarts the server.
ANSWER_WITHIN = 180.0

#: Largest number of active invocations; clients wait for the end of one before they start another.
MOST_ACTIVE = 24

#: Longest life of the server after its start, in seconds.
LONGEST_LIFE = 3.0

#: Share of lives that are killed before they serve, during the recovery.
KILLED_STARTING = 0.25

#: Longest time until all invocations have ended after the last kill, in seconds.
LAST_ENDS = 120.0

#: Actions append a line at their beginning and end: mark, invocation, process, time.
_MARK = 'echo "$1 $ROBOTO_INVOCATION_ID $$ $(date +%s.%N)" >> "$MARKS"'

#: The kinds of actions, and their commands between the marks. A grandchild outlives its parent, inside and
#: outside of the process group.
KINDS = {
    "instant": "mark end",
    "short": "sleep 0.4; mark end",
    "failing": "mark end; echo it broke >&2; exit 3",
    "long": "sleep 900 & setsid sleep 900 & sleep 1; mark end",
    "cancelled": "sleep 900 & sleep 900; mark end",
    "stubborn": "trap '' TERM; sleep 900 & while :; do sleep 900; done; mark end",
}
#: Kinds that never end; a client cancels them.
CANCELLED = frozenset({"cancelled", "stubborn"})


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the soak; return 1 after a violation."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.soak", description=__doc__)
    parser.add_argument("--kills", type=int, default=200, metavar="N")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6), metavar="N")
    options = parser.parse_args(arguments)
    folder = Path(tempfile.mkdtemp(prefix="invocations-soak-"))
    soak = Soak(folder, random.Random(options.seed))
    began = time.monotonic()
    try:
        soak.run(options.kills)
    finally:
        soak.clean_up()
    print(f"seed {options.seed}, {time.monotonic() - began:.0f} s")
    for name, count in soak.figures():
        print(f"{name:<48}{count:>7}")
    for violation in soak.violations[:40]:
        print(f"VIOLATION {violation}")
    if soak.violations:
        print(f"left for a closer look: {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


@dataclass(slots=True)
class Asked:
    """One idempotency id with its request and the acknowledged invocation."""

    idempotency_id: str
    kind: str
    #: All invocation ids in responses; more than one is a violation.
    acknowledged: set[str] = field(default_factory=set)
    cancel_acknowledged: bool = False

    @property
    def invocation_id(self) -> str:
        return next(iter(self.acknowledged))


class Soak:
    """One server over many lives, its clients and watcher, and what they received."""

    def __init__(self, folder: Path, chance: random.Random) -> None:
        self._folder = folder
        self._chance = chance
        self._marks = folder / "marks"
        self._marks.touch()
        port = str(free_port())
        options = ["--port", port, "--slots", str(SLOTS), "--grace", "0.3", "--actions", str(folder / "acts")]
        self._server = LocalServer(folder / "data", *options)
        self._endpoint = f"http://127.0.0.1:{port}"
        self._asked: list[Asked] = []
        self._over = threading.Event()
        self._room = threading.Semaphore(MOST_ACTIVE)
        self._watcher = Watcher(self)
        self.violations: list[str] = []
        self._count: Counter[str] = Counter()
        self._known_strays: set[psutil.Process] = set()
        self._write_actions(folder / "acts")

    def run(self, kills: int) -> None:
        """Kill several lives, let the last one finish all invocations, then check everything."""
        self._start()
        clients = [threading.Thread(target=self._ask_until_over, args=[number]) for number in range(CLIENTS)]
        watching = threading.Thread(target=self._watcher.watch)
        for thread in (*clients, watching):
            thread.start()
        try:
            self._kill(kills)
        finally:
            self._over.set()
            for _ in clients:
                self._room.release()
            for thread in clients:
                thread.join()
            self._await_ends()
            self._watcher.stop()
        self._look_at_history()
        self._server.stop()  # which ends the watcher's stream
        watching.join()
        for process in self._server.action_processes():
            if process not in self._known_strays:
                self._violate("processes after the server's end", described(process))

    def figures(self) -> Iterator[tuple[str, int]]:
        """Return the counts by name."""
        for name in (
            "kills",
            "  of these while starting",
            "invocations acknowledged",
            *(f"  {kind}" for kind in KINDS),
            "requests that had to be repeated",
            "attempts",
            "times lost with the server",
            *(f"ended {status}" for status in InvocationStatus if status.is_terminal),
            "status changes told to the watcher",
            "times the watcher opened its stream",
            *MUST_BE_NONE,
        ):
            yield name, self._count[name]

    def clean_up(self) -> None:
        """End all remaining processes."""
        self._over.set()
        self._watcher.stop()
        if self._server.is_running:
            self._server.kill()
        for process in self._server.action_processes():
            process.kill()

    # -- lives of the server -------------------------------------------------------------------------

    def _write_actions(self, folder: Path) -> None:
        for kind, script in KINDS.items():
            (folder / kind).mkdir(parents=True)
            whole = f"mark() {{ {_MARK}; }}; mark begin; {script}"
            container = {"command": ["sh", "-c", whole], "env_vars": {"MARKS": str(self._marks)}}
            action = json.dumps({"name": kind, "container_parameters": container})
            (folder / kind / "action.json").write_text(action)

    def _start(self) -> None:
        self._server.start()
        self._look_at_new_life()

    def _kill(self, kills: int) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=Console(stderr=True)) as progress:
            shown = progress.add_task("kills", total=kills)
            while self._count["kills"] < kills:
                if self._count["kills"] + 1 < kills and self._chance.random() < KILLED_STARTING:
                    self._kill_while_starting()
                else:
                    self._over.wait(self._chance.uniform(0, LONGEST_LIFE))
                    self._server.kill()
                    self._count["kills"] += 1
                    self._start()
                done = f"{len(self._asked)} invocations, {len(self.violations)} violations"
                progress.update(shown, completed=self._count["kills"], description=done)

    def _kill_while_starting(self) -> None:
        self._server.kill()
        self._count["kills"] += 1
        # The recovery of the previous life is the last fifth of a start.
        instant = self._chance.uniform(0.5, 1.2) * self._usual_start
        killer = threading.Timer(instant, lambda: self._server.process.send_signal(signal.SIGKILL))
        began = time.monotonic()
        killer.start()
        try:
            self._server.start()
        except AssertionError:  # killed before it served
            killer.join()
            self._server.process.wait()
            if self._server.process.returncode != -signal.SIGKILL:
                raise
            self._count["  of these while starting"] += 1
        else:
            self._usual_start = time.monotonic() - began
            killer.join()
            self._server.process.wait()
        self._count["kills"] += 1
        self._start()

    #: Duration of a start in seconds, measured during the run.
    _usual_start = 2.5

    def _look_at_new_life(self) -> None:
        """Check that nothing of an earlier life runs or is owned when a new one serves."""
        began = psutil.Process(self._server.process.pid).create_time()
        for process in self._server.action_processes():
            try:
                earlier = process.create_time() < began - 0.02
                if earlier and process not in self._known_strays:
                    self._known_strays.add(process)
                    self._violate("processes of an earlier life", described(process))
            except psutil.NoSuchProcess:
                continue
        mine = f"runner-{self._server.process.pid}-%"
        claimed = "last_status BETWEEN 1 AND 4 AND (owner IS NULL OR owner NOT LIKE ?)"
        query = f"SELECT invocation_id, last_status, owner FROM invocations WHERE {claimed}"
        for row in self._rows(query, mine):
            self._violate("claimed without an owner that lives", f"{row}")

    def _await_ends(self) -> None:
        """Wait until all acknowledged invocations have ended; others are violations."""
        if not self._server.is_running:
            return
        active = "SELECT invocation_id, last_status, owner FROM invocations WHERE last_status < 5"
        try:
            until(lambda: not self._rows(active), within=LAST_ENDS)
        except AssertionError:
            for row in self._rows(active):
                self._violate("never ended", f"{row}")

    # -- clients -------------------------------------------------------------------------------------

    def _ask_until_over(self, client: int) -> None:
        chance = random.Random(self._chance.random())
        with httpx.Client(base_url=self._endpoint, timeout=10) as http:
            number = 0
            while not self._over.is_set():
                self._room.acquire(timeout=60)
                asked = Asked(f"soak-{client}-{number}", chance.choice(list(KINDS)))
                number += 1
                self._asked.append(asked)
                self._invoke(http, asked)
                if asked.kind in CANCELLED and asked.acknowledged:
                    self._over.wait(chance.uniform(0, 1))  # at any step
                    asked.cancel_acknowledged = self._cancel(http, asked)
                if chance.random() < 0.2:  # a client whose response was lost repeats the request much later
                    self._invoke(http, chance.choice(self._asked))

    def _invoke(self, http: httpx.Client, asked: Asked) -> None:
        body = {"invocation_source": "Manual", "idempotency_id": asked.idempotency_id}
        answer = self._until_answered(
            lambda: http.post(f"v1/actions/{asked.kind}/invoke", **self._with(body))
        )
        if answer is not None:
            asked.acknowledged.add(answer["invocation_id"])

    def _cancel(self, http: httpx.Client, asked: Asked) -> bool:
        path = f"v1/actions/invocations/{asked.invocation_id}/cancel"
        return self._until_answered(lambda: http.post(path, **self._with({}))) is not None

    def _with(self, body: dict[str, Any]) -> dict[str, Any]:
        return {"json": body, "headers": {"Authorization": f"Bearer {self._server.token}"}}

    def _until_answered(self, send: Callable[[], httpx.Response]) -> dict[str, Any] | None:
        """Repeat a request until there is a response; None: the soak has ended."""
        end = time.monotonic() + ANSWER_WITHIN
        while time.monotonic() < end:
            try:
                answer = send()
            except httpx.TransportError:
                self._count["requests that had to be repeated"] += 1
                time.sleep(0.02)  # poll until the port is open again
                continue
            if answer.status_code != 200:
                self._violate("rejected", f"{answer.request.url}: {answer.status_code} {answer.text[:200]}")
                return None
            record: dict[str, Any] = answer.json()["data"]
            return record
        self._violate("never answered", f"a request, for {ANSWER_WITHIN:g} s")
        return None

    def ended(self) -> None:
        """Record that an invocation has ended, so that another can start."""
        self._room.release()

    # -- final checks --------------------------------------------------------------------------------

    def _look_at_history(self) -> None:
        history = self._history()
        begins, ends = self._marked()
        by_asked: defaultdict[str, list[str]] = defaultdict(list)
        for invocation_id, life in history.items():
            by_asked[life.idempotency_id].append(invocation_id)
        for asked in self._asked:
            self._count["invocations acknowledged"] += bool(asked.acknowledged)
            self._count[f"  {asked.kind}"] += bool(asked.acknowledged)
            for invocation_id in asked.acknowledged - history.keys():
                self._violate("acknowledged and lost", invocation_id)
            if len(asked.acknowledged | set(by_asked[asked.idempotency_id])) > 1:
                self._violate("invoked twice", f"{asked} {by_asked[asked.idempotency_id]}")
            if asked.cancel_acknowledged and asked.invocation_id in history:
                life = history[asked.invocation_id]
                if life.status is not InvocationStatus.Cancelled and life.losses < 3:
                    self._violate("cancelled and not Cancelled", f"{asked} {life}")
        for invocation_id, life in history.items():
            self._look_at_life(invocation_id, life, begins[invocation_id], ends[invocation_id])
        for invocation_id in begins.keys() - history.keys():
            self._violate("ran without being known", invocation_id)
        self._look_at_watcher()

    def _look_at_life(self, invocation_id: str, life: Life, begins: list[float], ends: list[float]) -> None:
        self._count["attempts"] += life.attempts
        self._count["times lost with the server"] += life.losses
        self._count[f"ended {life.status}"] += 1
        seen = f"{invocation_id} {life} begins {begins} ends {ends}"
        if not life.status.is_terminal:
            self._violate("never ended", seen)
            return
        if any(begin > life.ended_at for begin in begins) or life.went_on:
            self._violate("ran again after its end", seen)
        if len(begins) > life.attempts or len(ends) > life.attempts:
            self._violate("ran more often than attempted", seen)
        if (life.status is InvocationStatus.Deadly) != (life.losses == 3) or life.losses != life.lost_events:
            self._violate("Deadly, but not exactly when lost three times", seen)
        if life.status in (InvocationStatus.Completed,) and not ends:
            self._violate("Completed without having come to its end", seen)
        if (life.status is InvocationStatus.Failed) != (life.kind == "failing" and bool(ends)) and (
            life.status is not InvocationStatus.Deadly
        ):
            self._violate("Failed without an exit code, or the other way round", seen)

    def _history(self) -> dict[str, Life]:
        steps: defaultdict[str, list[Step]] = defaultdict(list)
        query = "SELECT invocation_id, status, detail, timestamp, passing FROM events ORDER BY number"
        for invocation_id, status, detail, timestamp, passing in self._rows(query):
            steps[invocation_id].append(
                Step(InvocationStatus(status), detail or "", timestamp / 1e6, bool(passing))
            )
        query = "SELECT invocation_id, idempotency_id, action_name, attempt, losses FROM invocations"
        return {
            invocation_id: Life(asked, kind, attempt, losses, steps[invocation_id])
            for invocation_id, asked, kind, attempt, losses in self._rows(query)
        }

    def _marked(self) -> tuple[defaultdict[str, list[float]], defaultdict[str, list[float]]]:
        marks: dict[str, defaultdict[str, list[float]]] = {
            "begin": defaultdict(list),
            "end": defaultdict(list),
        }
        for line in self._marks.read_text().splitlines():
            which, invocation_id, _, moment = line.split()
            marks[which][invocation_id].append(float(moment))
        return marks["begin"], marks["end"]

    def _look_at_watcher(self) -> None:
        """Check that the watcher received each visible change once, in order, over all restarts."""
        query = "SELECT number FROM events WHERE passing = 0 ORDER BY number"
        stored = [number for (number,) in self._rows(query)]
        told = self._watcher.told
        self._count["status changes told to the watcher"] = len(told)
        self._count["times the watcher opened its stream"] = self._watcher.opened
        if told != stored[: len(told)] or len(told) < len(stored):
            missed, twice = len(set(stored) - set(told)), len(told) - len(set(told))
            self._violate("changes missed or told twice", f"{missed} missed, {twice} twice")

    def _rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(self._folder / "data" / "server.db", timeout=30)) as connection:
            return connection.execute(query, values).fetchall()

    def _violate(self, what: str, detail: str) -> None:
        self._count[what] += 1
        self.violations.append(f"{what}: {detail}")

    # -- watcher -------------------------------------------------------------------------------------

    def open_watch(self, http: httpx.Client, since: int) -> Any:
        """Open the stream of all changes after event `since`."""
        body = {"since": since}
        return http.stream("POST", f"{self._endpoint}/v1/actions/invocations/watch", **self._with(body))

    def last_event(self) -> int:
        """Return the number of the last visible change."""
        ((number,),) = self._rows("SELECT max(number) FROM events WHERE passing = 0")
        return number or 0


MUST_BE_NONE = (
    "acknowledged and lost",
    "invoked twice",
    "ran again after its end",
    "ran more often than attempted",
    "never ended",
    "claimed without an owner that lives",
    "processes of an earlier life",
    "processes after the server's end",
    "ran without being known",
    "cancelled and not Cancelled",
    "Completed without having come to its end",
    "Failed without an exit code, or the other way round",
    "Deadly, but not exactly when lost three times",
    "changes missed or told twice",
    "rejected",
    "never answered",
)


@dataclass(frozen=True, slots=True)
class Step:
    """One stored event."""

    status: InvocationStatus
    detail: str
    moment: float
    passing: bool


@dataclass(frozen=True, slots=True)
class Life:
    """One invocation in the database."""

    idempotency_id: str
    kind: str
    attempts: int
    losses: int
    steps: list[Step]

    @property
    def status(self) -> InvocationStatus:
        return self.steps[-1].status

    @property
    def lost_events(self) -> int:
        lost = "the server stopped while this invocation ran"
        return sum(step.status is InvocationStatus.Failed and step.detail == lost for step in self.steps)

    @property
    def _end(self) -> int:
        """Return the position of the first visible terminal event."""
        return next(
            place for place, step in enumerate(self.steps) if step.status.is_terminal and not step.passing
        )

    @property
    def ended_at(self) -> float:
        return self.steps[self._end].moment

    @property
    def went_on(self) -> bool:
        """Return whether a visible event follows the first terminal one."""
        return self._end < len(self.steps) - 1


class Watcher:
    """Reads all changes of the organisation, and resumes after the last received one."""

    def __init__(self, soak: Soak) -> None:
        self._soak = soak
        self._stopped = threading.Event()
        self._answer: httpx.Response | None = None
        self.told: list[int] = []
        self.opened = 0

    def watch(self) -> None:
        """Read until `stop`, or until all changes have been received."""
        with httpx.Client(timeout=20) as http:
            while not self._stopped.is_set():
                try:
                    with self._soak.open_watch(http, self.told[-1] if self.told else 0) as answer:
                        self.opened += 1
                        self._read(answer)
                except httpx.TransportError:
                    self._stopped.wait(0.02)

    def stop(self) -> None:
        """Read the changes up to now."""
        if not self._stopped.is_set() and (last := self._soak.last_event()):
            end = time.monotonic() + 10
            while (not self.told or self.told[-1] < last) and time.monotonic() < end:
                time.sleep(0.01)
        self._stopped.set()

    def _read(self, answer: httpx.Response) -> None:
        for line in answer.iter_lines():
            if line.startswith("data: ") and '"status"' in line:
                data = json.loads(line.removeprefix("data: "))
                self.told.append(data["number"])
                if InvocationStatus(data["status"]).is_terminal:
                    self._soak.ended()
            if self._stopped.is_set():
                return


def described(process: psutil.Process) -> str:
    """Format a process: its command and invocation."""
    try:
        mine = process.environ().get(INVOCATION_VARIABLE)
        since = datetime.fromtimestamp(process.create_time()).time()
        return f"{process.pid} {process.cmdline()} of {mine} since {since}, parent {process.ppid()}"
    except psutil.Error:
        return f"{process.pid}"


def free_port() -> int:
    """Return an unused port."""
    with socket.socket() as some:
        some.bind(("127.0.0.1", 0))
        port: int = some.getsockname()[1]
        return port


if __name__ == "__main__":
    sys.exit(main())
