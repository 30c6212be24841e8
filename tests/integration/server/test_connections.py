"""Connections that send no whole request take nothing from others, and nothing from what runs."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from ...support.waiting import until
from ..conftest import LocalServer
from .conftest import client_of, end_of, ended, invoke, says, script, steps

#: What the server may have open; its own database, slots and folders take a good part of it.
DESCRIPTORS = 256


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LocalServer]:
    server = LocalServer(tmp_path / "data", "--slots", "2", "--grace", "0.5", descriptors=DESCRIPTORS)
    server.start()
    yield server
    server.end()


def connection(server: LocalServer) -> socket.socket:
    address = urlsplit(server.endpoint)
    assert address.hostname is not None
    assert address.port is not None
    return socket.create_connection((address.hostname, address.port), timeout=30)


def is_closed(one: socket.socket) -> bool:
    one.setblocking(False)
    try:
        return one.recv(1) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def test_half_sent_requests_neither_end_invocations_nor_hold_up_whole_ones(server: LocalServer) -> None:
    client = client_of(server)
    before = invoke(script(client, "echo up; sleep 5"))
    says(before, "up")
    waiting = [invoke(script(client, "true")) for _ in range(6)]
    with contextlib.ExitStack() as half_sent:
        connections = []
        for _ in range(4 * DESCRIPTORS + 100):
            one = half_sent.enter_context(contextlib.closing(connection(server)))
            with contextlib.suppress(OSError):  # it was closed already, to make room
                one.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Half:")
            connections.append(one)
        for path in ("healthz", "readyz", "metrics", "v1/users"):
            assert server.request("GET", path).status_code == 200
        assert psutil.Process(server.process.pid).num_fds() < DESCRIPTORS
        for invocation in (before, *waiting):
            assert end_of(invocation) == ("Completed", None)
            assert steps(invocation).count("Queued") == 1
        # Those that still wait are closed when their time for a request is over.
        until(lambda: all(is_closed(one) for one in connections), within=30)
    assert len(server.errors) < 20_000


def test_headers_without_end_are_rejected_and_take_no_memory(server: LocalServer) -> None:
    process = psutil.Process(server.process.pid)
    before = process.memory_info().rss
    with contextlib.closing(connection(server)) as one:
        with contextlib.suppress(OSError):
            one.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n")
            for _ in range(200):
                one.sendall(b"X: 1\r\n" * 20_000)
        until(lambda: is_closed(one))
    assert process.memory_info().rss - before < 20_000_000
    assert server.request("GET", "healthz").status_code == 200


def test_no_descriptors_at_all_have_invocations_wait_and_never_fail(server: LocalServer) -> None:
    process = psutil.Process(server.process.pid)
    limits = process.rlimit(psutil.RLIMIT_NOFILE)
    client = client_of(server)
    invocation = invoke(script(client, "echo up; sleep 3; echo done"))
    says(invocation, "up")
    waiting = [invoke(script(client, "true")) for _ in range(4)]
    # As many as it has: whatever it wants to open from now on is rejected.
    process.rlimit(psutil.RLIMIT_NOFILE, (process.num_fds(), limits[1]))
    until(lambda: "Too many open files" in server.errors)
    process.rlimit(psutil.RLIMIT_NOFILE, limits)
    for one in (invocation, *waiting):
        assert end_of(ended(one, within=60)) == ("Completed", None)
