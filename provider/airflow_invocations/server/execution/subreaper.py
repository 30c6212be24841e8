"""End processes of an action that can't be found by their process group or their environment.

`setsid env -i COMMAND` is such a process. On Linux the server finds it, because the server becomes the parent
of every descendant whose own parent has ended: it sets PR_SET_CHILD_SUBREAPER,
https://man7.org/linux/man-pages/man2/prctl.2.html.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
from pathlib import Path

import psutil

from .processes import started

_SET_CHILD_SUBREAPER = 36

#: The index of the start time (ticks since boot) in /proc/PID/stat, counted after the command's name.
_START = 19


class Subreaper:
    """Ends the descendants that this process has become the parent of.

    The action of such a process isn't always known. It is one of those that ran when the process started. So
    the process is killed when all of them have ended, or earlier if its working directory is the action's.
    """

    def __init__(self) -> None:
        self._enabled = False
        #: The start time of each running action's process.
        self._started_at: dict[str, int] = {}

    def enable(self) -> None:
        """Become the parent of descendants whose parents have ended, if the system supports it."""
        if sys.platform == "linux":
            self._enabled = ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0

    def action_started(self, invocation_id: str, pid: int) -> None:
        """Record the start time of an action's process."""
        if self._enabled:
            self._started_at[invocation_id] = _started_at(pid) or 0

    async def action_ended(self, invocation_id: str, workspace: Path) -> None:
        """Kill the processes that belong to an action, once its process group has ended."""
        if not self._enabled:
            return
        self._started_at.pop(invocation_id, None)
        while remaining := [pid for pid in _adopted() if self._is_without_action(pid, workspace)]:
            for pid in remaining:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            await asyncio.sleep(0.01)

    def _is_without_action(self, pid: int, workspace: Path) -> bool:
        started_at = _started_at(pid)
        if started_at is None:
            return False
        return all(started_at < other for other in self._started_at.values()) or _works_in(pid, workspace)


def _adopted() -> list[int]:
    """Return the running children of this process that no runner has started."""
    living = []
    for pid in _children() - started():
        with contextlib.suppress(ChildProcessError):
            ended, _ = os.waitpid(pid, os.WNOHANG)
            if not ended:
                living.append(pid)
    return living


def _children() -> set[int]:
    try:
        lists = [Path(task.path, "children").read_text() for task in os.scandir("/proc/self/task")]
    except OSError:  # a kernel without these lists, or a thread that has just ended
        return {child.pid for child in psutil.Process().children()}
    return {int(pid) for children in lists for pid in children.split()}


def _started_at(pid: int) -> int | None:
    """Return when a process started (ticks since boot); None if it has ended."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[_START])
    except (FileNotFoundError, ProcessLookupError):
        return None


def _works_in(pid: int, folder: Path) -> bool:
    try:
        return Path(f"/proc/{pid}/cwd").readlink().is_relative_to(folder.resolve())
    except OSError:
        return False
