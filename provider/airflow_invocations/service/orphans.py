"""End what an action has started and nothing leads to: neither its process group nor its environment.

`setsid env -i COMMAND` is such a process. On Linux the service asks to be the parent of every descendant that
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

#: The place of the start (ticks since the machine started) in /proc/PID/stat, behind the command's name.
_START = 19


class Orphans:
    """The orphans that this process has adopted.

    Which action one of them belongs to isn't always known. It belongs to one that ran when it began, so it
    is ended at the latest when all of those have ended; at once where its working directory tells.
    """

    def __init__(self) -> None:
        self._adopts = False
        #: When the process of each action that runs began.
        self._began: dict[str, int] = {}

    def adopt(self) -> None:
        """Become the parent of all orphans among this process's descendants, where the system can do that."""
        if sys.platform == "linux":
            self._adopts = ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0

    def action_began(self, invocation_id: str, pid: int) -> None:
        """Note an action's process, before anything else can happen."""
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
    """The children of this process that no runner has started; those that have ended are forgotten."""
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
    """When a process began; None: it has ended."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[_START])
    except (FileNotFoundError, ProcessLookupError):
        return None


def _works_in(pid: int, folder: Path) -> bool:
    try:
        return Path(f"/proc/{pid}/cwd").readlink().is_relative_to(folder.resolve())
    except OSError:
        return False
