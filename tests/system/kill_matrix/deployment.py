"""A production-like Airflow: separate components, PostgreSQL, LocalExecutor or Celery."""

from __future__ import annotations

import base64
import json
import os
import secrets
import socket
import sys
import time
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

import httpx
import psutil
import redis
import sqlalchemy as sa

from .components import Component
from .loop import BackgroundLoop
from .proxy import FaultProxy, airflow_route
from .states import StateHistory

#: URL of a database server that may create and drop databases, with a password if it needs one.
POSTGRES = os.environ.get("INVOCATIONS_TEST_POSTGRES", "postgresql://postgres@127.0.0.1:5432/postgres")

#: The broker of Celery's messages; each deployment has its own key prefix.
REDIS = os.environ.get("INVOCATIONS_TEST_REDIS", "redis://127.0.0.1:6379/9")

#: Longest time until all components run, in seconds.
START_TIMEOUT = 240.0

#: Short intervals, so that Airflow notices in seconds what would take minutes.
_IMPATIENT = {
    "dag_processor.min_file_process_interval": "3600",
    "dag_processor.print_stats_interval": "0",
    "dag_processor.parsing_processes": "1",
    "scheduler.job_heartbeat_sec": "2",
    "scheduler.orphaned_tasks_check_interval": "5",
    "scheduler.scheduler_heartbeat_sec": "2",
    "scheduler.scheduler_health_check_threshold": "20",
    "scheduler.scheduler_idle_sleep_time": "0.5",
    "scheduler.task_instance_heartbeat_timeout": "10",
    "scheduler.task_instance_heartbeat_timeout_detection_interval": "2",
    "scheduler.trigger_timeout_check_interval": "2",
    "triggerer.job_heartbeat_sec": "2",
    "triggerer.triggerer_health_check_threshold": "8",
    "workers.min_heartbeat_interval": "2",
}


class Executor(StrEnum):
    """The executor."""

    Local = "LocalExecutor"
    Celery = "CeleryExecutor"


def missing_services(executor: Executor) -> str | None:
    """Return why Airflow with this executor can't run on this machine; None: it can."""
    try:
        with _engine(POSTGRES).connect():
            pass
    except sa.exc.OperationalError as error:
        return f"no PostgreSQL at {POSTGRES} (INVOCATIONS_TEST_POSTGRES): {str(error.orig).strip()}"
    if executor is Executor.Celery:
        try:
            with redis.Redis.from_url(REDIS) as client:
                client.ping()
        except redis.RedisError as error:
            return f"no Redis at {REDIS} (INVOCATIONS_TEST_REDIS): {error}"
    return None


class MigratedDatabase:
    """An empty Airflow database, created once and copied for each deployment. Use it as a context manager."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self.name = f"kill_matrix_{secrets.token_hex(4)}"

    def __enter__(self) -> Self:
        self._home.mkdir(parents=True)
        create_database(self.name)
        url = _with_database(POSTGRES, self.name)
        environment = _environment(self._home, url, {})
        migrate = Component("migrate", ["airflow", "db", "migrate"], self._home, environment, sys.executable)
        migrate.start()
        if migrate.wait() != 0:
            self.__exit__()
            raise AssertionError(migrate.log_tail(50))
        return self

    def __exit__(self, *_: object) -> None:
        drop_database(self.name)


class Airflow:
    """One deployment; each component can be ended and started separately.

    :param home: its folder.
    :param dags: the folder of DAG files.
    :param executor: the executor; Celery has two workers.
    :param loop: the event loop of its proxy and listener.
    :param template: the migrated database to copy.
    """

    def __init__(
        self, home: Path, dags: Path, executor: Executor, loop: BackgroundLoop, template: MigratedDatabase
    ) -> None:
        self.home = home
        self.executor = executor
        self._dags = dags
        self._loop = loop
        self._template = template
        self._name = f"{template.name}_{secrets.token_hex(3)}"
        self._database = _with_database(POSTGRES, self._name)
        self.url = f"http://127.0.0.1:{_free_port()}"
        self.states = StateHistory(loop, self._database)
        #: Proxy between the workers and the API server, which can hold a deferral.
        self.execution_api = FaultProxy(loop, self.url, airflow_route)
        self.components: dict[str, Component] = {}
        self._client: httpx.Client | None = None

    def start(self) -> None:
        """Create the database, start all components, and wait until the DAGs are parsed."""
        self.home.mkdir(parents=True, exist_ok=True)
        create_database(self._name, self._template.name)
        self.states.open()
        self.execution_api.start()
        self._make_login()
        environment = _environment(self.home, self._database, self._configuration())
        for name, arguments in self._commands().items():
            self.components[name] = Component(name, arguments, self.home, environment, sys.executable)
        for component in self.components.values():
            if component.name != "triggerer-2":
                component.start()
        self._wait_until_up()

    def stop(self) -> None:
        """End everything, and drop the database."""
        for component in self.components.values():
            component.thaw()
            component.kill()
        if self._client is not None:
            self._client.close()
        self.execution_api.stop()
        self.states.close()
        drop_database(self._name)
        if self.executor is Executor.Celery:
            with redis.Redis.from_url(REDIS) as client:
                for key in client.scan_iter(match=f"{self._name}*"):
                    client.delete(key)

    def __getitem__(self, component: str) -> Component:
        return self.components[component]

    # --- actions of users

    def connect(self, conn_id: str, endpoint: str, token: str, timeout: float) -> None:
        """Create or change a connection."""
        body = {
            "connection_id": conn_id,
            "conn_type": "roboto",
            "host": endpoint,
            "password": token,
            "extra": json.dumps({"timeout": timeout}),
        }
        answer = self.api.post("connections", json=body)
        if answer.status_code == httpx.codes.CONFLICT:
            answer = self.api.patch(f"connections/{conn_id}", json=body)
        answer.raise_for_status()

    def disconnect(self, conn_id: str) -> None:
        """Delete a connection."""
        self.api.delete(f"connections/{conn_id}").raise_for_status()

    def add_pool(self, name: str, slots: int) -> None:
        """Create a pool: the number of its tasks on workers; deferred tasks don't count."""
        body = {"name": name, "slots": slots, "include_deferred": False}
        self.api.post("pools", json=body).raise_for_status()

    def trigger(self, dag_id: str, run_id: str, conf: Mapping[str, Any]) -> None:
        """Start a DAG run."""
        body = {"dag_run_id": run_id, "logical_date": None, "conf": dict(conf)}
        self.api.post(f"dags/{dag_id}/dagRuns", json=body).raise_for_status()

    def clear(self, dag_id: str, run_id: str, *task_ids: str) -> None:
        """Clear tasks of a DAG run."""
        body = {"dry_run": False, "only_failed": False, "dag_run_id": run_id, "task_ids": list(task_ids)}
        self.api.post(f"dags/{dag_id}/clearTaskInstances", json=body).raise_for_status()

    def mark(self, dag_id: str, run_id: str, task_id: str, state: str) -> None:
        """Mark a task success or failed."""
        path = f"dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}"
        self.api.patch(path, json={"new_state": state}).raise_for_status()

    def mark_run(self, dag_id: str, run_id: str, state: str) -> None:
        """Mark a DAG run success or failed."""
        self.api.patch(f"dags/{dag_id}/dagRuns/{run_id}", json={"state": state}).raise_for_status()

    def delete_run(self, dag_id: str, run_id: str) -> None:
        """Delete a DAG run that has ended."""
        self.api.delete(f"dags/{dag_id}/dagRuns/{run_id}").raise_for_status()

    def task_log(self, dag_id: str, run_id: str, task_id: str, try_number: int) -> str:
        """Return the log of one try with error details; empty while there is no log."""
        answer = self.api.get(
            f"dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/logs/{try_number}",
            headers={"Accept": "application/json"},
        )
        return "" if answer.status_code == httpx.codes.NOT_FOUND else answer.raise_for_status().text

    # --- failures of machines

    def worker_of(self, dag_id: str, run_id: str, task_id: str) -> list[psutil.Process]:
        """Return the processes of a task: its supervisor, then the task."""
        pids = [change.pid for change in self.states.of(dag_id, run_id, task_id) if change.state == "running"]
        if not pids or pids[-1] is None:
            raise AssertionError(f"{dag_id} {run_id} {task_id} runs nowhere")
        task = psutil.Process(pids[-1])
        supervisor = task.parent()
        assert supervisor is not None
        return [supervisor, task]

    def machine_of(self, process: psutil.Process) -> Component:
        """Return the component that a process belongs to."""
        return next(each for each in self.components.values() if each.session == os.getsid(process.pid))

    def repair(self) -> None:
        """Restore all components of the deployment, and end additional ones."""
        for component in self.components.values():
            component.thaw()
            if component.name == "triggerer-2":
                component.stop()
            elif not component.is_running:
                component.kill()
                component.start()

    def start_second_triggerer(self) -> None:
        """Start another triggerer and wait until it is alive."""
        self["triggerer-2"].start()
        self._until("two triggerers", lambda: self.alive_jobs("TriggererJob") >= 2)

    def alive_jobs(self, job_type: str) -> int:
        """Return the number of components of a kind with a recent heartbeat."""
        wanted: dict[str, str | bool] = {"job_type": job_type, "is_alive": True}
        answer = self.api.get("jobs", params=wanted).raise_for_status()
        return int(answer.json()["total_entries"])

    @property
    def api(self) -> httpx.Client:
        """A client of the REST API, logged in."""
        if self._client is None:
            ((user, password),) = json.loads(self._passwords.read_text()).items()
            credentials = {"username": user, "password": password}
            answer = httpx.post(f"{self.url}/auth/token", json=credentials, timeout=30, trust_env=False)
            token = answer.raise_for_status().json()["access_token"]
            self._client = httpx.Client(
                base_url=f"{self.url}/api/v2/",
                headers={"Authorization": f"Bearer {token}"},
                timeout=60,
                trust_env=False,
                verify=False,
            )
        return self._client

    def log_tail(self) -> str:
        return "\n".join(component.log_tail() for component in self.components.values())

    @property
    def _passwords(self) -> Path:
        return self.home / "simple_auth_manager_passwords.json.generated"

    def _make_login(self) -> None:
        self._passwords.touch(mode=0o600)
        self._passwords.write_text(json.dumps({"admin": secrets.token_urlsafe(12)}))

    def _commands(self) -> dict[str, list[str]]:
        port = self.url.rpartition(":")[2]
        commands = {
            "api-server": ["airflow", "api-server", "--host", "127.0.0.1", "--port", port, "--workers", "1"],
            "scheduler": ["airflow", "scheduler", "--skip-serve-logs"],
            "dag-processor": ["airflow", "dag-processor"],
            "triggerer": ["airflow", "triggerer", "--skip-serve-logs"],
            "triggerer-2": ["airflow", "triggerer", "--skip-serve-logs"],
        }
        if self.executor is Executor.Celery:
            for number in (1, 2):
                commands[f"worker-{number}"] = [
                    *("airflow", "celery", "worker", "--skip-serve-logs", "--concurrency", "8"),
                    *("--celery-hostname", f"worker-{number}@%h", "--without-mingle", "--without-gossip"),
                ]
        return commands

    def _configuration(self) -> dict[str, str]:
        configuration = {
            **_IMPATIENT,
            "api.base_url": self.url,
            "core.dags_folder": str(self._dags),
            "core.executor": self.executor,
            "core.execution_api_server_url": f"{self.execution_api.endpoint}/execution/",
            "core.parallelism": "24",
            "core.max_active_tasks_per_dag": "600",
            "core.max_active_runs_per_dag": "100",
        }
        if self.executor is Executor.Celery:
            configuration |= {
                "celery.broker_url": REDIS,
                "celery.result_backend": f"db+{_sync(self._database)}",
                "celery.sync_parallelism": "1",
                "celery.worker_enable_remote_control": "False",
                "celery_broker_transport_options.global_keyprefix": f"{self._name}:",
            }
        return configuration

    def _wait_until_up(self) -> None:
        self._until("API server", self._answers)
        expected = ["SchedulerJob", "TriggererJob", "DagProcessorJob"]
        for job_type in expected:
            self._until(job_type, lambda job_type=job_type: self.alive_jobs(job_type) > 0)
        self._until("DAGs", self._has_dags)

    def _answers(self) -> bool:
        try:
            return httpx.get(
                f"{self.url}/api/v2/version", timeout=5, trust_env=False, verify=False
            ).is_success
        except httpx.TransportError:
            return False

    def _has_dags(self) -> bool:
        errors = self.api.get("importErrors").raise_for_status().json()["import_errors"]
        if errors:
            raise AssertionError(errors[0]["stack_trace"])
        return bool(self.api.get("dags").raise_for_status().json()["total_entries"])

    def _until(self, what: str, look: Any) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while not look():
            dead = [
                each.name for each in self.components.values() if each.was_started and not each.is_running
            ]
            if dead or time.monotonic() > deadline:
                raise AssertionError(f"no {what}; ended: {dead}\n{self.log_tail()}")
            time.sleep(0.25)


def create_database(name: str, template: str = "template0") -> None:
    """Make a database."""
    with _engine(POSTGRES).connect() as connection:
        connection.execute(sa.text(f'CREATE DATABASE "{name}" TEMPLATE "{template}"'))


def drop_database(name: str) -> None:
    """Drop a database even if clients are connected to it."""
    with _engine(POSTGRES).connect() as connection:
        connection.execute(sa.text(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)'))


def _engine(url: str) -> sa.Engine:
    return sa.create_engine(_sync(url), isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)


def _sync(url: str) -> str:
    return url.replace("postgresql://", "postgresql+psycopg2://", 1)


def _with_database(url: str, name: str) -> str:
    return sa.make_url(url).set(database=name).render_as_string(hide_password=False)


def _environment(home: Path, database: str, configuration: Mapping[str, str]) -> dict[str, str]:
    everything = {
        "api.secret_key": secrets.token_urlsafe(32),
        "api_auth.jwt_secret": secrets.token_urlsafe(48),
        "core.dags_are_paused_at_creation": "False",
        "core.fernet_key": base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
        "core.hostname_callable": "socket.gethostname",
        "core.load_examples": "False",
        "database.sql_alchemy_conn": _sync(database),
        "usage_data_collection.enabled": "False",
        **configuration,
    }
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")},
        "AIRFLOW_HOME": str(home),
        "NO_PROXY": "localhost,127.0.0.1",
        "no_proxy": "localhost,127.0.0.1",
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        **{_variable(option): value for option, value in everything.items()},
    }


def _variable(option: str) -> str:
    section, _, key = option.partition(".")
    return f"AIRFLOW__{section.upper()}__{key.upper()}"


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
