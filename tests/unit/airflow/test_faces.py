"""The faces that Airflow sees: provider info, connection, trigger, link, context, verdict."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import airflow
import jsonschema
import pytest
from airflow.sdk import DAG, Connection

from airflow_invocations import __version__
from airflow_invocations.get_provider_info import get_provider_info
from airflow_invocations.hooks import InvocationHook
from airflow_invocations.hooks.roboto import RobotoHook
from airflow_invocations.models import MAX_ASSET_EVENTS, InvocationSource
from airflow_invocations.operators import InvokeActionOperator
from airflow_invocations.platforms import Platform
from airflow_invocations.platforms.registry import PLATFORMS
from airflow_invocations.tasks.provenance import provenance_of
from airflow_invocations.triggers import InvocationTrigger

from ...support.task_context import (
    NOON,
    context,
)


def test_the_provider_info_is_what_airflow_accepts() -> None:
    schema = json.loads((Path(airflow.__file__).parent / "provider_info.schema.json").read_text())
    jsonschema.validate({**get_provider_info(), "versions": [__version__]}, schema)


def test_every_class_that_the_provider_info_names_exists() -> None:
    info = get_provider_info()
    names = [entry["hook-class-name"] for entry in info["connection-types"]] + info["extra-links"]
    names += [entry["class-name"] for entry in info["task-decorators"]]
    for name in names:
        module, _, member = name.rpartition(".")
        assert hasattr(importlib.import_module(module), member)


def test_form_hook_and_registry_have_the_same_connection_types() -> None:
    entries = get_provider_info()["connection-types"]
    for entry in entries:
        module, _, member = entry["hook-class-name"].rpartition(".")
        hook = getattr(importlib.import_module(module), member)
        assert (entry["connection-type"], entry["hook-name"]) == (hook.conn_type, hook.hook_name)
        assert issubclass(hook, InvocationHook)
        assert hook().conn_id == hook.default_conn_name
    assert {entry["connection-type"]: entry["hook-class-name"] for entry in entries} == {
        conn_type: registered.hook for conn_type, registered in PLATFORMS.items()
    }


@pytest.mark.parametrize("conn_type", PLATFORMS)
def test_a_registered_connection_type_has_its_hook_and_client(conn_type: str) -> None:
    registered = PLATFORMS[conn_type]
    assert registered.load_hook().conn_type == conn_type
    assert issubclass(registered.load_platform(), Platform)


def connection(**fields: Any) -> Connection:
    return Connection(
        **{"conn_id": "c", "conn_type": "roboto", "host": "https://api.example", "password": "t", **fields}
    )


@pytest.mark.parametrize(
    ("fields", "endpoint"),
    [
        ({"host": "https://api.example/"}, "https://api.example"),
        ({"host": "api.example"}, "https://api.example"),
        ({"host": "127.0.0.1", "schema": "http", "port": 8085}, "http://127.0.0.1:8085"),
        ({"host": "http://127.0.0.1:8085", "port": 1}, "http://127.0.0.1:8085"),
        ({"host": "http://[::1]:8085"}, "http://[::1]:8085"),
        ({"host": "http://[::1]", "port": 8085}, "http://[::1]:8085"),
    ],
)
def test_the_address_of_a_connection(fields: dict[str, Any], endpoint: str) -> None:
    assert RobotoHook.settings_of(connection(**fields), {}).endpoint == endpoint


def test_the_extra_of_a_connection_is_read() -> None:
    settings = RobotoHook.settings_of(
        connection(),
        {"org_id": "og_1", "verify": "/ca.pem", "timeout": "7", "link_base": "https://ui.example"},
    )
    assert (settings.org_id, settings.verify, settings.timeout) == ("og_1", "/ca.pem", 7.0)
    assert settings.link_base == "https://ui.example"
    assert RobotoHook.settings_of(connection(), {"verify": False}).verify is False
    assert RobotoHook.settings_of(connection(), {"verify": "false"}).verify is False
    assert (
        RobotoHook.settings_of(connection(), {"verify": None, "timeout": None, "org_id": ""}).verify is True
    )


@pytest.mark.parametrize(
    ("fields", "extra", "hint"),
    [
        ({"host": None}, {}, "host is empty"),
        ({"password": None}, {}, "password is empty"),
        ({"host": "ftp://x"}, {}, "allowed: http, https"),
        ({}, {"verify": 3}, "'verify' is 3"),
        ({}, {"timeout": "long"}, "'timeout' is 'long'"),
        ({}, {"timeout": 0}, "'timeout' is 0"),
    ],
)
def test_a_misconfigured_connection_names_the_field(
    fields: dict[str, Any], extra: dict[str, Any], hint: str
) -> None:
    with pytest.raises(ValueError, match="connection 'c'") as raised:
        RobotoHook.settings_of(connection(**fields), extra)
    assert hint in str(raised.value)


def test_a_connection_can_be_written_as_json_or_uri(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "AIRFLOW_CONN_BY_JSON", '{"conn_type": "roboto", "host": "http://h:1", "password": "t"}'
    )
    monkeypatch.setenv("AIRFLOW_CONN_BY_URI", "roboto://:t@h:1/http?org_id=og_1")
    for name in ("by_json", "by_uri"):
        connection = RobotoHook.get_connection(name)
        settings = RobotoHook.settings_of(connection, connection.extra_dejson)
        assert (settings.endpoint, settings.token) == ("http://h:1", "t")
    assert settings.org_id == "og_1"


def test_a_connection_of_another_type_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_OTHER", '{"conn_type": "http", "host": "h", "password": "t"}')
    with pytest.raises(ValueError, match="connection 'other': its type is 'http'; allowed: roboto"):
        InvocationHook("other").get_conn()


def test_a_connection_that_does_not_work_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "AIRFLOW_CONN_NOWHERE", '{"conn_type": "roboto", "host": "http://127.0.0.1:9", "password": "t"}'
    )
    monkeypatch.setattr("airflow_invocations.invocation_api.ATTEMPTS", 1)
    works, message = RobotoHook("nowhere").test_connection()
    assert not works
    assert "http://127.0.0.1:9" in message


def test_a_trigger_is_made_anew_from_what_is_stored_and_that_holds_no_secret() -> None:
    trigger = InvocationTrigger(
        conn_id="c",
        invocation_id="iv_1",
        poll_interval=2.0,
        stream_logs=True,
        not_before=5.0,
        cancel_on_kill=False,
    )
    path, arguments = trigger.serialize()
    module, _, name = path.rpartition(".")
    again = getattr(importlib.import_module(module), name)(**json.loads(json.dumps(arguments)))
    assert again.serialize() == trigger.serialize()
    assert set(arguments) == {
        "conn_id", "invocation_id", "poll_interval", "stream_logs", "not_before", "deferred_at",
        "cancel_on_kill", "outage_limit", "deadline", "queue_deadline", "logs_url", "in_loop",
        "execution_timeout", "queue_timeout", "url", "provenance", "action", "fail_in_worker", "push_result",
        "multiple_outputs",
    }  # fmt: skip


def test_the_links_are_the_operators_own_invocation_and_its_log() -> None:
    with DAG("d"):
        operator = InvokeActionOperator(task_id="ask", action="a")
    key: Any = None
    assert {link.get_link(operator, ti_key=key) for link in operator.operator_extra_links} == {""}
    operator.invocation_url = "http://h/actions/invocations/iv_1"
    operator.logs_url = "http://h/actions/invocations/iv_1#log"
    assert {link.name: link.get_link(operator, ti_key=key) for link in operator.operator_extra_links} == {
        "Invocation": "http://h/actions/invocations/iv_1",
        "Invocation log": "http://h/actions/invocations/iv_1#log",
    }


def test_an_operator_can_be_mapped_over_its_parameters() -> None:
    with DAG("d") as dag:
        InvokeActionOperator.partial(task_id="ask", action="a", deferrable=True).expand(
            parameters=[{"n": 1}, {"n": 2}]
        )
    assert dag.get_task("ask").is_mapped


def test_the_default_of_deferrable_is_airflows(monkeypatch: pytest.MonkeyPatch) -> None:
    with DAG("d"):
        assert InvokeActionOperator(task_id="ask", action="a").deferrable is False
        assert InvokeActionOperator(task_id="ask_deferrably", action="a", deferrable=True).deferrable is True


@pytest.mark.parametrize(
    ("run_type", "source"),
    [
        ("scheduled", InvocationSource.Trigger),
        ("asset_triggered", InvocationSource.Trigger),
        ("backfill", InvocationSource.Trigger),
        ("operator_triggered", InvocationSource.Trigger),
        ("manual", InvocationSource.Manual),
    ],
)
def test_source_depends_on_who_started_the_run(run_type: str, source: InvocationSource) -> None:
    assert provenance_of(context(run_type=run_type)).source.source_type is source  # type: ignore[arg-type]


def test_the_provenance_holds_what_the_context_says() -> None:
    event = SimpleNamespace(
        asset=SimpleNamespace(name="readings", uri="s3://readings"),
        timestamp=NOON, source_dag_id="up", source_run_id="r", source_task_id="t", source_map_index=-1,
    )  # fmt: skip
    provenance = provenance_of(
        context(run_type="asset_triggered", logical_date=None, consumed_asset_events=[event])  # type: ignore[arg-type]
    )
    assert (provenance.dag_id, provenance.task_id, provenance.try_number) == ("fleet", "ask", 2)
    assert provenance.run_id == "scheduled__2026-01-31T12:00:00+00:00"
    assert provenance.logical_date is None
    assert provenance.data_interval_end == NOON
    assert [e.uri for e in provenance.consumed_asset_events] == ["s3://readings"]
    assert provenance.dag_version == "01999999-0000-7000-8000-000000000000"
    assert provenance.owner == "ada"


def test_the_provenance_says_which_airflow_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "https://airflow.example/team")
    assert provenance_of(context()).base_url == "https://airflow.example/team"  # type: ignore[arg-type]
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "")
    assert provenance_of(context()).base_url is None  # type: ignore[arg-type]


def test_a_provenance_that_is_cut_short_still_names_every_asset() -> None:
    def event(name: str) -> SimpleNamespace:
        return SimpleNamespace(
            asset=SimpleNamespace(name=name, uri=name), timestamp=NOON,
            source_dag_id=None, source_run_id=None, source_task_id=None, source_map_index=None,
        )  # fmt: skip

    many = [event("busy") for _ in range(MAX_ASSET_EVENTS + 5)]
    provenance = provenance_of(context(consumed_asset_events=[*many, event("rare")]))  # type: ignore[arg-type]
    assert len(provenance.consumed_asset_events) == MAX_ASSET_EVENTS
    assert [one.name for one in provenance.consumed_asset_events[:3]] == ["busy", "rare", "busy"]
