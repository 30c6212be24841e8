"""Ray as a platform under test: a real head node, whose jobs are shell commands."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from airflow_invocations.models import InvocationStatus

from ..support.ray_node import GATES, claims_of, locked, shared_node
from ..support.waiting import until
from .deployment import EXECUTIONS, RELEASE, Actions, Deployment

#: The processes of a test run share a node, but not the names of actions, whose newest job they ask for.
_PROCESS = os.environ.get("PYTEST_XDIST_WORKER", "alone")
ACTIONS = Actions(
    *(f"{name}-{_PROCESS}" for name in ("completes", "fails", "waits", "typed")), unknown="no-such-action"
)

_FOLDER = {"name": "folder", "required": True, "type": "string"}

#: By action: its script, and the parameters that it declares beside `folder`.
_SCRIPTS: dict[str, tuple[str, list[dict[str, Any]]]] = {
    ACTIONS.completes: (
        'echo "the answer is $ROBOTO_PARAM_answer"',
        [{"name": "answer", "type": "integer", "default": 42}],
    ),
    ACTIONS.fails: (
        'echo "$ROBOTO_PARAM_message" >&2; exit 3',
        [{"name": "message", "default": "no such topic"}],
    ),
    ACTIONS.waits: (f'until [ -e "$ROBOTO_PARAM_folder/{RELEASE}" ]; do sleep 0.05; done', []),
    ACTIONS.typed: (
        "true",
        [
            {"name": "count", "type": "integer", "required": True},
            {"name": "ratio", "default": "0.5"},
        ],
    ),
}


def catalogue(**fields: Any) -> dict[str, Any]:
    """The suite's actions, with more fields for each."""
    return {
        name: {
            "entrypoint": f'echo once >> "$ROBOTO_PARAM_folder/{EXECUTIONS}"; {script}',
            "parameters": [_FOLDER, *parameters],
            **fields,
        }
        for name, (script, parameters) in _SCRIPTS.items()
    }


class OnRay:
    """The node that all tests of a run share; each deployment has a catalogue of its own."""

    name = "ray"
    actions = ACTIONS
    unfit = (
        ({}, "'count'"),
        ({"count": "many"}, "'count' must be an integer, not the text 'many'"),
        ({"count": 1, "cuont": 2}, "unknown parameter 'cuont'"),
    )
    unknown_id = "airflow-0123456789abcdef0123456789abcdef"
    words: Mapping[InvocationStatus, str] = {
        InvocationStatus.Queued: "PENDING",
        InvocationStatus.Processing: "RUNNING",
        InvocationStatus.Completed: "SUCCEEDED",
    }

    def why_not_here(self) -> str | None:
        """It is installed where it isn't yet; where that fails, so do the tests."""
        return None

    @contextmanager
    def deploy(self, folder: Path, *, workers: bool) -> Iterator[Deployment]:
        """Without workers the actions need a resource that somebody else holds."""
        endpoint = shared_node()
        if workers:
            yield _Deployment(endpoint, None)
            return
        with _gate() as gate:
            deployment = _Deployment(endpoint, gate)
            try:
                yield deployment
            finally:
                deployment.start_workers()

    def nowhere(self, folder: Path) -> Mapping[str, Any]:
        """Nothing listens at the port for discarding."""
        return {"conn_type": "ray", "host": "http://127.0.0.1:9", "extra": {"actions": catalogue()}}


class _Deployment:
    """A catalogue on the node. If it has a gate, a job holds that until the workers are started."""

    def __init__(self, endpoint: str, gate: str | None) -> None:
        self._jobs = f"{endpoint}/api/jobs/"
        self._holder: str | None = None
        fields: dict[str, Any] = {}
        if gate is not None:
            # A job may take a part of it only, so that several run at once later.
            fields = {"resources": {gate: 0.01}}
            self._holder = f"holder-{uuid.uuid4()}"
            body = {
                "entrypoint": "sleep 100000",
                "submission_id": self._holder,
                "entrypoint_resources": {gate: 1},
            }
            httpx.post(self._jobs, json=body, timeout=60).raise_for_status()
            until(lambda: self._holds("RUNNING"), within=60)
        self.connection = {"conn_type": "ray", "host": endpoint, "extra": {"actions": catalogue(**fields)}}

    def start_workers(self) -> None:
        if self._holder is not None:
            httpx.post(f"{self._jobs}{self._holder}/stop", timeout=60).raise_for_status()
            until(lambda: self._holds("STOPPED"), within=60)
            self._holder = None

    def _holds(self, status: str) -> bool:
        return bool(httpx.get(f"{self._jobs}{self._holder}", timeout=30).json()["status"] == status)


@contextmanager
def _gate() -> Iterator[str]:
    """A resource of the node that no other deployment of this test run uses."""
    claims = claims_of(shared_node())
    claims.mkdir(exist_ok=True)
    with locked(claims / "lock"):
        gate = next(
            one for one in (f"gate{number}" for number in range(GATES)) if not (claims / one).exists()
        )
        (claims / gate).touch()
    try:
        yield gate
    finally:
        with contextlib.suppress(FileNotFoundError):
            (claims / gate).unlink()
