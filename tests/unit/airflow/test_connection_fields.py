"""Fields of every connection type: secrets that can't be sent never show, and IPv6 addresses are kept."""

from __future__ import annotations

import json
import logging
import traceback
from typing import Any
from urllib.parse import quote

import pytest
from airflow.sdk import BaseHook, Connection

from airflow_invocations.exceptions import InvocationError, RequestRejectedError
from airflow_invocations.hooks import FlyteHook, InvocationHook, PynencHook, RayHook, RobotoHook
from airflow_invocations.operators import InvokeActionOperator
from airflow_invocations.platforms import PlatformError
from airflow_invocations.sensors import InvocationSensor

from ...support.task_context import (
    context,
)

#: The parts of the token that show in a message that quotes it, however it is escaped.
PARTS = ("T0KEN", "s3cr")

SENT_STRIPPED = ["s3crT0KEN\n", "s3crT0KEN\r", " \ts3crT0KEN\r\n"]
NEVER_SENT = ["s3crT\nT0KEN", "s3crtöT0KEN", "s3cr\rT0KEN", "s3cr T0KEN", "s3cr\0T0KEN", "s3cr\u2028T0KEN"]

#: By hook: what its connection has beside the secret, for which nothing has to answer.
HOOKS: dict[type[InvocationHook], dict[str, Any]] = {
    RobotoHook: {"conn_type": "roboto", "host": "http://127.0.0.1:9"},
    FlyteHook: {"conn_type": "flyte", "host": "http://127.0.0.1:9"},
    PynencHook: {"conn_type": "pynenc", "host": "127.0.0.1", "port": 9, "extra": {"app": "no_such_app:app"}},
    RayHook: {"conn_type": "ray", "host": "http://127.0.0.1:9"},
}


@pytest.fixture(autouse=True)
def once(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("invocation_api", "platforms.flyte.client", "platforms.ray.client"):
        monkeypatch.setattr(f"airflow_invocations.{module}.ATTEMPTS", 1)


def define(monkeypatch: pytest.MonkeyPatch, hook: type[InvocationHook], **fields: Any) -> None:
    said = {**HOOKS[hook], **fields, "extra": {**HOOKS[hook].get("extra", {}), **fields.get("extra", {})}}
    monkeypatch.setenv("AIRFLOW_CONN_C", json.dumps(said))


def shows_no_secret(text: str) -> bool:
    return not any(part in text for part in PARTS)


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook.conn_type)
@pytest.mark.parametrize("token", [*SENT_STRIPPED, *NEVER_SENT], ids=ascii)
class TestASecretNeverShows:
    def test_to_the_button_test(
        self,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
        hook: type[InvocationHook],
        token: str,
    ) -> None:
        caplog.set_level(logging.DEBUG)
        define(monkeypatch, hook, password=token)
        works, message = hook("c").test_connection()
        assert not works
        assert shows_no_secret(message)
        assert shows_no_secret(caplog.text)

    def test_in_a_failure(
        self,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
        hook: type[InvocationHook],
        token: str,
    ) -> None:
        caplog.set_level(logging.DEBUG)
        define(monkeypatch, hook, password=token)
        with pytest.raises((ValueError, PlatformError, InvocationError)) as raised:
            hook("c").get_action("project/domain/name")
        assert shows_no_secret("".join(traceback.format_exception(raised.value)))
        assert shows_no_secret(repr(raised.value.__context__))
        assert shows_no_secret(caplog.text)


@pytest.mark.parametrize("hook", [RobotoHook, FlyteHook, RayHook], ids=lambda hook: hook.conn_type)
class TestATokenThatCanNotBeSent:
    @pytest.mark.parametrize("token", NEVER_SENT, ids=ascii)
    def test_it_is_rejected_before_anything_is_asked(
        self, monkeypatch: pytest.MonkeyPatch, hook: type[InvocationHook], token: str
    ) -> None:
        define(monkeypatch, hook, password=token)
        with pytest.raises(ValueError, match=r"connection 'c': password can't be sent in a header"):
            hook("c").get_conn()

    @pytest.mark.parametrize("token", SENT_STRIPPED, ids=ascii)
    def test_white_space_around_it_is_not_part_of_it(
        self, monkeypatch: pytest.MonkeyPatch, hook: type[InvocationHook], token: str
    ) -> None:
        define(monkeypatch, hook, password=token)
        settings: Any = hook("c").get_conn()._settings  # type: ignore[attr-defined]
        assert "s3crT0KEN" in (getattr(settings, "token", None), getattr(settings, "secret", None))

    def test_a_task_fails_at_once_and_is_not_retried(
        self, monkeypatch: pytest.MonkeyPatch, hook: type[InvocationHook]
    ) -> None:
        define(monkeypatch, hook, password=NEVER_SENT[0])
        for task in (
            InvokeActionOperator(task_id="t", action="a", conn_id="c"),
            InvocationSensor(task_id="t", invocation_id="iv_1", conn_id="c", deferrable=True),
        ):
            with pytest.raises(RequestRejectedError, match="password can't be sent") as raised:
                task.execute(context())
            assert shows_no_secret("".join(traceback.format_exception(raised.value)))


def test_an_organisation_that_can_not_be_sent_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    define(monkeypatch, RobotoHook, password="t", extra={"org_id": "og_1\nX-Evil: 1"})
    with pytest.raises(ValueError, match=r"connection 'c': extra 'org_id' can't be sent"):
        RobotoHook("c").get_conn()
    define(monkeypatch, RobotoHook, password="t", extra={"org_id": " og_1\n"})
    settings: Any = RobotoHook("c").get_conn()._settings  # type: ignore[attr-defined]
    assert settings.org_id == "og_1"


@pytest.mark.parametrize("field", ["login", "password"])
def test_client_credentials_of_flyte_that_can_not_be_sent_are_rejected(
    monkeypatch: pytest.MonkeyPatch, field: str
) -> None:
    define(monkeypatch, FlyteHook, **{"login": "airflow", "password": "with a blank", field: "s3cr\nT0KEN"})
    with pytest.raises(ValueError, match=rf"connection 'c': {field} can't be sent") as raised:
        FlyteHook("c").get_conn()
    assert shows_no_secret(str(raised.value))
    define(monkeypatch, FlyteHook, login="airflow\n", password="with a blank\n")
    settings: Any = FlyteHook("c").get_conn()._settings  # type: ignore[attr-defined]
    assert (settings.client_id, settings.secret) == ("airflow", "with a blank")


@pytest.mark.parametrize("host", ["http://a b", "http://h:port", "http://[::1", "http://exa\0mple"])
@pytest.mark.parametrize("kind", ["roboto", "flyte", "ray"])
def test_an_address_that_is_none_is_rejected_when_the_connection_is_read(
    monkeypatch: pytest.MonkeyPatch, kind: str, host: str
) -> None:
    said = {"conn_type": kind, "host": host, "password": "t"}
    monkeypatch.setenv("AIRFLOW_CONN_C", json.dumps(said))
    with pytest.raises(ValueError, match="connection 'c': host"):
        InvocationHook("c").get_conn()


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook.conn_type)
@pytest.mark.parametrize("other", HOOKS, ids=lambda hook: hook.conn_type)
def test_a_hook_of_one_connection_type_takes_no_other(
    monkeypatch: pytest.MonkeyPatch, hook: type[InvocationHook], other: type[InvocationHook]
) -> None:
    define(monkeypatch, other, password="t")
    InvocationHook("c").get_conn()
    if hook is other:
        hook("c").get_conn()
        return
    with pytest.raises(ValueError, match="connection 'c': its conn_type is") as raised:
        hook("c").get_conn()
    assert repr(other.conn_type) in str(raised.value)  # type: ignore[attr-defined]
    assert f"{hook.__name__} allows only {hook.conn_type!r}" in str(raised.value)  # type: ignore[attr-defined]


#: An address, and the ways in which people write it, by connection type: URIs, and the fields of the form.
ADDRESSES = ["::1", "2001:db8::1"]


def endpoint(connection: Connection) -> str:
    hook = {"roboto": RobotoHook, "flyte": FlyteHook, "ray": RayHook}[str(connection.conn_type)]
    return str(hook.settings_of(connection, {}).endpoint)


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("kind", ["roboto", "flyte", "ray"])
@pytest.mark.parametrize("port", [None, 8085])
class TestIPv6:
    def test_in_a_uri(
        self, monkeypatch: pytest.MonkeyPatch, kind: str, address: str, port: int | None
    ) -> None:
        end = f":{port}" if port else ""
        monkeypatch.setenv("AIRFLOW_CONN_C", f"{kind}://:T@[{address}]{end}/http")
        assert endpoint(BaseHook.get_connection("c")) == f"http://[{address}]{end}"

    @pytest.mark.parametrize("written", ["{}", "[{}]", "http://{}", "http://[{}]", " [{}] "])
    def test_in_a_field(self, kind: str, address: str, port: int | None, written: str) -> None:
        fields: dict[str, Any] = {"host": written.format(address), "password": "t", "schema": "http"}
        end = f":{port}" if port else ""
        read = endpoint(Connection(conn_id="c", conn_type=kind, port=port, **fields))
        assert read == f"http://[{address}]{end}"

    def test_with_the_port_in_the_host(self, kind: str, address: str, port: int | None) -> None:
        fields: dict[str, Any] = {"host": f"https://[{address}]:8443/api/", "password": "t", "port": port}
        read = endpoint(Connection(conn_id="c", conn_type=kind, **fields))
        assert read == f"https://[{address}]:8443/api"


@pytest.mark.parametrize("address", ADDRESSES)
def test_ipv6_of_a_redis(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    extra = {"app": "fleet_tasks:app"}
    app = quote(json.dumps(extra))
    monkeypatch.setenv("AIRFLOW_CONN_C", f"pynenc://:pw@[{address}]:6380/1?__extra__={app}")
    for connection in (
        BaseHook.get_connection("c"),
        *(
            Connection(conn_id="c", conn_type="pynenc", host=host, password="pw\n", port=6380, schema="1")
            for host in (address, f"[{address}]", f"redis://{address}")
        ),
    ):
        settings = PynencHook.settings_of(connection, extra)
        assert settings.redis_url == f"redis://:pw@[{address}]:6380/1"
        assert settings.where.endswith(f"redis://[{address}]:6380/1")


@pytest.mark.parametrize(
    ("host", "port", "expected"),
    [
        ("example.org", None, "https://example.org"),
        ("example.org", 8443, "https://example.org:8443"),
        ("example.org:8085", 8443, "https://example.org:8085"),
        ("127.0.0.1", 8085, "https://127.0.0.1:8085"),
        ("http://example.org/api", 80, "http://example.org:80/api"),
    ],
)
def test_other_addresses_stay_as_they_are(host: str, port: int | None, expected: str) -> None:
    fields: dict[str, Any] = {"host": host, "password": "t", "port": port}
    assert endpoint(Connection(conn_id="c", conn_type="roboto", **fields)) == expected
