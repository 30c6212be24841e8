"""Run `airflow triggerer` on a separate database of task instances that wait for invocations."""

from __future__ import annotations

import base64
import json
import os
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import sqlalchemy as sa

from airflow_invocations.action_log import ACTION_LOGGER

from ..support import waiting
from . import triggerer_rows
from .kill_matrix.components import Component

#: Longest time for anything that a triggerer does on a busy machine, in seconds.
PATIENCE = 120.0

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Ended:
    """A wait whose event has reached its task instance."""

    moment: datetime
    event: dict[str, Any]


class RealTriggerer:
    """A migrated database, and triggerers on it. Use it as a context manager.

    :param home: AIRFLOW_HOME; created if it doesn't exist.
    :param connections: Airflow connections by id.
    :param database: the URL of an empty database; None: a SQLite in `home`.
    :param provider: folder of another version of the provider, for the triggerers.
    """

    def __init__(
        self,
        home: Path,
        connections: Mapping[str, Mapping[str, Any]],
        database: str | None = None,
        provider: Path | None = None,
    ) -> None:
        self.home = home
        self._database = database or f"sqlite:///{home}/airflow.db"
        self._engine = sa.create_engine(self._database)
        self._environment = _environment(home, self._database, connections)
        if provider is not None:
            self._environment["PYTHONPATH"] = str(provider)
        self._triggerers: list[Component] = []

    def __enter__(self) -> Self:
        self.home.mkdir(parents=True, exist_ok=True)
        self._run("-m", "airflow", "db", "migrate")
        return self

    def __exit__(self, *_: object) -> None:
        for triggerer in self._triggerers:
            triggerer.kill()
        self._engine.dispose()

    def wait_for(self, invocations: Sequence[tuple[str, str]]) -> None:
        """Add a deferred task instance for each pair of connection id and invocation id."""
        each = {"poll_interval": 5.0, "stream_logs": True}
        lines = "\n".join(
            json.dumps({**each, "conn_id": conn_id, "invocation_id": invocation_id})
            for conn_id, invocation_id in invocations
        )
        self._run("-m", triggerer_rows.__name__, lines=lines)

    def start(self) -> Component:
        """Start a triggerer."""
        number = len(self._triggerers)
        arguments = ["airflow", "triggerer", "--capacity", "100000", "--skip-serve-logs"]
        triggerer = Component(f"triggerer-{number}", arguments, self.home, self._environment, sys.executable)
        self._triggerers.append(triggerer)
        triggerer.start()
        return triggerer

    def ended(self) -> dict[int, Ended]:
        """Return the waits that have ended, by number."""
        query = sa.text(
            "SELECT map_index, scheduled_dttm, next_kwargs FROM task_instance WHERE state='scheduled'"
        )
        with self._engine.connect() as connection:
            rows = connection.execute(query).all()
        return {
            number: Ended(_moment(scheduled), _plain(_loaded(arguments))["event"])
            for number, scheduled, arguments in rows
        }

    def log(self, number: int) -> list[dict[str, Any]]:
        """Return the action's lines in the log of a wait, as triggerers have written them."""
        return list(self._lines(number))

    def until(self, what: str, look: Callable[[], Any], patience: float = PATIENCE) -> Any:
        """Poll until there is something, as long as the triggerers run."""

        def checked() -> Any:
            assert all(each.is_running for each in self._triggerers), last_words()
            return look()

        def last_words() -> str:
            return "\n".join([f"no {what}", *(each.last_words() for each in self._triggerers)])

        return waiting.until(checked, patience, every=0.1, what=last_words)

    def log_folder(self, number: int) -> Path:
        """Return the paths of a wait's log files."""
        names = (
            f"dag_id={triggerer_rows.DAG_ID}",
            f"run_id={triggerer_rows.RUN_ID}",
            f"task_id={triggerer_rows.TASK_ID}",
            f"map_index={number}",
        )
        return self.home.joinpath("logs", *names)

    def _lines(self, number: int) -> Iterator[dict[str, Any]]:
        for file in sorted(self.log_folder(number).glob("attempt=1.log.trigger.*.log")):
            for line in file.read_bytes().splitlines():
                record = json.loads(line)
                if record.get("logger") == ACTION_LOGGER:
                    yield record

    def _run(self, *command: str, lines: str | None = None) -> None:
        done = subprocess.run(
            [sys.executable, *command],
            cwd=ROOT,
            env=self._environment,
            input=lines,
            text=True,
            capture_output=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


def _environment(home: Path, database: str, connections: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    options = {
        "core.fernet_key": base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
        "core.load_examples": "False",
        "core.dags_folder": str(home),
        "api_auth.jwt_secret": secrets.token_urlsafe(48),
        "database.sql_alchemy_conn": database,
        "logging.base_log_folder": str(home / "logs"),
        "usage_data_collection.enabled": "False",
    }
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")},
        "AIRFLOW_HOME": str(home),
        **{
            f"AIRFLOW_CONN_{conn_id.upper()}": json.dumps(dict(each)) for conn_id, each in connections.items()
        },
        "NO_PROXY": "localhost,127.0.0.1",
        "no_proxy": "localhost,127.0.0.1",
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        **{f"AIRFLOW__{option.upper().replace('.', '__')}": value for option, value in options.items()},
    }


def _moment(stored: Any) -> datetime:
    moment = datetime.fromisoformat(stored) if isinstance(stored, str) else stored
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def _loaded(stored: Any) -> Any:
    return json.loads(stored) if isinstance(stored, str) else stored


def _plain(value: Any) -> Any:
    """Return the JSON that Airflow has serialized."""
    match value:
        case {"__type": "dict", "__var": {**items}} | {
            "__classname__": "builtins.dict",
            "__data__": {**items},
        }:
            return {key: _plain(item) for key, item in items.items()}
        case dict():
            return {key: _plain(item) for key, item in value.items()}
        case list():
            return [_plain(item) for item in value]
    return value
