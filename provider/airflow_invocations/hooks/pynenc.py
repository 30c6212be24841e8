"""The connection type `pynenc`: an app of Python tasks, and the Redis or SQLite that its runners share."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from airflow.sdk import Connection

from ..platforms.pynenc.settings import PynencSettings
from .fields import host_in_url
from .invocation import InvocationHook

#: An app's name: `module:attribute`, or `module.attribute`.
_APP = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*[:.][^\W\d]\w*")

_SCHEMES = ("redis", "rediss")


class PynencHook(InvocationHook):
    """Invoke pynenc tasks; an action's name is `module.function`.

    The connection: extra `app` (`module:attribute`, importable by workers and triggerers) and `app_id`,
    unless the app sets its id itself. The backend of its runners, unless the app sets it: host, port, login,
    password and schema (the database's number) of a Redis, with `rediss://` before the host for TLS, or extra
    `sqlite_path`. Extra `link_base` (URL of pynmon).

    :param conn_id: the Airflow connection.
    """

    default_conn_name = "pynenc_default"
    conn_type = "pynenc"
    hook_name = "pynenc (Python tasks)"

    @staticmethod
    def settings_of(connection: Connection, extra: dict[str, Any]) -> PynencSettings:
        """Return the settings of a connection; `extra` is its extra as a dict.

        :raises ValueError: a field is invalid; the message names it and what is allowed.
        """
        name = f"connection {connection.conn_id!r}"
        app = extra.get("app")
        if not isinstance(app, str) or not _APP.fullmatch(app):
            raise ValueError(
                f"{name}: extra 'app' is {app!r}; allowed: module:attribute, such as fleet_tasks:app"
            )
        path = extra.get("sqlite_path") or None
        if connection.host and path:
            raise ValueError(f"{name}: host and extra 'sqlite_path' are both set; allowed: only one of them")
        app_id, link_base = (extra.get(field) or None for field in ("app_id", "link_base"))
        named = PynencSettings(app, app_id=app_id, link_base=link_base)
        if path:
            if not isinstance(path, str) or not Path(path).is_absolute():
                raise ValueError(f"{name}: extra 'sqlite_path' is {path!r}; allowed: an absolute path")
            return replace(named, sqlite_path=path, backend=f"SQLite {path}")
        if connection.host:
            url, address = _redis(name, connection)
            return replace(named, redis_url=url, backend=address)
        return named


def _redis(name: str, connection: Connection) -> tuple[str, str]:
    """Return the URL of a Redis with the password, and its address without it."""
    scheme, separator, host = str(connection.host).strip().rpartition("://")
    scheme = scheme if separator else "redis"
    if scheme not in _SCHEMES:
        raise ValueError(f"{name}: host begins with {scheme}://; allowed: {', '.join(_SCHEMES)}, or none")
    if not host or set(host) & set("/@?#"):
        raise ValueError(
            f"{name}: host must be a host name; put login, password, port and schema into their fields"
        )
    database = connection.schema or "0"
    if not database.isdecimal():
        raise ValueError(f"{name}: schema is {database!r}; allowed: the number of the Redis database")
    port = connection.port or 6379
    address = f"{host_in_url(host)}:{port}/{database}"
    # Values from a file or a Kubernetes secret may end in a line feed.
    login, password = ((one or "").strip() for one in (connection.login, connection.password))
    credentials = f"{quote(login, safe='')}:{quote(password, safe='')}@" if login or password else ""
    return f"{scheme}://{credentials}{address}", f"{scheme}://{address}"
