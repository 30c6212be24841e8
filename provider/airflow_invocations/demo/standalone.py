"""Run a real `airflow standalone` in a separate folder, and use its REST API."""

from __future__ import annotations

import json
import os
import secrets
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from .session import Session

#: Longest time for all components to become healthy, in seconds; this includes creating the database.
START_TIMEOUT = 300.0

#: Seconds between SIGTERM and SIGKILL when Airflow is stopped.
STOP_GRACE = 10.0

#: Interval between two polls, in seconds.
POLL_INTERVAL = 0.5

#: Longest time to repeat a request that Airflow is too busy to answer, in seconds.
RETRY_TIMEOUT = 120.0

#: Timeout of one request, in seconds.
REQUEST_TIMEOUT = 60.0

#: Terminal states of DAG runs and task instances.
ENDED = frozenset({"success", "failed", "skipped", "upstream_failed", "removed"})

_COMPONENTS = ("metadatabase", "scheduler", "triggerer", "dag_processor")


class AirflowError(Exception):
    """Airflow failed; the message has the reason and the path of its log."""


class StandaloneAirflow:
    """Scheduler, triggerer, DAG processor and API server with SQLite and the LocalExecutor, on free ports.

    It never uses the user's own AIRFLOW_HOME. Use it as a context manager, which ends all its processes.

    :param home: AIRFLOW_HOME; created if it doesn't exist, and kept.
    :param dags: folder of the DAG files.
    :param connections: connections by id, as the objects that `AIRFLOW_CONN_*` takes as JSON. They are passed
        in the environment, so that no secret is on a command line.
    :param configuration: additional options of Airflow, as `{"core.parallelism": "8"}`.
    """

    def __init__(
        self,
        home: Path,
        dags: Path,
        connections: Mapping[str, Mapping[str, Any]],
        configuration: Mapping[str, str] | None = None,
    ) -> None:
        self.home = home.resolve()
        self._port, *log_ports = _free_ports(3)
        self.url = f"http://localhost:{self._port}"
        options = {
            "api.base_url": self.url,
            "api.host": "127.0.0.1",
            "api.port": str(self._port),
            "api.workers": "1",
            "core.dags_are_paused_at_creation": "False",
            "core.dags_folder": str(dags.resolve()),
            "core.execution_api_server_url": f"{self.url}/execution/",
            "core.load_examples": "False",
            "core.parallelism": "8",
            "dag_processor.refresh_interval": "5",
            "logging.trigger_log_server_port": str(log_ports[0]),
            "logging.worker_log_server_port": str(log_ports[1]),
            "usage_data_collection.enabled": "False",
            **(configuration or {}),
        }
        environment = _environment(self.home, options, connections)
        command = [sys.executable, "-m", "airflow", "standalone"]
        self._session = Session(command, self.home, self.log_file, environment)
        self._client: httpx.Client | None = None

    @property
    def log_file(self) -> Path:
        """The file with the output of all components."""
        return self.home / "standalone.log"

    @property
    def login(self) -> tuple[str, str]:
        """User and password for the UI."""
        ((user, password),) = json.loads(self._passwords.read_text(encoding="utf-8")).items()
        return user, password

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self, progress: Callable[[str], None] = lambda _: None, timeout: float = START_TIMEOUT) -> None:
        """Start Airflow and wait until each component is healthy.

        :param progress: called at each poll with the components that aren't healthy yet.
        :param timeout: seconds to wait.
        :raises AirflowError: Airflow ended, or isn't healthy after `timeout` seconds; has the end of its log.
        """
        self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._make_login()
        self._session.start(STOP_GRACE)
        deadline = time.monotonic() + timeout
        while (missing := self._unhealthy()) != []:
            if self._session.has_ended:
                raise AirflowError(f"airflow standalone exited\n{self.log_tail()}")
            if time.monotonic() > deadline:
                raise AirflowError(f"not healthy after {timeout:.0f} s: {missing}\n{self.log_tail()}")
            progress(", ".join(missing))
            time.sleep(POLL_INTERVAL)

    def stop(self) -> None:
        """End all processes of Airflow: SIGTERM, then SIGKILL after STOP_GRACE seconds."""
        if self._client is not None:
            self._client.close()
            self._client = None
        self._session.stop(STOP_GRACE)

    def log_tail(self, lines: int = 30) -> str:
        """Return the end of the log and its path."""
        text = self.log_file.read_text(encoding="utf-8", errors="replace") if self.log_file.exists() else ""
        return "\n".join([*text.splitlines()[-lines:], f"(from {self.log_file})"])

    def wait_for_dag(self, dag_id: str, timeout: float = 60.0) -> None:
        """Wait until a DAG has been parsed. Raises AirflowError, with an import error if there is one."""
        deadline = time.monotonic() + timeout
        while self._ask("GET", f"dags/{dag_id}").status_code != httpx.codes.OK:
            errors = self._data("importErrors")["import_errors"]
            if errors:
                raise AirflowError(f"{errors[0]['filename']}: {errors[0]['stack_trace']}")
            if time.monotonic() > deadline:
                raise AirflowError(f"DAG {dag_id} wasn't parsed within {timeout:.0f} s\n{self.log_tail()}")
            time.sleep(POLL_INTERVAL)

    def trigger(self, dag_id: str, conf: Mapping[str, Any] | None = None) -> str:
        """Start a manual DAG run and return its run id.

        The request may be repeated, because a run id is used only once.
        """
        run_id = f"manual__{datetime.now(UTC).isoformat()}"
        body = {"dag_run_id": run_id, "logical_date": None, "conf": dict(conf or {})}
        answer = self._ask("POST", f"dags/{dag_id}/dagRuns", json=body)
        if answer.status_code != httpx.codes.CONFLICT:
            answer.raise_for_status()
        return run_id

    def dag_run(self, dag_id: str, run_id: str, timeout: float = RETRY_TIMEOUT) -> dict[str, Any]:
        """Return a DAG run; a failed request is repeated for `timeout` seconds."""
        return self._data(f"dags/{dag_id}/dagRuns/{run_id}", timeout)

    def task_instances(
        self, dag_id: str, run_id: str, timeout: float = RETRY_TIMEOUT
    ) -> list[dict[str, Any]]:
        """Return the latest tries of a DAG run's task instances; `timeout` as in `dag_run`."""
        page = self._data(f"dags/{dag_id}/dagRuns/{run_id}/taskInstances?limit=500", timeout)
        instances: list[dict[str, Any]] = page["task_instances"]
        return instances

    def watch(self, dag_id: str, run_id: str, timeout: float) -> Iterator[list[dict[str, Any]]]:
        """Yield a DAG run's task instances at each poll until the run has ended.

        Failed requests are repeated, because a slow response of a busy Airflow says nothing about the run.

        :param timeout: seconds that the run may take.
        :raises AirflowError: the run has not ended after `timeout` seconds, or Airflow doesn't respond.
        """
        deadline = time.monotonic() + timeout
        while True:
            remaining = max(0.0, deadline - time.monotonic())
            ended = self.dag_run(dag_id, run_id, remaining)["state"] in ENDED
            yield self.task_instances(dag_id, run_id, remaining)
            if ended:
                return
            if time.monotonic() > deadline:
                raise AirflowError(f"{dag_id} {run_id} took over {timeout:.0f} s\n{self.log_tail()}")
            time.sleep(POLL_INTERVAL)

    def set_state(self, dag_id: str, run_id: str, task_id: str, state: str, map_index: int = -1) -> None:
        """Set the state of a task instance as a user does in the UI: success, failed or skipped."""
        path = f"{_instance(dag_id, run_id, task_id)}{f'/{map_index}' if map_index >= 0 else ''}"
        self._ask("PATCH", path, json={"new_state": state}).raise_for_status()

    def xcom(
        self, dag_id: str, run_id: str, task_id: str, key: str = "return_value", map_index: int = -1
    ) -> Any:
        """Return an XCom of a task; None if it has pushed none."""
        path = f"{_instance(dag_id, run_id, task_id)}/xcomEntries/{key}"
        answer = self._ask("GET", path, params={"map_index": map_index})
        if answer.status_code == httpx.codes.NOT_FOUND:
            return None
        value = answer.raise_for_status().json()["value"]
        return json.loads(value) if isinstance(value, str) and value[:1] in '{["' else value

    def links(self, dag_id: str, run_id: str, task_id: str, map_index: int = -1) -> dict[str, str | None]:
        """Return the extra links of a task instance."""
        path = f"{_instance(dag_id, run_id, task_id)}/links"
        answer = self._ask("GET", path, params={"map_index": map_index}).raise_for_status()
        links: dict[str, str | None] = answer.json()["extra_links"]
        return links

    def task_log(
        self,
        dag_id: str,
        run_id: str,
        task_id: str,
        try_number: int = 1,
        map_index: int = -1,
        timeout: float = RETRY_TIMEOUT,
    ) -> list[dict[str, Any]]:
        """Return the lines of a task's log: dicts with `event`, mostly also `timestamp`, `level`, `logger`.

        :param timeout: seconds for which a failed request is repeated; 0: not repeated.
        """
        answer = self._ask(
            "GET",
            f"{_instance(dag_id, run_id, task_id)}/logs/{try_number}",
            timeout,
            params={"map_index": map_index},
            headers={"Accept": "application/json"},
        ).raise_for_status()
        return [entry if isinstance(entry, dict) else {"event": entry} for entry in answer.json()["content"]]

    def task_log_file(
        self, dag_id: str, run_id: str, task_id: str, try_number: int = 1, map_index: int = -1
    ) -> Path:
        """Return the path of a task's log."""
        mapped = f"/map_index={map_index}" if map_index >= 0 else ""
        return self.home / (
            f"logs/dag_id={dag_id}/run_id={run_id}/task_id={task_id}{mapped}/attempt={try_number}.log"
        )

    @property
    def api(self) -> httpx.Client:
        """A client of the REST API, logged in."""
        if self._client is None:
            user, password = self.login
            credentials = {"username": user, "password": password}
            address = f"{self.url}/auth/token"
            answer = self._answer(
                lambda: httpx.post(address, json=credentials, timeout=REQUEST_TIMEOUT, trust_env=False),
                f"POST {address}",
                RETRY_TIMEOUT,
            ).raise_for_status()
            self._client = httpx.Client(
                base_url=f"{self.url}/api/v2/",
                headers={"Authorization": f"Bearer {answer.json()['access_token']}"},
                timeout=REQUEST_TIMEOUT,
                trust_env=False,  # no proxy for addresses of this machine
            )
        return self._client

    def _data(self, path: str, timeout: float = RETRY_TIMEOUT) -> dict[str, Any]:
        data: dict[str, Any] = self._ask("GET", path, timeout).raise_for_status().json()
        return data

    def _ask(self, method: str, path: str, timeout: float = RETRY_TIMEOUT, **request: Any) -> httpx.Response:
        """Send a request, and repeat it until Airflow responds."""
        return self._answer(
            lambda: self.api.request(method, path, **request), f"{method} {self.url}/api/v2/{path}", timeout
        )

    def _answer(self, send: Callable[[], httpx.Response], request: str, timeout: float) -> httpx.Response:
        """Return Airflow's response; repeat the request after server errors, such as a locked SQLite.

        :raises AirflowError: Airflow exited, or did not respond for `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        while True:
            try:
                answer = send()
                if not answer.is_server_error:
                    return answer
                reason = f"HTTP {answer.status_code}"
            except httpx.TimeoutException:
                reason = f"no response within {REQUEST_TIMEOUT:g} s"
            except httpx.TransportError as error:
                reason = str(error)
            if self._session.has_ended:
                raise AirflowError(f"airflow standalone exited\n{self.log_tail()}")
            if time.monotonic() >= deadline:
                raise AirflowError(
                    f"Airflow did not respond to {request} for {timeout:.0f} s: {reason}\n{self.log_tail()}"
                )
            time.sleep(POLL_INTERVAL)

    @property
    def _passwords(self) -> Path:
        return self.home / "simple_auth_manager_passwords.json.generated"

    def _make_login(self) -> None:
        # Airflow would create a login itself, print it to its log, and make the file readable for everyone.
        if not self._passwords.exists():
            self._passwords.touch(mode=0o600)
            login = {"admin": secrets.token_urlsafe(12)}
            self._passwords.write_text(json.dumps(login), encoding="utf-8")

    def _unhealthy(self) -> list[str]:
        try:
            answer = httpx.get(f"{self.url}/api/v2/monitor/health", timeout=5, trust_env=False)
            health = answer.raise_for_status().json()
        except (httpx.HTTPError, ValueError):
            return ["API server"]
        return [name for name in _COMPONENTS if (health.get(name) or {}).get("status") != "healthy"]


def _environment(
    home: Path, options: Mapping[str, str], connections: Mapping[str, Mapping[str, Any]]
) -> dict[str, str]:
    """Return the environment of Airflow: that of this process, without the user's own Airflow settings."""
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")},
        "AIRFLOW_HOME": str(home),
        # The components connect to each other and to a local server on this machine, without a proxy.
        **_without_proxy(os.environ),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        **{_variable(option): value for option, value in options.items()},
        **{f"AIRFLOW_CONN_{conn_id.upper()}": json.dumps(fields) for conn_id, fields in connections.items()},
    }


def _variable(option: str) -> str:
    section, _, key = option.partition(".")
    return f"AIRFLOW__{section.upper()}__{key.upper()}"


def _without_proxy(environment: Mapping[str, str]) -> dict[str, str]:
    """Return NO_PROXY with the names of this machine, in both spellings, as programs read either."""
    given = environment.get("no_proxy") or environment.get("NO_PROXY") or ""
    names = ",".join([*filter(None, [given]), "localhost", "127.0.0.1"])
    return {"NO_PROXY": names, "no_proxy": names}


def _instance(dag_id: str, run_id: str, task_id: str) -> str:
    return f"dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}"


def _free_ports(count: int) -> list[int]:
    """Return unused ports; all are bound at the same time, so that they differ."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]
    finally:
        for each in sockets:
            each.close()
