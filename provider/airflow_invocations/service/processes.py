"""Process groups: one for each action, ended whole, also by a later life of the service."""

from __future__ import annotations

import asyncio
import os
import signal

import psutil

#: Seconds by which two readings of one process's start may differ.
_SAME_START = 1.0


def began(pid: int) -> float | None:
    """When a process started, in seconds since 1970; with its pid it names a process for good."""
    try:
        return psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        return None


def send(group: int, number: signal.Signals) -> bool:
    """Send a signal to a whole process group; False if nothing is left of it."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    return True


async def end(group: int, grace: float) -> None:
    """End a process group: SIGTERM, SIGKILL after `grace` seconds; returns when all of it is gone."""
    send(group, signal.SIGTERM)
    try:
        async with asyncio.timeout(grace):
            await _gone(group)
    except TimeoutError:
        send(group, signal.SIGKILL)
        await _gone(group)


async def end_left_over(group: int, leader_began: float) -> None:
    """Kill what an earlier life left running; a group number that was given out again is left alone."""
    leader = began(group)
    if leader is not None and abs(leader - leader_began) > _SAME_START:
        return
    send(group, signal.SIGKILL)
    await _gone(group)


async def _gone(group: int) -> None:
    # No system call waits for a process group to be empty, so this looks, a little less often each time.
    pause = 0.01
    while _lives(group):
        await asyncio.sleep(pause)
        pause = min(pause * 1.5, 0.25)


def _lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # macOS says so of a group of zombies
        return False
    return any(_is_running(process) for process in psutil.process_iter() if _group_of(process.pid) == group)


def _is_running(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _group_of(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except (ProcessLookupError, PermissionError):
        return None
