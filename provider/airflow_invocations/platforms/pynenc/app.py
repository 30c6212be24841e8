"""Loads the app that a connection names, and makes of it one that only calls; imported when it is needed."""

from __future__ import annotations

import importlib
import inspect
import logging
from pathlib import Path
from types import ModuleType
from typing import Any

from pynenc import Pynenc
from pynenc.broker.base_broker import BaseBroker
from pynenc.client_data_store.base_client_data_store import BaseClientDataStore
from pynenc.conf.config_sqlite import ConfigSQLite
from pynenc.identifiers.task_id import TaskId
from pynenc.orchestrator.base_orchestrator import BaseOrchestrator
from pynenc.state_backend.base_state_backend import BaseStateBackend
from pynenc.task import Task
from pynenc.trigger.base_trigger import BaseTrigger
from pynenc.util.subclasses import get_subclass

from ..errors import InvalidRequestError, NotFoundError, UnavailableError
from .settings import PynencSettings, require_version

#: What keeps an app's state: the setting that names its class, and what that is a kind of.
_PARTS = {
    "orchestrator_cls": BaseOrchestrator,
    "broker_cls": BaseBroker,
    "state_backend_cls": BaseStateBackend,
    "client_data_store_cls": BaseClientDataStore,
    # Also where callers agree on who of them registers an invocation.
    "trigger_cls": BaseTrigger,
}

#: pynenc's own words; it says each step of each invocation otherwise.
_log = logging.getLogger("airflow_invocations.pynenc")
_log.setLevel(logging.WARNING)


class CallersApp(Pynenc):  # type: ignore[misc]
    """An app like the one that runs the tasks, for somebody who only calls.

    pynenc's own words go where all others go, not to stderr; and the description that an app leaves in its
    backend, passwords and all, stays that of the cluster.
    """

    #: The app as its module has it.
    theirs: Pynenc
    _kept: BaseStateBackend | None = None

    @property
    def logger(self) -> logging.Logger:
        """The provider's."""
        return _log

    @property
    def state_backend(self) -> BaseStateBackend:
        """The state backend, which isn't told of this app."""
        if self._kept is None:
            self._kept = get_subclass(BaseStateBackend, self.conf.state_backend_cls)(self)
        return self._kept


def load_app(settings: PynencSettings) -> CallersApp:
    """The app that a connection names, on the backend that it names.

    Raises:
        InvalidRequestError: it can't be imported, isn't an app, or nobody would ever run what it submits.
        UnavailableError: its SQLite database isn't there (yet).
    """
    theirs = _imported_app(settings.app)
    chosen = _chosen(settings)
    app = CallersApp(
        config_values={**(theirs.config_values or {}), **chosen}, config_filepath=theirs.config_filepath
    )
    app.theirs = theirs
    if app.conf.dev_mode_force_sync_tasks:
        raise InvalidRequestError(
            f"app {settings.app} has dev_mode_force_sync_tasks set: it would run its tasks right here"
        )
    for part, kind in _PARTS.items():
        _require_usable(settings.app, app, part, kind)
    _require_same_backend(settings, app, chosen)
    return app


def load_task(app: CallersApp, name: str) -> Task:
    """The task `module.function`.

    Raises:
        NotFoundError: there is no such module, or nothing in it that is a task.
        InvalidRequestError: its module can't be imported; the import's own error.
    """
    module, _, function = name.rpartition(".")
    if not (module and function):
        raise NotFoundError(f"{name!r} is no name of a pynenc task; allowed: module.function")
    imported = _imported(module, f"task {name!r}")
    task_id = TaskId(module, function)
    if task_id in app.theirs.tasks and task_id not in app.tasks:
        # It may have been registered without its name in the module being the task.
        app.tasks[task_id] = Task.clone_for_app(app, app.theirs.tasks[task_id])
    if task_id not in app.tasks and not hasattr(imported, function):
        raise NotFoundError(f"there is no task {name!r}: module {module!r} has no {function!r}")
    try:
        return app.get_task(task_id)
    except ValueError:
        raise NotFoundError(
            f"there is no task {name!r}: {function!r} in {module!r} is no pynenc task"
        ) from None


def _imported_app(reference: str) -> Pynenc:
    module, _, attribute = reference.replace(":", ".").rpartition(".")
    try:
        imported = _imported(module, f"app {reference!r}")
    except NotFoundError as error:
        raise InvalidRequestError(str(error)) from None
    if not hasattr(imported, attribute):
        raise InvalidRequestError(f"there is no app {reference!r}: module {module!r} has no {attribute!r}")
    app = getattr(imported, attribute)
    if not isinstance(app, Pynenc):
        raise InvalidRequestError(f"{reference!r} is no pynenc app but of type {type(app).__name__}")
    return app


def _imported(module: str, what: str) -> ModuleType:
    """A module of the user's, whatever goes wrong in it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module}.".startswith(f"{error.name}."):
            raise NotFoundError(f"there is no {what}: there is no module {error.name!r} here") from None
        raise InvalidRequestError(f"{what} can't be imported: {type(error).__name__}: {error}") from error
    except (Exception, SystemExit) as error:
        raise InvalidRequestError(f"{what} can't be imported: {type(error).__name__}: {error}") from error


def _chosen(settings: PynencSettings) -> dict[str, Any]:
    """The configuration that the connection means."""
    chosen: dict[str, Any] = {} if settings.app_id is None else {"app_id": settings.app_id}
    if settings.redis_url is not None:
        chosen |= {**_classes("Redis"), "redis_url": settings.redis_url}
    if settings.sqlite_path is not None:
        chosen |= {**_classes("SQLite"), "sqlite_db_path": settings.sqlite_path}
    return chosen


def _classes(kind: str) -> dict[str, str]:
    return {
        "orchestrator_cls": f"{kind}Orchestrator",
        "broker_cls": f"{kind}Broker",
        "state_backend_cls": f"{kind}StateBackend",
        "client_data_store_cls": f"{kind}ClientDataStore",
        "trigger_cls": f"{kind}Trigger",
    }


def _require_usable(reference: str, app: Pynenc, part: str, kind: type) -> None:
    """Raise InvalidRequestError unless this part of an app is one that others see too, and complete."""
    name = getattr(app.conf, part)
    if name.startswith("Mem"):
        raise InvalidRequestError(
            f"app {reference}: {part} is {name}, which keeps everything in this process, and nobody else "
            "would see it; name a Redis or a SQLite database in the connection, or configure the app"
        )
    if name.startswith("Redis"):
        require_version("pynenc-redis")
    try:
        found = get_subclass(kind, name)
    except ValueError:
        raise InvalidRequestError(
            f"app {reference}: {part} is {name}, which is not to be found here: is its package installed, in "
            "the version of pynenc's?"
        ) from None
    if inspect.isabstract(found):
        lacking = ", ".join(sorted(found.__abstractmethods__))
        raise InvalidRequestError(
            f"app {reference}: {name} is of another version than pynenc, it lacks {lacking}"
        )


def _require_same_backend(settings: PynencSettings, app: Pynenc, chosen: dict[str, Any]) -> None:
    """Raise unless the app goes where the connection says: pynenc's variables are stronger than that."""
    if app.conf.orchestrator_cls == "SQLiteOrchestrator":
        _require_database(settings, app)
    part = app.orchestrator.conf
    for name, wanted in chosen.items():
        if getattr(app.conf if hasattr(app.conf, name) else part, name) != wanted:
            raise InvalidRequestError(
                f"an environment variable, PYNENC__{name.upper()} or the like, leads elsewhere than to "
                f"{settings.where}, which the connection names; unset it here"
            )


def _require_database(settings: PynencSettings, app: Pynenc) -> None:
    """Raise unless an app's SQLite database is there: pynenc would make one, which no runner looks at."""
    path = ConfigSQLite(app.config_values, app.config_filepath).sqlite_db_path
    if not path:
        raise InvalidRequestError(f"app {settings.app} is on SQLite and doesn't say where: sqlite_db_path")
    if not Path(path).exists():
        raise UnavailableError(f"{settings.where}: there is no {path} (yet); a runner makes it")
