"""The demo's last screen, and that what it starts is ended whole."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import psutil
from rich.console import Console

from airflow_invocations.demo import standalone
from airflow_invocations.demo.run import Outcome, table_of


def test_the_table_tells_the_actions_time_from_airflows() -> None:
    result = {
        "invocation_id": "iv_1",
        "status": "Completed",
        "started": "2026-01-31T12:00:00+00:00",
        "ended": "2026-01-31T12:00:15.900000+00:00",
    }
    outcomes = [
        Outcome("sf-temps.csv", 0, "success", result, 19.0),
        Outcome("broken.csv", 1, "failed", None, 5.0),
    ]
    printed = io.StringIO()
    Console(width=120, file=printed).print(table_of(outcomes))
    text = printed.getvalue()
    first = next(line for line in text.splitlines() if "sf-temps.csv" in line)
    assert [cell.strip() for cell in first.strip("│").split("│")] == [
        "sf-temps.csv", "iv_1", "Completed", "15.9 s", "3.1 s",
    ]  # fmt: skip
    second = next(line for line in text.splitlines() if "broken.csv" in line)
    assert "failed" in second


def test_free_ports_differ() -> None:
    assert len(set(standalone._free_ports(5))) == 5


def test_a_session_is_ended_whole_also_what_its_leader_has_left_behind() -> None:
    # The leader starts a child that ignores SIGTERM, says its pid, and ends at once.
    script = (
        "import subprocess, sys; "
        "child = subprocess.Popen([sys.executable, '-c', "
        '"import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "'
        '"print(flush=True); time.sleep(60)"'
        "], stdout=subprocess.PIPE); child.stdout.readline(); print(child.pid, flush=True)"
    )
    leader = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, start_new_session=True, text=True
    )
    assert leader.stdout is not None
    child = psutil.Process(int(leader.stdout.readline()))
    assert os.getsid(child.pid) == leader.pid
    grace, standalone.STOP_GRACE = standalone.STOP_GRACE, 0.5
    try:
        standalone._end_session(leader)
    finally:
        standalone.STOP_GRACE = grace
        leader.stdout.close()
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
    assert leader.returncode is not None
