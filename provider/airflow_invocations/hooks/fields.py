"""Read connection fields that several connection types share."""

from __future__ import annotations

import ipaddress
import re

import httpx
from airflow.sdk import Connection

#: Characters that are invalid in a token: all but visible ASCII (RFC 6750, section 2.1).
_NOT_IN_TOKENS = re.compile(r"[^\x21-\x7e]")

#: Characters that are invalid in a host. Without this check, httpx would escape some of them.
_NOT_IN_HOSTS = re.compile(r"[\x00-\x20\x7f\s%\\<>\"^`{|}]")

#: Characters that are invalid in OAuth client ids and secrets: all but printable ASCII (RFC 6749,
#: appendix A).
_NOT_IN_CREDENTIALS = re.compile(r"[^\x20-\x7e]")


def endpoint_of(connection: Connection) -> str:
    """Return the URL from host, schema (default: https) and port.

    :raises ValueError: the message says which field is invalid and what is allowed.
    """
    name = f"connection {connection.conn_id!r}"
    host = str(connection.host).strip().rstrip("/")
    if "://" not in host:
        host = f"{connection.schema or 'https'}://{host}"
    scheme, _, address = host.partition("://")
    if scheme not in ("http", "https"):
        raise ValueError(f"{name}: host begins with {scheme}://; allowed: http, https")
    if set(address) & set("@?#"):
        # Not shown: the part before an @ may be a password.
        raise ValueError(
            f"{name}: host must be an address without '@', '?' and '#'; put login and password into their "
            "own fields"
        )
    where, slash, path = address.partition("/")
    where = host_in_url(where)
    if connection.port and ":" not in where.rpartition("]")[2]:
        where = f"{where}:{connection.port}"
    endpoint = f"{scheme}://{where}{slash}{path}"
    if not _is_address(where, endpoint):
        raise ValueError(
            f"{name}: host and port make {endpoint!r}, which is not a valid URL; allowed: a URL such as "
            "https://host.example.org or https://[2001:db8::1]:8085"
        )
    return endpoint


def _is_address(where: str, endpoint: str) -> bool:
    if not where or _NOT_IN_HOSTS.search(where):
        return False
    try:
        httpx.URL(endpoint)
    except httpx.InvalidURL:
        return False
    return True


def host_in_url(host: str) -> str:
    """Return a host for a URL: an IPv6 address gets the brackets that Airflow removes from URIs."""
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        return host
    return f"[{host}]"


def token_of(name: str, field: str, value: str) -> str:
    """Return a token, or another value for a header, without surrounding whitespace.

    :param name: the connection, for messages.
    :param field: the name of the connection's field.
    :raises ValueError: the value is invalid; the message names the field and never shows the value.
    """
    return _sendable(name, field, value, _NOT_IN_TOKENS, "visible ASCII characters, no spaces")


def credential_of(name: str, field: str, value: str) -> str:
    """Return an OAuth client id or secret without surrounding whitespace; see `token_of`."""
    return _sendable(name, field, value, _NOT_IN_CREDENTIALS, "printable ASCII characters")


def _sendable(name: str, field: str, value: str, wrong: re.Pattern[str], allowed: str) -> str:
    stripped = value.strip()
    if (found := wrong.search(stripped)) is not None:
        # The value is not shown: it may be a secret.
        raise ValueError(
            f"{name}: {field} can't be sent in a header: character {found.start() + 1} of {len(stripped)} "
            f"isn't allowed; allowed: {allowed}"
        )
    return stripped


def verify_of(name: str, value: object) -> bool | str:
    """Return the extra `verify`: True, False, or the path of a CA bundle. Raises ValueError."""
    match value:
        case None | "":
            return True
        case bool():
            return value
        case str():
            return {"true": True, "false": False}.get(value.lower(), value)
    raise ValueError(f"{name}: extra 'verify' is {value!r}; allowed: true, false, the path of a CA bundle")


def timeout_of(name: str, value: object, default: float) -> float:
    """Return the extra `timeout` in seconds. Raises ValueError."""
    if value in (None, ""):
        return default
    try:
        seconds = float(str(value))
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 86400:
        raise ValueError(f"{name}: extra 'timeout' is {value!r}; allowed: a number of seconds")
    return seconds
