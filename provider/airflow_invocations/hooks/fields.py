"""Reads those fields of a connection that several connection types have."""

from __future__ import annotations

from airflow.sdk import Connection


def endpoint_of(connection: Connection) -> str:
    """The address that host, schema and port make, https unless it is said. Raises ValueError."""
    host = str(connection.host).rstrip("/")
    if "://" not in host:
        host = f"{connection.schema or 'https'}://{host}"
    scheme, _, address = host.partition("://")
    if scheme not in ("http", "https"):
        raise ValueError(f"connection {connection.conn_id!r}: host begins {scheme}://; allowed: http, https")
    if set(address) & set("@?#"):
        # Not shown: what is before an @ may be a password.
        raise ValueError(
            f"connection {connection.conn_id!r}: host isn't only an address; login and password have their "
            "fields, and what is behind ? or # has no place in it"
        )
    has_port = address.partition("/")[0].rpartition("]")[2].count(":") > 0
    return host if has_port or not connection.port else f"{scheme}://{address}:{connection.port}"


def verify_of(name: str, value: object) -> bool | str:
    """Extra `verify`: True, False, or the path of a CA bundle. Raises ValueError."""
    match value:
        case None | "":
            return True
        case bool():
            return value
        case str():
            return {"true": True, "false": False}.get(value.lower(), value)
    raise ValueError(f"{name}: extra 'verify' is {value!r}; allowed: true, false, the path of a CA bundle")


def timeout_of(name: str, value: object, default: float) -> float:
    """Extra `timeout`, in seconds. Raises ValueError."""
    if value in (None, ""):
        return default
    try:
        seconds = float(str(value))
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 86400:
        raise ValueError(f"{name}: extra 'timeout' is {value!r}; allowed: a number of seconds")
    return seconds
