"""Load the app of a connection as one that only submits; imported when it is needed."""

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

#: The components that keep an app's state: the setting with the class, and its base class.
_PARTS = {
    "orchestrator_cls": BaseOrchestrator,
    "broker_cls": BaseBroker,
    "state_backend_cls": BaseStateBackend,
    "client_data_store_cls": BaseClientDataStore,
    # Callers also use it to agree on which of them registers an invocation.
    "trigger_cls": BaseTrigger,
}

#: pynenc's log, which otherwise has a line for each step of each invocation.
_log = logging.getLogger("airflow_invocations.pynenc")
_log.setLevel(logging.WARNING)


class CallersApp(Pynenc):  # type: ignore[misc]
    """A copy of an app, for a caller that runs no tasks.

    It logs to Python's logging, not to stderr, and doesn't overwrite the app's description in the backend,
    which contains passwords.
    """

    #: The app in its module.
    theirs: Pynenc
    _kept: BaseStateBackend | None = None

    @property
    def logger(self) -> logging.Logger:
        """The provider's log."""
        return _log

    @property
    def state_backend(self) -> BaseStateBackend:
        """The state backend, in which this app isn't stored."""
        if self._kept is None:
            self._kept = get_subclass(BaseStateBackend, self.conf.state_backend_cls)(self)
        return self._kept


def load_app(settings: PynencSettings) -> CallersApp:
    """Return the app of a connection, on the connection's backend.

    :raises InvalidRequestError: it can't be imported, isn't an app, or no runner can see what it submits.
    :raises UnavailableError: its SQLite database doesn't exist.
    """
    theirs = _imported_app(settings.app)
    chosen = _chosen(settings)
    app = CallersApp(
        config_values={**(theirs.config_values or {}), **chosen}, config_filepath=theirs.config_filepath
    )
    app.theirs = theirs
    if app.conf.dev_mode_force_sync_tasks:
        raise InvalidRequestError(
            f"app {settings.app} has dev_mode_force_sync_tasks set, so its tasks would run in this process"
        )
    for part, kind in _PARTS.items():
        _require_usable(settings.app, app, part, kind)
    _require_same_backend(settings, app, chosen)
    return app


def load_task(app: CallersApp, name: str) -> Task:
    """Return the task `module.function`.

    :raises NotFoundError: there is no such module, or no such task in it.
    :raises InvalidRequestError: its module can't be imported; the message has the import's error.
    """
    module, _, function = name.rpartition(".")
    if not (module and function):
        raise NotFoundError(f"{name!r} is not the name of a pynenc task; allowed: module.function")
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
            f"there is no task {name!r}: {function!r} in {module!r} is not a pynenc task"
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
        raise InvalidRequestError(f"{reference!r} is not a pynenc app but of type {type(app).__name__}")
    return app


def _imported(module: str, what: str) -> ModuleType:
    """Import a module of the user. Raises InvalidRequestError for any error in it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module}.".startswith(f"{error.name}."):
            raise NotFoundError(f"there is no {what}: module {error.name!r} is not installed here") from None
        raise InvalidRequestError(f"{what} can't be imported: {type(error).__name__}: {error}") from error
    except (Exception, SystemExit) as error:
        raise InvalidRequestError(f"{what} can't be imported: {type(error).__name__}: {error}") from error


def _chosen(settings: PynencSettings) -> dict[str, Any]:
    """Return the configuration of a connection."""
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
    """Raise InvalidRequestError unless a component of an app is shared with other processes and complete."""
    name = getattr(app.conf, part)
    if name.startswith("Mem"):
        raise InvalidRequestError(
            f"app {reference}: {part} is {name}, which keeps its data in this process, where no "
            "runner can see it; name a Redis or SQLite database in the connection, or configure the app"
        )
    if name.startswith("Redis"):
        require_version("pynenc-redis")
    try:
        found = get_subclass(kind, name)
    except ValueError:
        raise InvalidRequestError(
            f"app {reference}: {part} is {name}, which can't be found here; check that its package is "
            "installed in the same version as pynenc"
        ) from None
    if inspect.isabstract(found):
        lacking = ", ".join(sorted(found.__abstractmethods__))
        raise InvalidRequestError(
            f"app {reference}: {name} has another version than pynenc; missing: {lacking}"
        )


def _require_same_backend(settings: PynencSettings, app: Pynenc, chosen: dict[str, Any]) -> None:
    """Raise unless the app uses the connection's backend: environment variables override it."""
    if app.conf.orchestrator_cls == "SQLiteOrchestrator":
        _require_database(settings, app)
    part = app.orchestrator.conf
    for name, wanted in chosen.items():
        if getattr(app.conf if hasattr(app.conf, name) else part, name) != wanted:
            raise InvalidRequestError(
                f"an environment variable such as PYNENC__{name.upper()} overrides {settings.where}, which "
                "the connection names; unset it here"
            )


def _require_database(settings: PynencSettings, app: Pynenc) -> None:
    """Raise unless an app's SQLite database exists: pynenc would create one that no runner uses."""
    path = ConfigSQLite(app.config_values, app.config_filepath).sqlite_db_path
    if not path:
        raise InvalidRequestError(f"app {settings.app} uses SQLite but does not set sqlite_db_path")
    if not Path(path).exists():
        raise UnavailableError(f"{settings.where}: {path} does not exist yet; a runner creates it")
