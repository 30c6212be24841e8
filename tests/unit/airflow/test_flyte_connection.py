"""A connection of type `flyte`: what is read from it, what is rejected, and what never shows."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from airflow.sdk import Connection

from airflow_invocations.hooks import FlyteHook, InvocationHook
from airflow_invocations.platforms.flyte import FlytePlatform

SECRET = "s3cret-s3cret"


def connection(**fields: Any) -> Connection:
    return Connection(**{"conn_id": "c", "conn_type": "flyte", "host": "https://flyte.example", **fields})


def test_settings_come_from_the_connection() -> None:
    extra = {
        "project": "fleet",
        "domain": "development",
        "org": "acme",
        "token_url": "https://id.example/token",
        "scopes": "all offline",
        "verify": "/ca.pem",
        "timeout": "7",
        "link_base": "https://ui.example/v2",
    }
    settings = FlyteHook.settings_of(connection(login="airflow", password=SECRET), extra)
    assert (settings.project, settings.domain, settings.org) == ("fleet", "development", "acme")
    assert (settings.client_id, settings.secret) == ("airflow", SECRET)
    assert (settings.token_url, settings.scopes) == ("https://id.example/token", ("all", "offline"))
    assert (settings.verify, settings.timeout) == ("/ca.pem", 7.0)
    assert settings.link_base == "https://ui.example/v2"


@pytest.mark.parametrize(
    ("fields", "endpoint"),
    [
        ({"host": "flyte.example"}, "https://flyte.example"),
        ({"host": "http://flyte:8090/"}, "http://flyte:8090"),
        ({"host": "flyte", "schema": "http", "port": 8090}, "http://flyte:8090"),
    ],
)
def test_the_scheme_of_the_address_is_kept(fields: dict[str, Any], endpoint: str) -> None:
    assert FlyteHook.settings_of(connection(**fields), {}).endpoint == endpoint


def test_without_a_password_nothing_is_sent_and_alone_it_is_a_token() -> None:
    assert FlyteHook.settings_of(connection(), {}).secret is None
    # As it comes from a file, with a line's end.
    alone = FlyteHook.settings_of(connection(password=f"{SECRET}\n"), {"scopes": ["a", "b"], "project": ""})
    assert (alone.client_id, alone.secret, alone.scopes) == (None, SECRET, ("a", "b"))


@pytest.mark.parametrize(
    ("fields", "extra", "hint"),
    [
        ({"host": None}, {}, "host is empty"),
        ({"host": "dns:///flyte.example"}, {}, "allowed: http, https"),
        ({"login": "airflow"}, {}, "password is empty; it must be the secret"),
        ({}, {"project": "a/b"}, "'project' is 'a/b'"),
        ({}, {"domain": 3}, "'domain' is 3"),
        ({}, {"token_url": "id.example"}, "'token_url' is 'id.example'"),
        ({}, {"scopes": 3}, "'scopes' is 3"),
        ({}, {"verify": 3}, "'verify' is 3"),
        ({}, {"timeout": -1}, "'timeout' is -1"),
    ],
)
def test_a_misconfigured_connection_names_the_field(
    fields: dict[str, Any], extra: dict[str, Any], hint: str
) -> None:
    with pytest.raises(ValueError, match="connection 'c'") as raised:
        FlyteHook.settings_of(connection(**fields), extra)
    assert hint in str(raised.value)


@pytest.mark.parametrize(
    ("fields", "extra"),
    [
        ({"host": f"https://airflow:{SECRET}@flyte.example"}, {}),
        ({"host": f"airflow:{SECRET}@flyte.example", "schema": "http"}, {}),
        ({"host": f"https://flyte.example?token={SECRET}"}, {}),
        ({}, {"token_url": f"https://airflow:{SECRET}@id.example/token"}),
    ],
)
def test_a_secret_in_an_address_is_rejected_and_not_shown(
    fields: dict[str, Any], extra: dict[str, Any]
) -> None:
    put = "put (login and password|client id and secret) into"
    with pytest.raises(ValueError, match=rf"connection 'c': .*; {put}") as raised:
        FlyteHook.settings_of(connection(**fields), extra)
    assert SECRET not in str(raised.value)


def test_no_secret_shows() -> None:
    platform = FlytePlatform(FlyteHook.settings_of(connection(login="airflow", password=SECRET), {}))
    assert platform.where == "https://flyte.example"
    assert SECRET not in repr(FlyteHook.settings_of(connection(login="airflow", password=SECRET), {}))


def test_the_hook_of_any_connection_speaks_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    said = {"conn_type": "flyte", "host": "http://127.0.0.1:9"}
    monkeypatch.setenv("AIRFLOW_CONN_FLYTE_DEFAULT", json.dumps(said))
    monkeypatch.setattr("airflow_invocations.platforms.flyte.client.ATTEMPTS", 1)
    for hook in (FlyteHook(), InvocationHook("flyte_default")):
        assert hook.url("p/d/r") == "http://127.0.0.1:9/v2/domain/d/project/p/runs/r"
        works, message = hook.test_connection()
        assert not works
        assert "http://127.0.0.1:9 can't be reached" in message


def test_nothing_of_flyte_is_imported() -> None:
    """Neither its SDK, which changes the process it is in, nor its definitions, nor msgpack."""
    code = (
        "import sys, airflow_invocations.platforms.flyte as room;"
        "room.FlytePlatform(room.FlyteSettings('http://h'));"
        "print([name for name in sys.modules if name.split('.')[0] in"
        " ('flyte', 'flyteidl2', 'connectrpc', 'google', 'msgpack', 'jsonschema', 'airflow')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
