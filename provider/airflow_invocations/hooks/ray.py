"""The connection type `ray`: jobs of a Ray cluster, as a catalogue of actions names them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from airflow.sdk import Connection

from ..platforms.ray.settings import DEFAULT_TIMEOUT, RaySettings
from .fields import endpoint_of, timeout_of, token_of, verify_of
from .invocation import InvocationHook


class RayHook(InvocationHook):
    """Submit jobs to a Ray cluster; an action's name is a key of the connection's catalogue.

    The connection: host (URL of Ray's dashboard; https by default), port if the host has none, and the
    cluster's token as password (empty: no authentication). Extra: actions (the catalogue: an object, or the
    path or URL of a JSON or YAML file), runtime_env (an object that the actions' own environments extend),
    verify (true, false or the path of a CA bundle), timeout (seconds), link_base (URL of the dashboard for
    users).

    :param conn_id: the Airflow connection.
    """

    default_conn_name = "ray_default"
    conn_type = "ray"
    hook_name = "Ray Jobs"

    @staticmethod
    def settings_of(connection: Connection, extra: dict[str, Any]) -> RaySettings:
        """Return the settings of a connection; `extra` is its extra as a dict.

        :raises ValueError: a field is invalid; the message names it and what is allowed.
        """
        name = f"connection {connection.conn_id!r}"
        if not connection.host:
            raise ValueError(
                f"{name}: host is empty; allowed: the URL of Ray's dashboard, such as https://ray.example.org"
            )
        if connection.login:
            raise ValueError(f"{name}: login is set, but Ray has no logins; its token is the password")
        return RaySettings(
            endpoint=endpoint_of(connection),
            token=token_of(name, "password", connection.password or "") or None,
            actions=_actions(name, extra.get("actions")),
            runtime_env=_runtime_env(name, extra.get("runtime_env")),
            verify=verify_of(name, extra.get("verify")),
            timeout=timeout_of(name, extra.get("timeout"), DEFAULT_TIMEOUT),
            link_base=extra.get("link_base") or None,
        )


def _actions(name: str, value: object) -> dict[str, Any] | str:
    """Return the catalogue, or its address."""
    found = _parsed(value)
    match found:
        case None | "":
            return {}
        case dict():
            return found
        case str() if found.startswith(("https://", "http://")) or Path(found).is_absolute():
            return found
    raise ValueError(
        f"{name}: extra 'actions' must be an object of actions by name, or the absolute path or http(s) URL "
        "of a JSON or YAML file with one"
    )


def _runtime_env(name: str, value: object) -> dict[str, Any]:
    """Return the runtime environment of all actions."""
    from ..platforms.ray.catalogue import check_runtime_env  # needs pydantic; DAG files import this module

    found = _parsed(value)
    if found in (None, ""):
        return {}
    if not isinstance(found, dict):
        raise ValueError(f"{name}: extra 'runtime_env' must be an object, as Ray's runtime_env is")
    try:
        check_runtime_env(found)
    except ValueError as error:
        raise ValueError(f"{name}: extra 'runtime_env': {error}") from None
    return found


def _parsed(value: object) -> object:
    """Return an object from its JSON text, as the connection's form and URIs have it; else the value."""
    if not isinstance(value, str) or not value.lstrip().startswith("{"):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value
