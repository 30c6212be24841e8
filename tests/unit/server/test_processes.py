"""Processes are followed to their end, and groups end whole."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from airflow_invocations.server import outages
from airflow_invocations.server.execution import processes, termination

pytestmark = pytest.mark.anyio

PATH = {"PATH": os.environ["PATH"]}


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Callable[..., Any]]:
    """Start shell scripts; whatever is left of them ends with the test."""
    started: list[processes.Process] = []

    async def start(
        script: str,
        out: Callable[[bytes], None] = lambda _: None,
        err: Callable[[bytes], None] = lambda _: None,
        **environment: str,
    ) -> processes.Process:
        command = ["sh", "-c", script]
        process = processes.start(command, tmp_path, PATH | environment, keeping(out), keeping(err))
        started.append(process)
        return process

    yield start
    for process in started:
        termination.send_to_group(process.pid, signal.SIGKILL)
        await process.last_output(5)


def keeping(take: Callable[[bytes], None]) -> processes.Feed:
    """What takes all that a process writes."""

    def feed(data: bytes) -> bool:
        take(data)
        return True

    return feed


async def exit_code(process: processes.Process) -> int:
    async with asyncio.timeout(10):
        return await process.exit_code


async def line(path: Path) -> str:
    """The line in a file that some process is about to write."""
    async with asyncio.timeout(10):
        while not (text := content(path)).endswith("\n"):  # noqa: ASYNC110 - a file sets no event
            await asyncio.sleep(0.01)
    return text.strip()


def content(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def test_a_process_says_how_it_ended_and_what_it_wrote(start: Callable[..., Any]) -> None:
    out, err = bytearray(), bytearray()
    process = await start("echo one; echo two >&2; exit 3", out.extend, err.extend)
    assert await exit_code(process) == 3
    await process.last_output(5)
    assert (bytes(out), bytes(err)) == (b"one\n", b"two\n")


async def test_a_signal_is_a_negative_exit_code(start: Callable[..., Any]) -> None:
    process = await start("kill -SEGV $$")
    assert await exit_code(process) == -signal.SIGSEGV
    await process.last_output(5)


async def test_the_end_is_known_where_there_are_no_process_descriptors(
    start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def reject(_: int) -> int:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(os, "pidfd_open", reject, raising=False)
    out = bytearray()
    process = await start("echo one; exit 3", out.extend)
    assert await exit_code(process) == 3
    await process.last_output(5)
    assert bytes(out) == b"one\n"


async def test_nothing_of_our_environment_and_files_is_handed_on(
    start: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_OF_THE_SERVICE", "1")
    out = bytearray()
    opened = os.open(tmp_path, os.O_RDONLY)
    os.set_inheritable(opened, True)
    process = await start("env; ls -l /proc/self/fd; cat", out.extend, A="1")
    assert await exit_code(process) == 0
    await process.last_output(5)
    os.close(opened)
    assert b"A=1" in out
    assert b"SECRET" not in out
    assert b"0 -> /dev/null" in out
    assert f" {opened} -> ".encode() not in out


@pytest.mark.parametrize(
    ("command", "environment", "error"),
    [
        (["no-such-program"], PATH, FileNotFoundError),
        (["/"], PATH, PermissionError),
        ([""], PATH, OSError),
        (["a\0b"], PATH, ValueError),
        (["true"], {"A=B": "1"}, ValueError),
        (["true"], {"A": "\0"}, ValueError),
        (["true"], {"A": "x" * 10**6, **PATH}, OSError),
    ],
)
async def test_command_that_cannot_be_started_is_an_error(
    tmp_path: Path, command: list[str], environment: dict[str, str], error: type[Exception]
) -> None:
    with pytest.raises(error):
        processes.start(command, tmp_path, environment, lambda _: True, lambda _: True)


async def test_the_end_is_known_though_a_child_holds_the_pipes(
    start: Callable[..., Any], tmp_path: Path
) -> None:
    process = await start("sleep 60 & echo $! > child; sleep 0.2; exit 4")
    began = time.monotonic()
    assert await exit_code(process) == 4
    assert time.monotonic() - began < 5
    child = int(await line(tmp_path / "child"))
    assert lives(child)
    await termination.terminate(termination.ProcessGroup(process.pid), grace=5)
    assert not lives(child)
    await process.last_output(5)


async def test_output_of_what_has_left_the_group_is_waited_for_only_so_long(
    start: Callable[..., Any], tmp_path: Path
) -> None:
    process = await start("setsid sh -c 'echo $$ > escaped; exec sleep 60' & sleep 0.2")
    await exit_code(process)
    escaped = int(await line(tmp_path / "escaped"))
    await termination.terminate(termination.ProcessGroup(process.pid), grace=5)
    began = time.monotonic()
    await process.last_output(0.1)
    assert time.monotonic() - began < 30
    assert lives(escaped)
    os.kill(escaped, signal.SIGKILL)


async def test_a_group_that_takes_the_hint_is_not_killed(start: Callable[..., Any], tmp_path: Path) -> None:
    process = await start("trap 'echo bye > bye; exit 0' TERM; echo up > up; while :; do sleep 0.05; done")
    await line(tmp_path / "up")
    await termination.terminate(termination.ProcessGroup(process.pid), grace=20)
    assert await exit_code(process) == 0
    assert await line(tmp_path / "bye") == "bye"
    await process.last_output(5)


async def test_a_group_that_does_not_is_killed_whole_after_the_grace(
    start: Callable[..., Any], tmp_path: Path
) -> None:
    process = await start("trap '' TERM; (trap '' TERM; echo up > up; while :; do sleep 0.05; done) & wait")
    await line(tmp_path / "up")
    child = psutil.Process(process.pid).children()[0].pid
    began = time.monotonic()
    await termination.terminate(termination.ProcessGroup(process.pid), grace=0.3)
    assert time.monotonic() - began >= 0.3
    assert await exit_code(process) == -signal.SIGKILL
    assert not lives(child)
    await process.last_output(5)


async def test_ending_a_group_that_is_gone_returns_at_once(start: Callable[..., Any]) -> None:
    process = await start("true")
    await exit_code(process)
    async with asyncio.timeout(5):
        await termination.terminate(termination.ProcessGroup(process.pid), grace=60)
    await process.last_output(5)


async def test_a_process_waits_while_its_output_cannot_be_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outages, "FIRST_PAUSE", 0.01)
    kept, rejected = bytearray(), asyncio.Event()
    has_room = False

    def feed(data: bytes) -> bool:
        kept.extend(data)
        if not has_room:
            rejected.set()
        return has_room

    size = 4 * processes._CHUNK
    command = ["sh", "-c", f"head -c {size} /dev/zero; echo end"]
    process = processes.start(command, tmp_path, PATH, feed, lambda _: True)
    async with asyncio.timeout(10):
        await rejected.wait()
    # Nobody reads, so the pipe is full, and the process waits.
    assert not process.exit_code.done()
    assert len(kept) <= processes._CHUNK
    has_room = True
    assert await exit_code(process) == 0
    await process.last_output(5)
    assert kept == bytes(size) + b"end\n"


async def test_a_process_that_cannot_be_followed_does_not_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reject(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "set_blocking", reject)
    with pytest.raises(OSError, match="Too many open files"):
        processes.start(["sh", "-c", "sleep 60"], tmp_path, PATH, lambda _: True, lambda _: True)
    assert not [child for child in psutil.Process().children() if "sleep 60" in child.cmdline()]


class TestOrphanedProcesses:
    """Processes of an earlier run of the server; the tests start them without asyncio."""

    @pytest.fixture
    def leave(self, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
        left: list[subprocess.Popen[bytes]] = []

        def leave(script: str, **environment: str) -> subprocess.Popen[bytes]:
            process = subprocess.Popen(
                ["sh", "-c", script], cwd=tmp_path, env=PATH | environment, start_new_session=True
            )
            left.append(process)
            return process

        yield leave
        for process in left:
            termination.send_to_group(process.pid, signal.SIGKILL)
            process.wait()

    async def test_a_group_is_killed_by_its_number_and_when_it_began(
        self, leave: Callable[..., subprocess.Popen[bytes]]
    ) -> None:
        process = leave("trap '' TERM; sleep 60 & wait")
        began = termination.started_at(process.pid)
        assert began is not None
        async with asyncio.timeout(10):
            await termination.kill_orphaned_group(process.pid, began)
        assert process.wait(30) == -signal.SIGKILL

    async def test_a_group_whose_leader_is_gone_is_killed_too(
        self, leave: Callable[..., subprocess.Popen[bytes]], tmp_path: Path
    ) -> None:
        process = leave("sleep 60 & echo $! > child")
        began = termination.started_at(process.pid)
        child = int(await line(tmp_path / "child"))
        process.wait()
        async with asyncio.timeout(10):
            await termination.kill_orphaned_group(process.pid, began or 0.0)
        assert not lives(child)

    async def test_a_number_that_was_given_out_again_is_left_alone(
        self, leave: Callable[..., subprocess.Popen[bytes]]
    ) -> None:
        process = leave("sleep 60")
        began = termination.started_at(process.pid)
        assert began is not None
        await termination.kill_orphaned_group(process.pid, began - 3600)
        assert process.poll() is None

    async def test_a_group_that_is_gone_is_no_error(
        self, leave: Callable[..., subprocess.Popen[bytes]]
    ) -> None:
        process = leave("true")
        process.wait()
        async with asyncio.timeout(5):
            await termination.kill_orphaned_group(process.pid, time.time())

    async def test_process_outside_its_group_is_found_by_its_environment(
        self, leave: Callable[..., subprocess.Popen[bytes]], tmp_path: Path
    ) -> None:
        mine = leave("setsid sh -c 'echo $$ > escaped; exec sleep 60' & exec sleep 60", BELONGS_TO="iv_mine")
        other = leave("exec sleep 60", BELONGS_TO="iv_other")
        nobodys = leave("exec sleep 60")
        escaped = int(await line(tmp_path / "escaped"))
        async with asyncio.timeout(10):
            await termination.kill_marked("BELONGS_TO", {"iv_mine", "iv_gone"})
        assert mine.wait(30) == -signal.SIGKILL
        assert not lives(escaped)
        assert other.poll() is None
        assert nobodys.poll() is None
        await termination.kill_marked("BELONGS_TO", set())
        assert other.poll() is None
