"""The demo: a real Airflow invokes an action on sensor files, and both sides show the result."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.panel import Panel
from rich.status import Status
from rich.table import Table

from .local_server import LocalServer, LocalServerError
from .standalone import RETRY_TIMEOUT, AirflowError, StandaloneAirflow

DAG_ID = "sensor_anomalies"
MAPPED_TASK = "find_anomalies"
RESULTS_TASK = "results"
CONN_ID = "roboto_default"

#: Longest duration of the DAG run, in seconds.
RUN_TIMEOUT = 300.0

#: Lines of a task's log in the report.
LOG_LINES = 8

_INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_ACTION_LOGGER = "airflow_invocations.action"


class DemoError(Exception):
    """The demo ran with a wrong result."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The invocation for one file, as Airflow sees it."""

    file: str
    map_index: int
    state: str
    #: Result of the task; None if it has none.
    result: dict[str, Any] | None
    #: Seconds from the task's start to its end, including its deferral.
    task_seconds: float

    @property
    def action_seconds(self) -> float | None:
        """Seconds from the action's start to its end."""
        if not self.result or not self.result.get("started") or not self.result.get("ended"):
            return None
        started, ended = (datetime.datetime.fromisoformat(self.result[key]) for key in ("started", "ended"))
        return (ended - started).total_seconds()


def run_demo(*, keep: bool, folder: Path | None) -> int:
    """Run the demo and return its exit code.

    :param keep: leave Airflow running until Ctrl-C.
    :param folder: folder of all data; None: ./.demo.
    """
    console = Console()
    home = (folder or Path.cwd() / ".demo").resolve()
    with _interrupt_once():
        try:
            _run(console, home, keep=keep)
        except KeyboardInterrupt:
            console.print("stopped")
            return 0 if keep else 130
        except (AirflowError, LocalServerError, DemoError, httpx.HTTPError) as error:
            console.print(f"[bold red]The demo failed[/] with {type(error).__name__}")
            console.print(str(error), markup=False, highlight=False, soft_wrap=True)
            if isinstance(error, httpx.HTTPError):
                console.print(f"(log of Airflow: {home / 'airflow' / 'standalone.log'})", soft_wrap=True)
            return 1
    return 0


def _run(console: Console, home: Path, *, keep: bool) -> None:
    here = Path(__file__).parent
    server = LocalServer(home / "server", here / "actions", slots=3)
    with _locked(home), server, console.status("starting the local server") as status:
        server.start()
        console.print(
            f"[green]✓[/] started the local server at {server.endpoint}; data in {server.data_dir}",
            soft_wrap=True,
        )
        connection = {"conn_type": "roboto", "host": server.endpoint, "password": server.token}
        with (
            StandaloneAirflow(home / "airflow", _dags(here), {CONN_ID: connection}) as airflow,
            _shielded_exit(),
        ):
            _start(console, status, airflow)
            run_id = airflow.trigger(DAG_ID)
            console.print(f"[green]✓[/] triggered DAG {DAG_ID}, run {run_id}")
            status.stop()
            _follow(console, airflow, run_id)
            _report(console, airflow, server, run_id, keep=keep)
            if keep:
                _keep_running(console, airflow)


def _start(console: Console, status: Status, airflow: StandaloneAirflow) -> None:
    started_at = time.monotonic()

    def show_progress(missing: str) -> None:
        elapsed = time.monotonic() - started_at
        status.update(f"starting Airflow ({elapsed:.0f} s); waiting for: {missing}")

    show_progress("all components")
    airflow.start(show_progress)
    status.update(f"waiting until DAG {DAG_ID} is parsed")
    airflow.wait_for_dag(DAG_ID)
    console.print(f"[green]✓[/] started Airflow at {airflow.url} in {time.monotonic() - started_at:.0f} s")


def _follow(console: Console, airflow: StandaloneAirflow, run_id: str) -> None:
    """Show the run's tasks until it has ended; without a terminal, print each change of a state."""
    states: dict[str, str] = {}
    with Live(console=console, refresh_per_second=4, transient=True) as live:
        for instances in airflow.watch(DAG_ID, run_id, RUN_TIMEOUT):
            table = Table(
                "task", "state", "last line of the action", title=f"{DAG_ID} {run_id}", min_width=90
            )
            for instance in sorted(
                instances, key=lambda each: (each["start_date"] or "~", each["map_index"])
            ):
                name, state = _name(instance), instance["state"] or "-"
                table.add_row(escape(name), state, escape(_last_line(airflow, run_id, instance)))
                if not console.is_terminal and states.get(name) != state:
                    console.print(f"  {name}: {state}", markup=False, highlight=False)
                states[name] = state
            live.update(table)


def _last_line(airflow: StandaloneAirflow, run_id: str, instance: dict[str, Any]) -> str:
    if instance["task_id"] != MAPPED_TASK or instance["state"] not in ("deferred", "running"):
        return ""
    try:
        lines = _action_lines(airflow, run_id, instance["map_index"], timeout=0.0)
    except (AirflowError, httpx.HTTPError):  # the log file isn't complete; the next poll shows it
        return ""
    return lines[-1]["event"] if lines else ""


def _action_lines(
    airflow: StandaloneAirflow, run_id: str, map_index: int, timeout: float = RETRY_TIMEOUT
) -> list[dict[str, Any]]:
    log = airflow.task_log(DAG_ID, run_id, MAPPED_TASK, map_index=map_index, timeout=timeout)
    return [line for line in log if line.get("logger") == _ACTION_LOGGER]


def _report(
    console: Console, airflow: StandaloneAirflow, server: LocalServer, run_id: str, *, keep: bool
) -> None:
    """Print the report. Raises DemoError if a result is wrong."""
    outcomes = [
        _outcome(airflow, run_id, instance)
        for instance in airflow.task_instances(DAG_ID, run_id)
        if instance["task_id"] == MAPPED_TASK
    ]
    outcomes.sort(key=lambda outcome: outcome.map_index)
    console.print(table_of(outcomes))
    _require_success(airflow, run_id, outcomes)
    shown = outcomes[0]
    _show_log(console, airflow, run_id, shown)
    _show_provenance(console, shown)
    _show_results(console, server.folder_of(airflow.xcom(DAG_ID, run_id, RESULTS_TASK)), outcomes)
    where = f"{airflow.url}/dags/{DAG_ID}/runs/{run_id}"
    hint = "" if keep else "  (stopped; keep it running with `invocations demo --keep`)"
    console.print(f"[bold]In Airflow's UI[/]  {where}{hint}", highlight=False, soft_wrap=True)


def _show_results(console: Console, dataset: Path, outcomes: list[Outcome]) -> None:
    """Print the path of each file's plot. Raises DemoError if a plot or report is missing."""
    console.print(f"[bold]Reports and plots[/] in dataset {dataset.name}", highlight=False)
    for outcome in outcomes:
        folder = dataset / Path(outcome.file).stem
        missing = [name for name in ("anomalies.png", "report.json") if not (folder / name).is_file()]
        if missing:
            raise DemoError(f"{outcome.file}: {' and '.join(missing)} not found in {folder}")
        console.print(f"  {folder / 'anomalies.png'}", highlight=False, soft_wrap=True)


def _outcome(airflow: StandaloneAirflow, run_id: str, instance: dict[str, Any]) -> Outcome:
    map_index = instance["map_index"]
    return Outcome(
        file=instance.get("rendered_map_index") or str(map_index),
        map_index=map_index,
        state=instance["state"],
        result=airflow.xcom(DAG_ID, run_id, MAPPED_TASK, map_index=map_index),
        task_seconds=float(instance["duration"] or 0.0),
    )


def table_of(outcomes: list[Outcome]) -> Table:
    """Return the table of results: file, invocation, status, time of the action, time added by Airflow."""
    table = Table(title="Invocations")
    for heading in ("file", "invocation", "status"):
        table.add_column(heading, no_wrap=True)
    for heading in ("action", "added by Airflow"):
        table.add_column(heading, justify="right")
    for outcome in outcomes:
        result, seconds = outcome.result or {}, outcome.action_seconds
        table.add_row(
            outcome.file,
            result.get("invocation_id", "-"),
            result.get("status", outcome.state),
            "-" if seconds is None else f"{seconds:.1f} s",
            "-" if seconds is None else f"{outcome.task_seconds - seconds:.1f} s",
        )
    return table


def _require_success(airflow: StandaloneAirflow, run_id: str, outcomes: list[Outcome]) -> None:
    state = airflow.dag_run(DAG_ID, run_id)["state"]
    completed = all(each.result and each.result["status"] == "Completed" for each in outcomes)
    if state == "success" and outcomes and completed:
        return
    failed = [each for each in airflow.task_instances(DAG_ID, run_id) if each["state"] == "failed"]
    reasons = [_failure_reason(airflow, run_id, instance) for instance in failed]
    raise DemoError("\n".join([f"the DAG run ended as {state}", *(reasons or [airflow.log_tail()])]))


def _failure_reason(airflow: StandaloneAirflow, run_id: str, instance: dict[str, Any]) -> str:
    """Return why a task failed: the action's last lines, the exceptions, and the path of the log."""
    task = (DAG_ID, run_id, instance["task_id"], instance["try_number"], instance["map_index"])
    log = airflow.task_log(*task)
    output = [line["event"] for line in log if line.get("logger") == _ACTION_LOGGER]
    errors = [
        f"{error['exc_type']}: {error['exc_value']}"
        for line in log
        for error in line.get("error_detail") or ()
    ]
    lines = [*output[-3:], *(errors or [line["event"] for line in log[-5:]])]
    return "\n  ".join([f"{_name(instance)}:", *lines, f"(from {airflow.task_log_file(*task)})"])


def _show_log(console: Console, airflow: StandaloneAirflow, run_id: str, outcome: Outcome) -> None:
    lines = _action_lines(airflow, run_id, outcome.map_index)
    if not lines:
        raise DemoError(f"the task log for {outcome.file} has no line of the action")
    text = "\n".join(
        f"{str(line.get('timestamp', ''))[11:23]}  {line['event'][:110]}" for line in lines[:LOG_LINES]
    )
    console.print(
        Panel(escape(text), title=f"Task log for {outcome.file}: lines of the action", expand=False)
    )


def _show_provenance(console: Console, outcome: Outcome) -> None:
    provenance = (outcome.result or {}).get("provenance", {})
    text = json.dumps(provenance, indent=2)
    title = f"Provenance of {(outcome.result or {}).get('invocation_id')}"
    console.print(Panel(escape(text), title=title, expand=False))


def _keep_running(console: Console, airflow: StandaloneAirflow) -> None:
    user, password = airflow.login
    console.print(f"[bold]Log in[/] at {airflow.url} as {user} with password {password}; stop with Ctrl-C.")
    while True:
        signal.pause()


def _name(instance: dict[str, Any]) -> str:
    index = instance["map_index"]
    if index < 0:
        return str(instance["task_id"])
    return f"{instance['task_id']}[{instance.get('rendered_map_index') or index}]"


def _dags(here: Path) -> Path:
    """Return the folder of example DAGs: beside the code in a wheel, at the top level in a checkout."""
    for folder in (here / "dags", here.parents[2] / "dags"):
        if (folder / f"{DAG_ID}.py").is_file():
            return folder
    raise DemoError(f"DAG {DAG_ID} is not installed with the package (searched {here})")


@contextlib.contextmanager
def _locked(home: Path) -> Iterator[None]:
    """Lock the folder. Raises DemoError if another demo runs in it."""
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (home / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DemoError(
                f"a demo already runs in {home}; stop it, or choose another folder with --folder"
            ) from error
        yield


@contextlib.contextmanager
def _interrupt_once() -> Iterator[None]:
    """Raise KeyboardInterrupt on SIGTERM and SIGHUP too, but only once, as stopping takes seconds."""

    def interrupt(*_: object) -> None:
        _ignore_interrupts()
        raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in _INTERRUPTS}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _shielded_exit() -> Iterator[None]:
    """Ignore interrupts after the block, while everything is stopped."""
    try:
        yield
    finally:
        _ignore_interrupts()


def _ignore_interrupts() -> None:
    for number in _INTERRUPTS:
        signal.signal(number, signal.SIG_IGN)
