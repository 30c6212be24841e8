"""The connection type `pynenc`: an app of Python tasks, and the Redis or SQLite that its runners share."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from airflow.sdk import Connection

from ..platforms.pynenc.platform import PynencPlatform, PynencSettings
from .fields import host_in_url
from .invocation import InvocationHook

#: What names an app: `module:attribute`, or `module.attribute`.
_APP = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*[:.][^\W\d]\w*")

_SCHEMES = ("redis", "rediss")


class PynencHook(InvocationHook):
    """Invokes pynenc tasks; an action's name is `module.function`.

    The connection: extra `app` (`module:attribute`, importable wherever tasks and triggers run) and `app_id`,
    if the app itself doesn't say as which its runners run; the backend that they share, if the app itself
    doesn't say: host, port, login, password and schema (the database's number) of a Redis, `rediss://` before
    the host for TLS, or extra `sqlite_path`; extra `link_base` (where pynmon is).

    :param conn_id: the Airflow connection.
    """

    default_conn_name = "pynenc_default"
    conn_type = "pynenc"
    hook_name = "pynenc (Python tasks)"

    def __init__(self, conn_id: str = default_conn_name, **kwargs: Any) -> None:
        super().__init__(conn_id, **kwargs)


def platform_of(connection: Connection, extra: dict[str, Any]) -> PynencPlatform:
    """The client that a connection asks for. Raises ValueError for one that makes no sense."""
    return PynencPlatform(settings_of(connection, extra))


def settings_of(connection: Connection, extra: dict[str, Any]) -> PynencSettings:
    """Read a connection; `extra` is its extra as a dict. Raises ValueError: which field, what is allowed."""
    name = f"connection {connection.conn_id!r}"
    app = extra.get("app")
    if not isinstance(app, str) or not _APP.fullmatch(app):
        raise ValueError(
            f"{name}: extra 'app' is {app!r}; allowed: module:attribute, such as fleet_tasks:app"
        )
    path = extra.get("sqlite_path") or None
    if connection.host and path:
        raise ValueError(f"{name}: host and extra 'sqlite_path' are two backends; allowed: one of them")
    named = PynencSettings(app, app_id=extra.get("app_id") or None, link_base=extra.get("link_base") or None)
    if path:
        if not isinstance(path, str) or not Path(path).is_absolute():
            raise ValueError(f"{name}: extra 'sqlite_path' is {path!r}; allowed: a path from the root on")
        return replace(named, sqlite_path=path, backend=f"SQLite {path}")
    if connection.host:
        url, address = _redis(name, connection)
        return replace(named, redis_url=url, backend=address)
    return named


def _redis(name: str, connection: Connection) -> tuple[str, str]:
    """A Redis's url, which has the password in it, and its address, which hasn't."""
    scheme, separator, host = str(connection.host).strip().rpartition("://")
    scheme = scheme if separator else "redis"
    if scheme not in _SCHEMES:
        raise ValueError(f"{name}: host begins with {scheme}://; allowed: {', '.join(_SCHEMES)}, or none")
    if not host or set(host) & set("/@?#"):
        raise ValueError(
            f"{name}: host isn't only a host; login, password, port and schema have their fields"
        )
    database = connection.schema or "0"
    if not database.isdecimal():
        raise ValueError(f"{name}: schema is {database!r}; allowed: a number, that of the Redis database")
    port = connection.port or 6379
    address = f"{host_in_url(host)}:{port}/{database}"
    # As read from a file or a secret of Kubernetes they may end in a line feed.
    login, password = ((one or "").strip() for one in (connection.login, connection.password))
    credentials = f"{quote(login, safe='')}:{quote(password, safe='')}@" if login or password else ""
    return f"{scheme}://{credentials}{address}", f"{scheme}://{address}"
