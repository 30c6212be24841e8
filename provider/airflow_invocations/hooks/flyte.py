"""The connection type `flyte`: deployed tasks of Flyte 2."""

from __future__ import annotations

from typing import Any

from airflow.sdk import Connection

from ..platforms.flyte import DEFAULT_TIMEOUT, FlyteSettings
from .fields import credential_of, endpoint_of, timeout_of, token_of, verify_of
from .invocation import InvocationHook


class FlyteHook(InvocationHook):
    """Invoke deployed tasks of Flyte 2.

    The connection: host (Flyte's URL; https by default), and port if the host has none. Without a password,
    requests have no credentials; a password alone is a bearer token; login and password are an OAuth 2 client
    id and secret. Extra: project and domain (defaults for action names without them), org (hosted Flyte
    only), token_url (of the token endpoint), scopes (a list, or a string separated by spaces), verify (true,
    false or the path of a CA bundle), timeout (seconds), link_base (URL of the console, up to /v2).

    :param conn_id: the Airflow connection.
    """

    default_conn_name = "flyte_default"
    conn_type = "flyte"
    hook_name = "Flyte 2"

    @staticmethod
    def settings_of(connection: Connection, extra: dict[str, Any]) -> FlyteSettings:
        """Return the settings of a connection; `extra` is its extra as a dict.

        :raises ValueError: a field is invalid; the message names it and what is allowed.
        """
        name = f"connection {connection.conn_id!r}"
        if not connection.host:
            raise ValueError(
                f"{name}: host is empty; allowed: Flyte's URL, such as https://flyte.example.org"
            )
        client_id = credential_of(name, "login", connection.login or "") or None
        read_secret = token_of if client_id is None else credential_of
        secret = read_secret(name, "password", connection.password or "") or None
        if client_id is not None and secret is None:
            raise ValueError(f"{name}: password is empty; it must be the secret of the client id in login")
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
        raise ValueError(f"{name}: extra {field!r} is {value!r}; allowed: a name without / and @")
    return value


def _url(name: str, value: object) -> str | None:
    if value in (None, ""):
        return None
    if isinstance(value, str) and "@" in value:
        # Not shown: the part before an @ may be a password.
        raise ValueError(
            f"{name}: extra 'token_url' contains an @; put client id and secret into login and password"
        )
    if not isinstance(value, str) or not value.startswith(("https://", "http://")):
        raise ValueError(f"{name}: extra 'token_url' is {value!r}; allowed: an http or https URL")
    return value


def _scopes(name: str, value: object) -> tuple[str, ...]:
    match value:
        case None:
            return ()
        case str():
            return tuple(value.split())
        case list() if all(isinstance(scope, str) for scope in value):
            return tuple(value)
    raise ValueError(
        f"{name}: extra 'scopes' is {value!r}; allowed: a list of strings, or a string separated by spaces"
    )
