"""The connection type `roboto`: the invocation API of the platform or of a local server."""

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
    """Invoke actions over the invocation API.

    The connection: host (the API's URL; https by default), port if the host has none, and the access token
    as password. Extra: org_id, verify (true, false or the path of a CA bundle), timeout (seconds), link_base
    (URL of the web page).

    :param conn_id: the Airflow connection.
    """

    default_conn_name = "roboto_default"
    conn_type = "roboto"
    hook_name = "Roboto (invocation API)"

    @staticmethod
    def settings_of(connection: Connection, extra: dict[str, Any]) -> RobotoSettings:
        """Return the settings of a connection; `extra` is its extra as a dict.

        :raises ValueError: a field is invalid; the message names it and what is allowed.
        """
        name = f"connection {connection.conn_id!r}"
        if not connection.host:
            raise ValueError(f"{name}: host is empty; allowed: the API's URL, such as https://api.roboto.ai")
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

    def dataset(self, name: str) -> DatasetRecord:
        """Return the dataset of a name, the oldest if there are several; create it if there is none.

        :raises InvocationError: as `call` does.
        """
        return self.call(lambda platform: _roboto(platform).dataset(name))

    def find_files(self, query: str) -> list[FileRecord]:
        """Return the files that a RoboQL query selects: `dataset_id = "ds_1" AND tags CONTAINS "report"`.

        :raises RequestRejectedError: the query is invalid; the message points at the character.
        :raises InvocationError: as `call` does.
        """
        return self.call(lambda platform: _roboto(platform).find_files(query))


def _roboto(platform: Platform) -> RobotoPlatform:
    if not isinstance(platform, RobotoPlatform):
        raise UnsupportedError(f"{platform.where} has no datasets; only connections of type roboto have them")
    return platform
