"""A connection of type `pynenc`: what is read from it, what is rejected, and what never shows."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import Connection

from airflow_invocations.hooks import InvocationHook, PynencHook
from airflow_invocations.platforms.pynenc.platform import PynencPlatform

APP = {"app": "fleet_tasks:app"}


def connection(**fields: Any) -> Connection:
    return Connection(**{"conn_id": "c", "conn_type": "pynenc", **fields})


@pytest.mark.parametrize(
    ("fields", "url", "shown"),
    [
        ({"host": "r"}, "redis://r:6379/0", "redis://r:6379/0"),
        ({"host": "r", "port": 7, "schema": "3"}, "redis://r:7/3", "redis://r:7/3"),
        ({"host": "rediss://r"}, "rediss://r:6379/0", "rediss://r:6379/0"),
        ({"host": "r", "password": "p@ss/w"}, "redis://:p%40ss%2Fw@r:6379/0", "redis://r:6379/0"),
        ({"host": "r", "login": "ada", "password": "p"}, "redis://ada:p@r:6379/0", "redis://r:6379/0"),
    ],
)
def test_a_redis(fields: dict[str, Any], url: str, shown: str) -> None:
    settings = PynencHook.settings_of(connection(**fields), APP)
    assert (settings.redis_url, settings.sqlite_path) == (url, None)
    assert settings.where == f"pynenc app fleet_tasks:app on {shown}"


def test_a_sqlite_database_an_app_id_and_pynmon() -> None:
    extra = {**APP, "app_id": "fleet-eu", "sqlite_path": "/data/fleet.db", "link_base": "http://pynmon/"}
    platform = PynencPlatform(PynencHook.settings_of(connection(), extra))
    assert platform.where == "pynenc app fleet_tasks:app (fleet-eu) on SQLite /data/fleet.db"
    assert platform.url("iv/1") == platform.logs_url("iv/1") == "http://pynmon/invocations/iv%2F1"
    harmful = PynencHook.settings_of(connection(), {**extra, "link_base": "javascript:alert(1)//"})
    assert PynencPlatform(harmful).url("iv_1") == ""


def test_nothing_but_the_app_leaves_the_rest_to_it() -> None:
    platform = PynencPlatform(
        PynencHook.settings_of(connection(), {**APP, "app_id": "", "sqlite_path": None, "link_base": None})
    )
    assert platform.where == "pynenc app fleet_tasks:app on its own backend"
    assert platform.url("iv_1") == ""


@pytest.mark.parametrize(
    ("fields", "extra", "hint"),
    [
        ({}, {"app": None}, "extra 'app' is None; allowed: module:attribute"),
        ({}, {"app": "fleet_tasks"}, "extra 'app' is 'fleet_tasks'"),
        ({}, {"app": "fleet tasks:app"}, "extra 'app' is 'fleet tasks:app'"),
        ({}, {"app": "../fleet.py"}, "extra 'app'"),
        ({"host": "r"}, {"sqlite_path": "/data/fleet.db"}, "both set; allowed: only one of them"),
        ({}, {"sqlite_path": "fleet.db"}, "'sqlite_path' is 'fleet.db'; allowed: an absolute path"),
        ({"host": "http://r"}, {}, "host begins with http://; allowed: redis, rediss"),
        ({"host": "u:s3cret@r"}, {}, "host must be a host name"),
        ({"host": "r", "schema": "zero"}, {}, "schema is 'zero'; allowed: the number"),
    ],
)
def test_a_misconfigured_connection_names_the_field(
    fields: dict[str, Any], extra: dict[str, Any], hint: str
) -> None:
    with pytest.raises(ValueError, match="connection 'c'") as raised:
        PynencHook.settings_of(connection(**fields), {**APP, **extra})
    assert hint in str(raised.value)
    assert "s3cret" not in str(raised.value)


def test_a_password_shows_nowhere() -> None:
    settings = PynencHook.settings_of(connection(host="r", login="ada", password="s3cret"), APP)
    assert "s3cret" in str(settings.redis_url)
    assert "s3cret" not in f"{settings!r} {settings} {settings.where}"


def test_a_connection_can_be_written_as_json_or_uri(monkeypatch: pytest.MonkeyPatch) -> None:
    by_json = {"conn_type": "pynenc", "host": "r", "password": "p", "extra": APP}
    monkeypatch.setenv("AIRFLOW_CONN_BY_JSON", json.dumps(by_json))
    monkeypatch.setenv("AIRFLOW_CONN_BY_URI", "pynenc://:p@r/0?app=fleet_tasks%3Aapp")
    for name in ("by_json", "by_uri"):
        platform = InvocationHook(name).get_conn()
        assert platform.where == "pynenc app fleet_tasks:app on redis://r:6379/0"


def test_without_the_extra_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    monkeypatch.setenv("AIRFLOW_CONN_C", json.dumps({"conn_type": "pynenc", "extra": APP}))
    works, said = PynencHook("c").test_connection()
    assert not works
    assert said == (
        "pynenc isn't installed here: pip install 'airflow-provider-invocations[pynenc]', with Python 3.12 "
        "or 3.13"
    )


def test_nothing_of_pynenc_is_imported_until_it_is_used(tmp_path: Path) -> None:
    program = (
        "import sys; from airflow_invocations.hooks import InvocationHook;"
        "from airflow_invocations.operators import InvokeActionOperator;"
        "print(InvocationHook('c').get_conn().where, 'pynenc' in sys.modules, 'redis' in sys.modules)"
    )
    environment = {
        "AIRFLOW_CONN_C": json.dumps({"conn_type": "pynenc", "extra": APP}), "AIRFLOW_HOME": str(tmp_path)
    }  # fmt: skip
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.stdout.endswith("pynenc app fleet_tasks:app on its own backend False False\n"), done.stderr
