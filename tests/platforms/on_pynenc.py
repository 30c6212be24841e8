"""pynenc on SQLite and on Redis as platforms under test: real runners, each a process, and a real app."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from airflow_invocations.models import InvocationStatus

from ..support.waiting import until
from ..support.with_pynenc import why_no_pynenc
from .deployment import Actions, Deployment

APP = "tests.platforms.fleet_tasks:app"
REDIS = ("127.0.0.1", 6379)

#: The folder that `tests` is to be imported from.
_ROOT = Path(__file__).parents[2]

#: A runner that looks for work all the time, on no more than it has to.
_RUNNER = {
    "RUNNER_CLS": "ThreadRunner",
    "MAX_THREADS": "8",
    "RUNNER_LOOP_SLEEP_TIME_SEC": "0.02",
    "INVOCATION_WAIT_RESULTS_SLEEP_TIME_SEC": "0.02",
    "LOG_USE_COLORS": "False",
}

_S = InvocationStatus


def task(name: str) -> str:
    """The name of one of the app's tasks, as an action."""
    return f"tests.platforms.fleet_tasks.{name}"


class _OnPynenc:
    """What does not depend on where it keeps its state."""

    actions = Actions(
        task("completes"), task("fails"), task("waits"), task("typed"), unknown=task("no_such_task")
    )
    unfit = (
        ({}, "'count'"),
        ({"count": 1, "cuont": 2}, "'cuont' isn't declared"),
        ({"count": "many"}, "'count' expects int, got \"many\""),
        ({"count": 1, "ratio": [1]}, "'ratio' expects float, got \\[1\\]"),
    )
    unknown_id = "00000000-0000-5000-8000-000000000000"
    words: Mapping[InvocationStatus, str] = {
        _S.Queued: "registered",
        _S.Scheduled: "pending",
        _S.Processing: "running",
        _S.Completed: "success",
    }

    def __init__(self, app: str = APP) -> None:
        self.app = app

    def why_not_here(self) -> str | None:
        """pynenc isn't to be had on every Python."""
        return why_no_pynenc()


class OnSQLite(_OnPynenc):
    """One file, which pynenc itself declares to be for tests."""

    name = "pynenc-sqlite"

    @contextmanager
    def deploy(self, folder: Path, *, workers: bool) -> Iterator[Deployment]:
        """A database of its own."""
        database = folder / "fleet.sqlite"
        database.touch()
        where = {"sqlite_db_path": str(database)}
        with _deployed(self.app, folder, "SQLite", where, workers) as deployment:
            deployment.connection = _connection(self.app, deployment.app_id, sqlite_path=str(database))
            yield deployment

    def nowhere(self, folder: Path) -> Mapping[str, Any]:
        """There is no such database."""
        return _connection(self.app, "nobody", sqlite_path=str(folder / "nowhere.sqlite"))


class OnRedis(_OnPynenc):
    """The Redis of this machine, under app ids of this run."""

    name = "pynenc-redis"

    def why_not_here(self) -> str | None:
        """Without a Redis there is nothing to run it on; CI has one."""
        try:
            socket.create_connection(REDIS, timeout=2).close()
        except OSError as error:
            why = f"no Redis at {REDIS[0]}:{REDIS[1]}: {error}"
            if "CI" in os.environ:
                pytest.fail(why)
            return super().why_not_here() or why
        return super().why_not_here()

    @contextmanager
    def deploy(self, folder: Path, *, workers: bool) -> Iterator[Deployment]:
        """An app of its own; nothing of it is left."""
        import redis

        url = f"redis://{REDIS[0]}:{REDIS[1]}/0"
        with _deployed(self.app, folder, "Redis", {"redis_url": url}, workers) as deployment:
            deployment.connection = _connection(self.app, deployment.app_id, REDIS)
            try:
                yield deployment
            finally:
                try:
                    deployment.stop_workers()
                finally:
                    with redis.Redis.from_url(url) as client:
                        for key in client.scan_iter(f"*{deployment.app_id}*", count=1000):
                            client.delete(key)

    def nowhere(self, folder: Path) -> Mapping[str, Any]:
        """Nothing listens at the port for discarding."""
        return _connection(self.app, "nobody", ("127.0.0.1", 9))


class _Deployment:
    """An app id on a backend, and the runner of it."""

    connection: Mapping[str, Any]

    def __init__(self, app: str, folder: Path, environment: Mapping[str, str]) -> None:
        self._app = app
        self.app_id = f"fleet-{uuid.uuid4().hex[:12]}"
        self._errors = folder / "runner.stderr"
        self._environment = {f"PYNENC__{name.upper()}": value for name, value in environment.items()}
        self._runner: subprocess.Popen[bytes] | None = None

    def start_workers(self) -> None:
        environment = {**os.environ, **self._environment, "PYNENC__APP_ID": self.app_id}
        command = [sys.executable, "-m", "pynenc", "--app", self._app.replace(":", "."), "runner", "start"]
        with self._errors.open("wb") as errors:
            self._runner = subprocess.Popen(command, cwd=_ROOT, env=environment, stdout=errors, stderr=errors)
        until(self._is_ready, within=60.0)

    def stop_workers(self) -> None:
        """Stop the runner as a person would; a run that goes on is not waited for."""
        if self._runner is None:
            return
        runner, self._runner = self._runner, None
        runner.terminate()
        try:
            runner.wait(10)
        except subprocess.TimeoutExpired:
            runner.kill()
            runner.wait()
            raise AssertionError(f"the runner didn't stop in 10 s: {self.said}") from None

    @property
    def said(self) -> str:
        """What the runner has written."""
        return self._errors.read_text(errors="replace")

    def _is_ready(self) -> bool:
        if self._runner is None or self._runner.poll() is not None:
            raise AssertionError(f"the runner ended: {self.said}")
        return "Starting" in self.said


@contextmanager
def _deployed(
    app: str, folder: Path, kind: str, where: Mapping[str, str], workers: bool
) -> Iterator[_Deployment]:
    parts = ("orchestrator", "broker", "state_backend", "client_data_store", "trigger")
    classes = {f"{part}_cls": f"{kind}{part.title().replace('_', '')}" for part in parts}
    deployment = _Deployment(app, folder, {**_RUNNER, **classes, **where})
    try:
        if workers:
            deployment.start_workers()
        yield deployment
    finally:
        deployment.stop_workers()


def _connection(
    app: str, app_id: str, redis: tuple[str, int] | None = None, sqlite_path: str | None = None
) -> dict[str, Any]:
    extra = {"app": app, "app_id": app_id, "sqlite_path": sqlite_path}
    host, port = redis or (None, None)
    return {"conn_type": "pynenc", "host": host, "port": port, "extra": extra}
