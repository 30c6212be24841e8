"""Which hosts' names a request may be sent to."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest

from ..conftest import LocalServer

HERE = socket.gethostname()


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST.", "a.localhost", "127.0.0.1:1", "[::1]:80", "10.1.2.3", HERE],
)
def test_its_own_names_and_addresses(server: LocalServer, host: str) -> None:
    assert server.request("GET", "healthz", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:80", "localhost.evil.example", "a"])
@pytest.mark.parametrize("path", ["healthz", "metrics", "v1/users", ""])
def test_a_name_of_somebody_elses_is_rejected(server: LocalServer, host: str, path: str) -> None:
    rejected = server.request("GET", path, headers={"Host": host})
    assert rejected.status_code == 400
    assert "--allow-host" in rejected.json()["error"]["message"]


def test_further_names_can_be_given(start_server: Callable[..., LocalServer]) -> None:
    server = start_server("--allow-host", "invocations", "--allow-host", "fleet.example")
    for host in ("invocations:8085", "fleet.example"):
        assert server.request("GET", "v1/users", headers={"Host": host}).status_code == 200
    assert server.request("GET", "v1/users", headers={"Host": "other"}).status_code == 400
