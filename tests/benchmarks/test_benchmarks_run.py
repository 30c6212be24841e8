"""The benchmarks and the soak run without violations; speed isn't checked here."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]

Run = subprocess.Popen[str]


@pytest.fixture(scope="module")
def runs() -> Iterator[dict[str, Run]]:
    """Start all benchmarks as commands and at the same time, because each mostly waits."""
    commands = {
        "soak": ["--kills", "3", "--seed", "1"],
        "server": ["--quick"],
        "workerless": ["--quick"],
        "parsing": ["--quick"],
        "waits": ["--quick", "--only", "push", "--only", "batched", "--only", "dbt"],
    }
    started = {
        module: subprocess.Popen(
            [sys.executable, "-m", f"tests.benchmarks.{module}", *options],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for module, options in commands.items()
    }
    yield started
    for run in started.values():
        run.kill()
        run.communicate()


def printed_by(run: Run) -> str:
    printed, _ = run.communicate(timeout=280)
    assert run.returncode == 0, printed
    return printed


def test_soak_loses_nothing_in_a_few_kills(runs: dict[str, Run]) -> None:
    lines = printed_by(runs["soak"]).splitlines()
    figures = {
        name.strip(): int(count)
        for name, _, count in (line.rpartition(" ") for line in lines[1:])
        if count.isdecimal()
    }
    assert figures["kills"] >= 3
    assert figures["invocations acknowledged"] > 0
    assert figures["acknowledged and lost"] == figures["ran again after its end"] == 0


def test_every_figure_is_measured(runs: dict[str, Run]) -> None:
    printed = printed_by(runs["server"])
    for what in ("invoke", "spawn", "launch", "log ingest", "a page of 100", "memory", "status change"):
        assert f"| {what}" in printed


def test_waits_receive_their_ends_and_poll_in_batches(runs: dict[str, Run]) -> None:
    lines = printed_by(runs["waits"]).splitlines()
    rows = dict(line.split(" | ")[:2] for line in lines if ", 20 waits, " in line)
    for how in ("push", "batched polling"):
        told = rows[f"| an end to its event, p50 / p99, 20 waits, {how}"]
        assert "never" not in told
        assert "false" not in told
        requests = rows[f"| requests/s while nothing ends (and for each end), 20 waits, {how}"]
        # With one request per wait every 2 s it would be 10.
        assert float(requests.partition(" ")[0]) < 3


def test_tasks_without_workers_end(runs: dict[str, Run]) -> None:
    assert "| 8 unmapped tasks without workers | " in printed_by(runs["workerless"])


def test_parsing_is_measured(runs: dict[str, Run]) -> None:
    printed, _ = runs["parsing"].communicate(timeout=200)
    assert "| importing the operators in a DAG file | " in printed


def test_line_of_an_action_is_neither_lost_nor_shown_twice() -> None:
    """Runs last and alone, because other benchmarks would slow its triggerer down."""
    run = subprocess.Popen(
        [sys.executable, "-m", "tests.benchmarks.action_logs", "--quick"],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    rows = [line for line in printed_by(run).splitlines() if "lost / shown twice" in line]
    assert ["0 / 0 of 120" in row for row in rows] == [True]
