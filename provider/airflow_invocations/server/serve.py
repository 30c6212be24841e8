"""Run the server in the foreground (`invocations serve`)."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import gc
import json
import logging
import os
import signal
import socket
import stat
import sys
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import uvicorn

from ..runtime.secrets import write_private
from .api.app import create_app
from .connections import BoundedConfig, RareReports, max_connections, raise_descriptor_limit
from .datasets import DatasetFiles
from .db import LOCAL_ORG, LOCAL_USER, Store, open_store
from .errors import InvalidRequestError
from .execution.action_files import read_action
from .execution.log_format import configure_logging
from .execution.logs import LogFiles
from .execution.runner import Runner, in_loop
from .execution.subreaper import Subreaper
from .metrics import CountRequests, Metrics
from .secrets import Secrets
from .settings import ServerSettings, StartError
from .signed_urls import SignedUrls
from .storage_credentials import StorageCredentials
from .tokens import Tokens, token_of
from .uploads import Uploads
from .watch_hub import WatchHub

_log = logging.getLogger(__name__)

#: Threads besides those of the actions: for watches, probes and the database.
_THREADS = 16


def serve(settings: ServerSettings) -> None:
    """Run the server until SIGTERM or SIGINT.

    :raises StartError: the data folder, its database or the port can't be used, or an action.json is invalid.
    """
    configure_logging()
    with _private_files(), _data_folder(settings.data_dir), _listening(settings) as listener:
        settings.announcement.unlink(missing_ok=True)  # of an earlier run that was killed
        store = open_store(settings.database)
        try:
            names = _register_actions(store, settings.actions_dir)
            asyncio.run(_serve(settings, store, listener, names))
        finally:
            store.close()


async def _serve(settings: ServerSettings, store: Store, listener: socket.socket, names: list[str]) -> None:
    token = token_of(settings.data_dir)
    logs = LogFiles(settings.logs, secret=token)
    tokens = Tokens(token, store)
    datasets = DatasetFiles(store, settings.datasets)
    secrets = Secrets(store, settings.secrets_key)
    subreaper = Subreaper()
    subreaper.enable()
    runner = Runner(store, datasets, secrets, logs, tokens, settings, subreaper)
    endpoint = _endpoint(listener)
    watches = WatchHub(store, logs, tokens.is_current)
    metrics = Metrics(store.invocations.count_by_status, watches.__len__)
    uploads = Uploads(datasets, settings.uploads)
    credentials = StorageCredentials(token)
    urls = SignedUrls(token)
    api = create_app(
        store, datasets, logs, tokens, urls, uploads, credentials, secrets, watches, metrics, settings
    )
    # The outermost middleware, so that it also counts the responses of a failed app.
    app = CountRequests(api, metrics)
    config = BoundedConfig(
        app,
        max_connections(raise_descriptor_limit(), settings.slots),
        log_config=None,  # uvicorn's messages go to this server's log
        access_log=False,  # requests are counted, see /metrics
        lifespan="off",
        timeout_graceful_shutdown=settings.shutdown_timeout,
        server_header=False,
    )
    server = _Server(config, watches)
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(RareReports())
    # Each slot has a thread, as it may copy files for hours.
    loop.set_default_executor(ThreadPoolExecutor(max_workers=_THREADS + settings.slots))
    store.database.listen_to_events(in_loop(loop, watches.committed))
    store.states.listen(in_loop(loop, watches.state_updated))
    store.database.listen_to_events(metrics.committed)
    logs.listen(watches.log_grew)
    tokens.listen(watches.token_ended)
    logs.listen(metrics.log_grew)

    def stop() -> None:
        store.database.interrupt_queries()
        server.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    # Loaded modules stay; collecting garbage among their objects caused pauses of 50 ms.
    gc.collect()
    gc.freeze()
    async with _running(runner, endpoint), _announced(settings, endpoint, token):
        _say_ready(settings, endpoint, names)
        await server.serve(sockets=[listener])


def _say_ready(settings: ServerSettings, endpoint: str, names: list[str]) -> None:
    where = f"data in {settings.data_dir}, {settings.slots} slots"
    sys.stderr.write(f"serving {endpoint}\n{where}, actions: {', '.join(names) or 'none yet'}\n")
    sys.stderr.flush()


class _Server(uvicorn.Server):
    """A uvicorn server without signal handlers; uvicorn's raise the signals again after the shutdown."""

    def __init__(self, config: uvicorn.Config, watches: WatchHub) -> None:
        super().__init__(config)
        self._watches = watches

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def stop(self) -> None:
        self.should_exit = True
        self._watches.close()


@contextlib.asynccontextmanager
async def _running(runner: Runner, endpoint: str) -> AsyncIterator[None]:
    await runner.start(endpoint)
    try:
        yield
    finally:
        await runner.stop()


@contextlib.asynccontextmanager
async def _announced(settings: ServerSettings, endpoint: str, token: str) -> AsyncIterator[None]:
    """Keep server.json while the server accepts requests.

    The listener accepts connections before the file is written, so its readers can connect.
    """
    path = settings.announcement
    content = json.dumps({"endpoint": endpoint, "token": token, "pid": os.getpid()})
    write_private(path, content)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _data_folder(folder: Path) -> Iterator[None]:
    """Create the data folder if it doesn't exist, and lock it while the server runs."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _make_private(folder)
        lock = (folder / "lock").open("a")
    except OSError as error:
        raise StartError(f"can't write to the data folder {folder}: {error.strerror}") from None
    with lock:
        _lock(lock, folder)
        yield


@contextlib.contextmanager
def _private_files() -> Iterator[None]:
    """Give only this process's user access to new files; actions get another umask."""
    former = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(former)


def _make_private(folder: Path) -> None:
    """Remove read access for other users, and reject a folder that other users can write to.

    :raises StartError: other users can write to it, so its files can't be trusted.
    """
    mode = stat.S_IMODE(folder.stat().st_mode)
    if mode & 0o022:
        raise StartError(
            f"other users can write to the data folder {folder} (mode {mode:04o}); run "
            f"'chmod 700 {folder}', or choose a folder below it, which is created with mode 0700"
        )
    if mode & 0o055:
        folder.chmod(0o700)
        _log.warning(
            "other users could read the data folder %s (mode %04o); changed its mode to 0700", folder, mode
        )


def _lock(lock: IO[str], folder: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise StartError(
            f"another server already runs on {folder}; stop it or choose another --data-dir"
        ) from None


@contextlib.contextmanager
def _listening(settings: ServerSettings) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # asyncio sets TCP_NODELAY only on sockets with an explicit protocol TCP.
    with socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((settings.host, settings.port))
            listener.listen(1024)
        except OSError as error:
            where = f"{settings.host}:{settings.port}"
            raise StartError(
                f"can't listen on {where}: {error.strerror}; choose another --port (0: any)"
            ) from None
        yield listener


def _endpoint(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    return f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"


def _register_actions(store: Store, folder: Path | None) -> list[str]:
    """Register the action of every subfolder that has an action.json; return the actions' names.

    An action without a working directory works in its own folder, as an action in an image does.
    """
    if folder is None:
        return []
    if not folder.is_dir():
        raise StartError(f"--actions {folder}: there is no such folder")
    names: dict[str, Path] = {}
    for path in sorted(folder.glob("*/action.json")):
        action, warnings = read_action(path)
        for warning in warnings:
            _log.warning("%s: %s", path, warning)
        if action.name in names:
            raise StartError(f"{path}: the name {action.name!r} is already used by {names[action.name]}")
        container = action.container_parameters
        if container is not None:
            container.workdir = str((path.parent / (container.workdir or ".")).resolve())
        store.actions.register(action, LOCAL_ORG, LOCAL_USER)
        names[action.name] = path
    for name, path in names.items():
        try:
            store.actions.effective(name, LOCAL_ORG)
        except InvalidRequestError as error:
            raise StartError(f"{path}: {error.message}") from None
    return list(names)
