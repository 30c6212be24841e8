"""A real one-node Ray cluster from PyPI, in an environment of its own, that all tests of a run share."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil

from .waiting import until

ROOT = Path(__file__).parents[2]

#: Where Ray is installed, which git ignores, and what is installed there.
ENVIRONMENT = ROOT / ".compat" / "ray"
LOCK = ROOT / "tests" / "platforms" / "ray.txt"

#: Custom resources of which each is one: who holds one keeps the jobs waiting that need a part of it.
GATES = 12

#: Set for each process of a node, with the node's folder.
_MARK = "INVOCATIONS_RAY_NODE"

#: Seconds in which a node has to answer, and to have run a first job.
START = 180.0


def install() -> Path:
    """Return Ray's command, after installing it if it isn't installed yet.

    :raises AssertionError: it can't be installed here.
    """
    ENVIRONMENT.parent.mkdir(exist_ok=True)
    stamp = ENVIRONMENT / ".up-to-date"
    wanted = f"{sys.version_info[:2]} {zlib.crc32(LOCK.read_bytes())}"
    with locked(ENVIRONMENT.parent / "ray.lock"):
        if not stamp.exists() or stamp.read_text() != wanted:
            shutil.rmtree(ENVIRONMENT, ignore_errors=True)
            uv = str(Path(sys.executable).with_name("uv"))
            _run(uv, "venv", "--quiet", "--python", sys.executable, str(ENVIRONMENT))
            _run(uv, "pip", "install", "--quiet", "--python", str(ENVIRONMENT), "--require-hashes",
                 "--requirements", str(LOCK))  # fmt: skip
            stamp.write_text(wanted)
    return ENVIRONMENT / "bin" / "ray"


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, (
        f"the tests need a real Ray, which can't be installed here: `{' '.join(command)}` says {done.stderr}"
    )


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock between processes."""
    with path.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield


def free_ports(number: int) -> list[int]:
    """Return ports that nothing listens at."""
    sockets = [socket.socket() for _ in range(number)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports


class RayNode:
    """A head node with one CPU. It may be killed, and started again at the same address.

    :param options: more options of `ray start`.
    """

    def __init__(self, *options: str) -> None:
        self._ray = install()
        # Sockets are in it, whose paths must be short.
        self.folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
        names = (
            "port", "dashboard-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port",
            "runtime-env-agent-port", "metrics-export-port", "node-manager-port", "object-manager-port",
        )  # fmt: skip
        ports = dict(zip(names, free_ports(len(names)), strict=True))
        self.endpoint = f"http://127.0.0.1:{ports['dashboard-port']}"
        gates = ", ".join(f'"gate{number}": 1' for number in range(GATES))
        self._command = [
            str(self._ray), "start", "--head", "--block", "--num-cpus=1", "--node-ip-address=127.0.0.1",
            "--object-store-memory=100000000", f"--resources={{{gates}}}", "--disable-usage-stats",
            "--min-worker-port=0", "--max-worker-port=0", f"--temp-dir={self.folder / 't'}",
            *(f"--{name}={port}" for name, port in ports.items()), *options,
        ]  # fmt: skip

    def start(self, environment: dict[str, str] | None = None) -> None:
        """Start it; return when it has run a job: the first one takes some seconds longer."""
        # Variables of Airflow's tests are none of Ray's.
        own = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "RAY_"))}
        own |= {"PATH": f"{self._ray.parent}:{own['PATH']}"}
        own |= {_MARK: str(self.folder), "RAY_memory_monitor_refresh_ms": "0", **(environment or {})}
        deadline = time.monotonic() + START
        process = self._spawn(own)
        while not self.answers():
            said = (self.folder / "log").read_text(errors="replace")[-2000:]
            assert time.monotonic() < deadline, f"Ray didn't start in {START:g} s: {said}"
            if process.poll() is not None:
                # On a machine that is busy, Ray's own processes wait for each other for too short a time.
                self.kill()
                process = self._spawn(own)
            time.sleep(0.2)

    def _spawn(self, environment: dict[str, str]) -> subprocess.Popen[bytes]:
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(
                self._command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def answers(self) -> bool:
        """Return whether its Jobs API answers."""
        try:
            return httpx.get(f"{self.endpoint}/api/version", timeout=5).is_success
        except httpx.HTTPError:
            return False

    def warm(self) -> None:
        """Run a job. The API answers before it can pass a job on to the node."""
        jobs, body = f"{self.endpoint}/api/jobs/", {"entrypoint": "true", "submission_id": "warm"}

        def has_run() -> bool:
            try:
                job = httpx.get(f"{jobs}warm", timeout=60)
                if not job.is_success:
                    httpx.post(jobs, json=body, timeout=60)
            except httpx.HTTPError:
                return False
            return job.is_success and bool(job.json()["status"] == "SUCCEEDED")

        until(has_run, within=START, every=0.3)

    def kill(self) -> None:
        """Kill all its processes, as a power cut would, also those that left its process group."""
        while found := self._processes():
            for process in found:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(signal.SIGKILL)
            psutil.wait_procs(found, timeout=5)

    def end(self) -> None:
        """Kill it and remove its folder."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _processes(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.status() == psutil.STATUS_ZOMBIE or process.pid == os.getpid():
                    continue
                if process.environ().get(_MARK) == str(self.folder):
                    found.append(process)
        return found


def _spawn_keeper(command: list[str], folder: Path) -> int:
    """Start a process that outlives this one, which `subprocess` would warn of; return its id."""
    log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    actions = [(os.POSIX_SPAWN_DUP2, log, 1), (os.POSIX_SPAWN_DUP2, log, 2)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pid = os.posix_spawn(command[0], command, environment, file_actions=actions, setsid=True)
    os.close(log)
    return pid


def claims_of(endpoint: str) -> Path:
    """Return the folder in which the processes of a test run claim the gates of a node."""
    return Path(tempfile.gettempdir(), f"ray-gates-{endpoint.rpartition(':')[2]}")


def shared_node() -> str:
    """Return the address of the node that all processes of this test run share; start it for the first.

    It ends with the test run: its keeper, a process of its own, watches pytest's main process. A node that
    RAY_TEST_ENDPOINT names is used instead: `python -m tests.support.ray_node PID FOLDER` keeps one.
    """
    if running := os.environ.get("RAY_TEST_ENDPOINT"):
        return running
    main = os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid()
    folder = Path(tempfile.gettempdir(), f"ray-tests-{main}")
    folder.mkdir(exist_ok=True)
    address = folder / "address"
    install()
    with locked(folder / "lock"):
        if not address.exists():
            keeper = _spawn_keeper(
                [sys.executable, "-m", "tests.support.ray_node", str(main), str(folder)], folder
            )
            until(lambda: address.exists() or os.waitpid(keeper, os.WNOHANG)[0], within=2 * START)
            said = (folder / "log").read_text()[-3000:]
            if not address.exists():
                shutil.rmtree(folder, ignore_errors=True)
                raise AssertionError(f"the tests need a real Ray, which doesn't run here: {said}")
    return address.read_text()


def keep(main: int, folder: Path) -> None:
    """Run the shared node until pytest's main process has ended."""
    node = RayNode()
    try:
        node.start()
        node.warm()
        (folder / "new").write_text(node.endpoint)
        (folder / "new").rename(folder / "address")
        while _lives(main):
            time.sleep(0.5)
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        node.end()
        shutil.rmtree(claims_of(node.endpoint), ignore_errors=True)


def _lives(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    keep(int(sys.argv[1]), Path(sys.argv[2]))
