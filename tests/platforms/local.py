"""The local server, which speaks the invocation API, as a platform under test."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from airflow_invocations.models import InvocationStatus

from ..integration.conftest import LocalServer as Server
from .deployment import EXECUTIONS, RELEASE, Actions, Deployment

ACTIONS = Actions("completes", "fails", "waits", "typed", unknown="no-such-action")

#: By action: its script, and the parameters that it declares beside `folder`.
_SCRIPTS: dict[str, tuple[str, list[dict[str, Any]]]] = {
    ACTIONS.completes: ('echo "the answer is $ROBOTO_PARAM_answer"', [{"name": "answer", "default": 42}]),
    ACTIONS.fails: (
        'echo "$ROBOTO_PARAM_message" >&2; exit 3',
        [{"name": "message", "default": "no such topic"}],
    ),
    ACTIONS.waits: (f'until [ -e "$ROBOTO_PARAM_folder/{RELEASE}" ]; do sleep 0.05; done', []),
    ACTIONS.typed: ("true", [{"name": "count", "required": True}, {"name": "ratio", "default": 0.5}]),
}


class LocalServer:
    """One process; actions are processes too."""

    name = "local-server"
    actions = ACTIONS
    unfit = (({}, "'count'"),)
    unknown_id = "iv_0123456789abcdef"
    words: Mapping[InvocationStatus, str] = {}

    def why_not_here(self) -> str | None:
        """It runs wherever the tests do."""
        return None

    @contextmanager
    def deploy(self, folder: Path, *, workers: bool) -> Iterator[Deployment]:
        """A server on a data folder of its own that knows the actions."""
        server = Server(folder / "server", "--grace", "0.5", "--slots", "8" if workers else "0")
        server.start()
        try:
            for name, (script, parameters) in _SCRIPTS.items():
                _register(server, name, script, parameters)
            yield _Deployment(server)
        finally:
            server.end()

    def nowhere(self, folder: Path) -> Mapping[str, Any]:
        """Nothing listens at the port for discarding."""
        return {"conn_type": "roboto", "host": "http://127.0.0.1:9", "password": "t"}


class _Deployment:
    """A server; without workers it has no slots."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.connection = {"conn_type": "roboto", "host": server.endpoint, "password": server.token}

    def start_workers(self) -> None:
        port = str(urlsplit(self._server.endpoint).port)
        self._server.restart("--grace", "0.5", "--slots", "8", "--port", port)


def _register(server: Server, name: str, script: str, parameters: list[dict[str, Any]]) -> None:
    counted = f'echo once >> "$ROBOTO_PARAM_folder/{EXECUTIONS}"; {script}'
    action = {
        "name": name,
        "parameters": [{"name": "folder", "required": True}, *parameters],
        "container_parameters": {"command": ["sh", "-c", counted]},
    }
    answer = server.request("POST", "v1/actions", json=action)
    assert answer.status_code == 200, answer.text
