"""End processes of an action that can't be found by their process group or their environment.

`setsid env -i COMMAND` is such a process. On Linux the server asks to be the parent of every descendant that
has lost its own (PR_SET_CHILD_SUBREAPER, https://man7.org/linux/man-pages/man2/prctl.2.html), so that it can
see them.
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

from . import processes

_SET_CHILD_SUBREAPER = 36

#: The index of the start time (ticks since boot) in /proc/PID/stat, counted after the command's name.
_START = 19


class Orphans:
    """The orphans that this process has adopted.

    The action of an orphan isn't always known. It is one of those that were running when the orphan started.
    So the orphan is ended when all of those have ended, or earlier if its working directory is the action's.
    """

    def __init__(self) -> None:
        self._adopts = False
        #: The start time of each running action's process.
        self._began: dict[str, int] = {}

    def adopt(self) -> None:
        """Become the parent of all orphans among this process's descendants, if the system supports it."""
        if sys.platform == "linux":
            self._adopts = ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0

    def action_began(self, invocation_id: str, pid: int) -> None:
        """Record the start time of an action's process."""
        if self._adopts:
            self._began[invocation_id] = _start_of(pid) or 0

    async def action_ended(self, invocation_id: str, workspace: Path) -> None:
        """Kill the orphans that belong to an action, once its process group has ended."""
        if not self._adopts:
            return
        self._began.pop(invocation_id, None)
        while strays := [pid for pid in _orphans() if self._is_without_action(pid, workspace)]:
            for pid in strays:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            await asyncio.sleep(0.01)

    def _is_without_action(self, pid: int, workspace: Path) -> bool:
        began = _start_of(pid)
        if began is None:
            return False
        return all(began < other for other in self._began.values()) or _works_in(pid, workspace)


def _orphans() -> list[int]:
    """Return the living children of this process that no runner has started."""
    living = []
    for pid in _children() - processes.started():
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


def _start_of(pid: int) -> int | None:
    """Return when a process started; None if it has ended."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[_START])
    except (FileNotFoundError, ProcessLookupError):
        return None


def _works_in(pid: int, folder: Path) -> bool:
    try:
        return Path(f"/proc/{pid}/cwd").readlink().is_relative_to(folder.resolve())
    except OSError:
        return False
