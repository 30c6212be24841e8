"""What the suite has to know of a platform: how to set one up, and four actions that each one has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from airflow_invocations.models import InvocationStatus

#: What every execution of an action adds a line to, and what an action waits for, in its parameter `folder`.
EXECUTIONS = "executions"
RELEASE = "release"


@dataclass(frozen=True, slots=True)
class Actions:
    """The names of four actions. Each has a parameter `folder` and counts there how often it is executed."""

    #: Writes its parameter `answer` into its log where there is one; returns {"answer": answer}.
    completes: str
    #: Fails; its parameter `message` is to be found in the status detail.
    fails: str
    #: Runs until the file `release` is in its folder, whoever asks it to stop; then it completes.
    waits: str
    #: Needs `count`, a whole number; `ratio` may be given, a number. Completes.
    typed: str
    #: Not the name of an action.
    unknown: str


class Deployment(Protocol):
    """One installation of a platform, on folders or names of its own."""

    #: The Airflow connection that leads to it, as a dict.
    connection: Mapping[str, Any]

    def start_workers(self) -> None:
        """Have what is queued executed from now on, on an installation that had none."""


class PlatformUnderTest(Protocol):
    """A platform that the suite runs against: one module each, named in conftest.py."""

    #: For the test's id.
    name: str
    actions: Actions
    #: Parameters that `actions.typed` rejects, and how the rejection says so (a pattern); `folder` is added.
    unfit: Sequence[tuple[Mapping[str, Any], str]]
    #: An id that no invocation has.
    unknown_id: str
    #: Its own words for the statuses of a life without trouble; empty: it has none of its own.
    words: Mapping[InvocationStatus, str]

    def why_not_here(self) -> str | None:
        """Why it can't be run on this machine; None: it can. Where CI has to have it, this fails the test."""

    def deploy(self, folder: Path, *, workers: bool) -> AbstractContextManager[Deployment]:
        """Set it up; whatever was started has ended when the context does. Without workers nothing runs."""

    def nowhere(self, folder: Path) -> Mapping[str, Any]:
        """A connection of this type where no platform answers."""


def executions(folder: Path) -> int:
    """How often actions have been executed with this folder."""
    counted = folder / EXECUTIONS
    return len(counted.read_text().splitlines()) if counted.exists() else 0


def release(folder: Path) -> None:
    """Let the actions go on that wait in this folder."""
    (folder / RELEASE).touch()
