"""Sessions: all processes are ended, also orphans and those of a killed demo."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from airflow_invocations.demo.session import Session

#: Starts a process in a separate group, prints its pid, and waits or exits.
PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {child!r}], process_group=0, stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
{then}
"""

TERMINATES = "import sys, time; print('up', flush=True); time.sleep(60)"
IGNORES_SIGTERM = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + TERMINATES


@pytest.fixture
def started(tmp_path: Path) -> Iterator[list[Session]]:
    sessions: list[Session] = []
    yield sessions
    for session in sessions:
        session.stop(0.1)


def start(sessions: list[Session], folder: Path, child: str, then: str) -> tuple[Session, psutil.Process]:
    """Start a session; return it and the child that its command has started."""
    log = folder / "log"
    fifo = subprocess.Popen(["mkfifo", str(log)])
    assert fifo.wait() == 0
    reader = subprocess.Popen(["cat", str(log)], stdout=subprocess.PIPE, text=True)
    session = Session([sys.executable, "-c", PARENT.format(child=child, then=then)], folder, log)
    sessions.append(session)
    session.start(1)
    assert reader.stdout is not None
    with reader.stdout, reader:
        pid = int(reader.stdout.readline())
        reader.kill()
    return session, psutil.Process(pid)


def test_child_in_another_process_group_is_ended(tmp_path: Path, started: list[Session]) -> None:
    session, child = start(started, tmp_path, TERMINATES, "child.wait()")
    assert not session.has_ended
    session.stop(10)
    assert session.has_ended
    assert ended(child)


def test_child_whose_parent_has_ended_is_ended(tmp_path: Path, started: list[Session]) -> None:
    session, child = start(started, tmp_path, TERMINATES, "")
    session.stop(10)
    assert ended(child)


def test_child_that_ignores_sigterm_is_killed(tmp_path: Path, started: list[Session]) -> None:
    session, child = start(started, tmp_path, IGNORES_SIGTERM, "child.wait()")
    session.stop(0.2)
    assert ended(child)


def test_processes_of_a_killed_demo_are_ended_by_the_next(tmp_path: Path, started: list[Session]) -> None:
    left, child = start(started, tmp_path, TERMINATES, "child.wait()")
    log = tmp_path / "next.log"
    following = Session([sys.executable, "-c", "print('next')"], tmp_path, log)
    started.append(following)
    following.start(10)
    assert ended(child)
    assert left.has_ended


@pytest.mark.parametrize("content", ["", "no number", "999999999"])
def test_id_of_no_session_is_ignored(tmp_path: Path, started: list[Session], content: str) -> None:
    (tmp_path / "session").write_text(content)
    session = Session([sys.executable, "-c", ""], tmp_path, tmp_path / "log")
    started.append(session)
    session.start(1)
    session.stop(10)
    assert not (tmp_path / "session").exists()


def test_session_with_a_reused_id_is_not_ended(tmp_path: Path, started: list[Session]) -> None:
    elsewhere, folder = tmp_path / "elsewhere", tmp_path / "folder"
    elsewhere.mkdir()
    folder.mkdir()
    other, child = start(started, elsewhere, TERMINATES, "child.wait()")
    (folder / "session").write_text((elsewhere / "session").read_text())
    session = Session([sys.executable, "-c", ""], folder, folder / "log")
    started.append(session)
    session.start(1)
    assert not other.has_ended
    assert not ended(child)


def ended(process: psutil.Process) -> bool:
    """Return whether a process has ended; a zombie counts as ended."""
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True
