"""A connection of type `ray`: what is read from it, what is rejected, and what never shows."""

from __future__ import annotations

import json
from typing import Any

import pytest
from airflow.sdk import Connection

from airflow_invocations.hooks import InvocationHook, RayHook
from airflow_invocations.platforms.ray.platform import RayPlatform
from airflow_invocations.platforms.ray.settings import RaySettings

HELLO = {"hello": {"entrypoint": "echo hello"}}


def settings(extra: dict[str, Any] | None = None, **fields: Any) -> RaySettings:
    connection = Connection(**{"conn_id": "c", "conn_type": "ray", "host": "ray.example.org", **fields})
    return RayHook.settings_of(connection, extra or {})


def test_connection_with_only_a_host() -> None:
    read = settings()
    assert read == RaySettings("https://ray.example.org")
    assert RayPlatform(read).url("airflow-1") == "https://ray.example.org/#/jobs/airflow-1"


def test_connection_with_every_field() -> None:
    extra = {
        "actions": HELLO,
        "runtime_env": {"pip": ["numpy"]},
        "verify": "false",
        "timeout": "7",
        "link_base": "https://dashboard.example.org/ray/",
    }
    read = settings(extra, host="http://head", port=8265, password="t0ken\n")
    assert read == RaySettings(
        "http://head:8265",
        "t0ken",
        HELLO,
        {"pip": ["numpy"]},
        False,
        7.0,
        "https://dashboard.example.org/ray/",
    )
    assert "t0ken" not in repr(read)
    assert RayPlatform(read).url("a/b") == "https://dashboard.example.org/ray/#/jobs/a%2Fb"


def test_link_that_could_run_a_script_is_left_out() -> None:
    assert RayPlatform(settings({"link_base": "javascript:alert(1)//"})).url("airflow-1") == ""


@pytest.mark.parametrize("actions", ["/etc/actions.yaml", "https://host/actions.json", "http://host/a.yaml"])
def test_catalogue_elsewhere(actions: str) -> None:
    assert settings({"actions": actions}).actions == actions


def test_catalogue_and_environment_as_text_of_the_form() -> None:
    read = settings({"actions": json.dumps(HELLO), "runtime_env": '{"pip": ["numpy"]}'})
    assert (read.actions, read.runtime_env) == (HELLO, {"pip": ["numpy"]})


@pytest.mark.parametrize(
    ("fields", "extra", "hint"),
    [
        ({"host": ""}, {}, "host is empty; allowed: the URL of Ray's dashboard"),
        ({"host": "ray://head:10001"}, {}, "host begins with ray://; allowed: http, https"),
        ({"login": "ada"}, {}, "login is set, but Ray has no logins"),
        ({}, {"actions": "actions.yaml"}, "extra 'actions' must be an object"),
        ({}, {"actions": "{no json"}, "extra 'actions' must be an object"),
        ({}, {"actions": [HELLO]}, "extra 'actions' must be an object"),
        ({}, {"runtime_env": "numpy"}, "extra 'runtime_env' must be an object"),
        ({}, {"runtime_env": {"working_dir": "./code"}}, "working_dir is './code', but no file is uploaded"),
        ({}, {"runtime_env": {"env_vars": {"A": 1}}}, "env_vars must be an object of strings"),
        ({}, {"timeout": "soon"}, "extra 'timeout' is 'soon'"),
    ],
)
def test_invalid_field_is_named(fields: dict[str, Any], extra: dict[str, Any], hint: str) -> None:
    with pytest.raises(ValueError, match="connection 'c': ") as raised:
        settings(extra, **fields)
    assert hint in str(raised.value)


def test_hook_for_all_types_makes_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    connection = {"conn_type": "ray", "host": "http://head", "extra": {"actions": HELLO}}
    monkeypatch.setenv("AIRFLOW_CONN_C", json.dumps(connection))
    assert isinstance(InvocationHook("c").get_conn(), RayPlatform)
    monkeypatch.setenv("AIRFLOW_CONN_C", "ray://:t0ken@http%3A%2F%2Fhead:8265?actions=%2Fetc%2Factions.yaml")
    read: Any = RayHook("c").get_conn()
    assert read._settings == RaySettings("http://head:8265", "t0ken", "/etc/actions.yaml")
