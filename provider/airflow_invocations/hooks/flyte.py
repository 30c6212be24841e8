"""The connection type `flyte`: deployed tasks of a Flyte 2."""

from __future__ import annotations

from typing import Any

from airflow.sdk import Connection

from ..platforms.flyte import DEFAULT_TIMEOUT, FlytePlatform, FlyteSettings
from .fields import credential_of, endpoint_of, timeout_of, token_of, verify_of
from .invocation import InvocationHook


class FlyteHook(InvocationHook):
    """Invokes deployed tasks of Flyte 2.

    The connection: host (Flyte's address, https unless it says http), port if the host has none. Without a
    password nothing is sent to be let in; password alone is a bearer token; login and password are OAuth's
    client id and secret. Extra: project and domain (of actions whose names have none), org (for hosted
    Flyte), token_url (where tokens are fetched), scopes (a list, or words in a text), verify (true, false or
    the path of a CA bundle), timeout (seconds), link_base (where people look at runs, up to /v2).

    :param conn_id: the Airflow connection.
    """

    default_conn_name = "flyte_default"
    conn_type = "flyte"
    hook_name = "Flyte 2"

    def __init__(self, conn_id: str = default_conn_name, **kwargs: Any) -> None:
        super().__init__(conn_id, **kwargs)


def platform_of(connection: Connection, extra: dict[str, Any]) -> FlytePlatform:
    """The client that a connection asks for. Raises ValueError for one that makes no sense."""
    return FlytePlatform(settings_of(connection, extra))


def settings_of(connection: Connection, extra: dict[str, Any]) -> FlyteSettings:
    """Read a connection; `extra` is its extra as a dict. Raises ValueError: which field, what is allowed."""
    name = f"connection {connection.conn_id!r}"
    if not connection.host:
        raise ValueError(
            f"{name}: host is empty; allowed: Flyte's address, such as https://flyte.example.org"
        )
    client_id = credential_of(name, "login", connection.login or "") or None
    read_secret = token_of if client_id is None else credential_of
    secret = read_secret(name, "password", connection.password or "") or None
    if client_id is not None and secret is None:
        raise ValueError(f"{name}: login is a client id, and its secret, the password, is empty")
    return FlyteSettings(
        endpoint=endpoint_of(connection),
        project=_word(name, extra, "project"),
        domain=_word(name, extra, "domain"),
        org=_word(name, extra, "org"),
        client_id=client_id,
        secret=secret,
        token_url=_url(name, extra.get("token_url")),
        scopes=_scopes(name, extra.get("scopes")),
        verify=verify_of(name, extra.get("verify")),
        timeout=timeout_of(name, extra.get("timeout"), DEFAULT_TIMEOUT),
        link_base=extra.get("link_base") or None,
    )


def _word(name: str, extra: dict[str, Any], field: str) -> str | None:
    value = extra.get(field)
    if value in (None, ""):
        return None
    if not isinstance(value, str) or "/" in value or "@" in value:
        raise ValueError(f"{name}: extra {field!r} is {value!r}; allowed: a name, without / and @")
    return value


def _url(name: str, value: object) -> str | None:
    if value in (None, ""):
        return None
    if isinstance(value, str) and "@" in value:
        # Not shown: what is before an @ may be a password.
        raise ValueError(f"{name}: extra 'token_url' has an @ in it; client id and secret have their fields")
    if not isinstance(value, str) or not value.startswith(("https://", "http://")):
        raise ValueError(f"{name}: extra 'token_url' is {value!r}; allowed: an http(s) address")
    return value


def _scopes(name: str, value: object) -> tuple[str, ...]:
    match value:
        case None:
            return ()
        case str():
            return tuple(value.split())
        case list() if all(isinstance(scope, str) for scope in value):
            return tuple(value)
    raise ValueError(f"{name}: extra 'scopes' is {value!r}; allowed: a list of texts, or words in a text")
