"""The connection type `roboto`: the invocation API, on the platform or on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.sdk import Connection

from ..invocation_api import DEFAULT_TIMEOUT
from ..platforms import Platform, UnsupportedError
from ..platforms.roboto.client import RobotoSettings
from ..platforms.roboto.platform import RobotoPlatform
from .fields import endpoint_of, timeout_of, token_of, verify_of
from .invocation import InvocationHook

if TYPE_CHECKING:
    from ..models.dataset import DatasetRecord, FileRecord


class RobotoHook(InvocationHook):
    """Invokes actions over the invocation API.

    The connection: host (the API's address, https unless it says http), port if the host has none,
    password = token; extra: org_id, verify (true, false or the path of a CA bundle), timeout (seconds),
    link_base (where people look at invocations).

    :param conn_id: the Airflow connection.
    """

    default_conn_name = "roboto_default"
    conn_type = "roboto"
    hook_name = "Roboto (invocation API)"

    def dataset(self, name: str) -> DatasetRecord:
        """Return the dataset of a name, the oldest if there are several; create it if there is none.

        :raises InvocationError: as `call` does.
        """
        return self.call(lambda platform: _roboto(platform).dataset(name))

    def find_files(self, query: str) -> list[FileRecord]:
        """The files that a RoboQL query selects, such as `dataset_id = "ds_1" AND tags CONTAINS "report"`.

        :raises RequestRefusedError: the query isn't understood; the message points at the character.
        :raises InvocationError: as `call` does.
        """
        return self.call(lambda platform: _roboto(platform).find_files(query))


def _roboto(platform: Platform) -> RobotoPlatform:
    if not isinstance(platform, RobotoPlatform):
        raise UnsupportedError(f"{platform.where} has no datasets: only connections of type roboto have")
    return platform


def platform_of(connection: Connection, extra: dict[str, Any]) -> RobotoPlatform:
    """The client that a connection asks for. Raises ValueError for one that makes no sense."""
    return RobotoPlatform(settings_of(connection, extra))


def settings_of(connection: Connection, extra: dict[str, Any]) -> RobotoSettings:
    """Read a connection; `extra` is its extra as a dict. Raises ValueError: which field, what is allowed."""
    name = f"connection {connection.conn_id!r}"
    if not connection.host:
        raise ValueError(f"{name}: host is empty; allowed: the API's address, such as https://api.roboto.ai")
    token = token_of(name, "password", connection.password or "")
    if not token:
        raise ValueError(f"{name}: password is empty; it must be the platform's access token")
    return RobotoSettings(
        endpoint=endpoint_of(connection),
        token=token,
        org_id=token_of(name, "extra 'org_id'", str(extra.get("org_id") or "")) or None,
        verify=verify_of(name, extra.get("verify")),
        timeout=timeout_of(name, extra.get("timeout"), DEFAULT_TIMEOUT),
        link_base=extra.get("link_base") or None,
    )
