"""The page for people: who is let in and how far, what can't be smuggled in, and the page in a browser."""

from __future__ import annotations

import html
import itertools
import json
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import Request

from airflow_invocations.models import DagRunProvenance
from airflow_invocations.server.api import page as page_module
from airflow_invocations.server.api.page import (
    MAX_SESSIONS,
    MAX_SESSIONS_OF_TOKEN,
    SESSION_AGE,
    NewSession,
    Sessions,
)

from ...support.waiting import until
from ..conftest import LocalServer

#: What would set window.pwned, or be worked out to something else, if it were taken for anything but text.
EVIL = (
    "<script>window.pwned=1</script>",
    "</script></style></title><script>window.pwned=1</script>",
    "<img src=x onerror=window.pwned=1>",
    "\"'><svg onload=window.pwned=1>",
    "{{ 7*7 }}{% raw %}",
    "javascript:window.pwned=1",
)

_numbers = itertools.count(time.time_ns())


def new_action(server: LocalServer, command: str, **fields: Any) -> str:
    name = f"seen-{next(_numbers)}"
    body = {"name": name, "container_parameters": {"command": ["sh", "-c", command]}, **fields}
    server.request("POST", "v1/actions", json=body).raise_for_status()
    return name


def invoke(server: LocalServer, name: str, source_id: str = "local", **fields: Any) -> str:
    body = {
        "data_source_id": "__UNSPECIFIED_DATA_SOURCE__", "data_source_type": "Dataset", "input_data": [],
        "invocation_source": "Manual", "invocation_source_id": source_id, **fields,
    }  # fmt: skip
    answer = server.request("POST", f"v1/actions/{name}/invoke", json=body).raise_for_status()
    return str(answer.json()["data"]["invocation_id"])


def wait_for_status(server: LocalServer, invocation_id: str, status: int) -> None:
    path = f"v1/actions/invocations/{invocation_id}"
    until(lambda: server.request("GET", path).json()["data"]["last_status"] == status)


def token_command(server: LocalServer, *arguments: str) -> str:
    """What `invocations token` prints last: of `add`, the token."""
    command = [sys.executable, "-m", "airflow_invocations.cli", "token", "--data-dir", str(server.data_dir)]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=True)
    return (done.stdout.split() or [""])[-1]


@pytest.fixture
def visitor(server: LocalServer) -> Iterator[httpx.Client]:
    """A browser as far as cookies go."""
    with httpx.Client(base_url=server.endpoint, timeout=30) as client:
        yield client


@pytest.fixture
def reader(server: LocalServer, visitor: httpx.Client) -> httpx.Client:
    """One that is logged in."""
    let_in(visitor, server.token)
    return visitor


def let_in(visitor: httpx.Client, token: str) -> None:
    """Log a visitor in, and have both halves of the session sent from now on."""
    answer = visitor.post("/login", data={"token": token})
    assert answer.status_code == 200
    visitor.headers["X-Invocations-Session"] = secret_in(answer)


def secret_in(answer: httpx.Response) -> str:
    """The half of a new session that the page's script keeps."""
    return re.findall(r'data-secret="([\w-]{40,})"', answer.text)[0]


def place_in(answer: httpx.Response) -> str:
    """Where the page goes once somebody is logged in."""
    return html.unescape(re.findall(r'data-place="([^"]*)"', answer.text)[0])


class TestLogin:
    @pytest.mark.parametrize("path", ["/", "/actions/invocations/iv_1"])
    def test_visitor_without_a_session_gets_only_the_form(
        self, server: LocalServer, visitor: httpx.Client, path: str
    ) -> None:
        name = new_action(server, "true")
        invoke(server, name)
        answer = visitor.get(path)
        assert answer.status_code == 401
        assert '<form method="post" action="/login">' in answer.text
        assert name not in answer.text
        assert "<script" not in answer.text

    @pytest.mark.parametrize("path", ["/page/rows", "/page/invocations/iv_1"])
    def test_nor_is_a_part_of_the_page_shown(
        self, server: LocalServer, visitor: httpx.Client, path: str
    ) -> None:
        name = new_action(server, "true")
        invoke(server, name)
        answer = visitor.get(path)
        assert answer.status_code == 401
        assert name not in answer.text

    @pytest.mark.parametrize(
        "form",
        [
            {"token": "wrong"}, {"token": ""}, {}, {"token": "x" * 100_000}, {"token": "\x00😀é"},
            {f"field{number}": "x" for number in range(20)},
        ],
        ids=["wrong", "empty", "none", "long", "odd", "many"],
    )  # fmt: skip
    def test_a_wrong_token_is_rejected_in_words_that_are_always_the_same(
        self, visitor: httpx.Client, form: dict[str, str]
    ) -> None:
        answer = visitor.post("/login", data=form)
        assert answer.status_code == 401
        assert "The token was rejected. Check it, and try again." in answer.text
        assert "set-cookie" not in answer.headers
        assert "wrong" not in answer.text

    def test_login_without_a_form_is_rejected(self, visitor: httpx.Client) -> None:
        for content in (b"\xff\xfe", b"[1, 2]", b"&&&==="):
            assert visitor.post("/login", content=content).status_code == 401

    def test_the_cookie_is_a_random_id_that_scripts_and_other_sites_cannot_use(
        self, server: LocalServer, visitor: httpx.Client
    ) -> None:
        answer = visitor.post("/login", data={"token": server.token})
        assert (answer.status_code, place_in(answer)) == (200, "/")
        name_and_value, *flags = (part.strip() for part in answer.headers["set-cookie"].split(";"))
        assert {flag.lower() for flag in flags} == {
            "httponly", "samesite=strict", "path=/", f"max-age={SESSION_AGE}"
        }  # fmt: skip
        name, _, value = name_and_value.partition("=")
        assert name.endswith(f"_{httpx.URL(server.endpoint).port}")  # a second server's is another cookie
        assert len(value) >= 40
        assert server.token not in name_and_value
        other = httpx.post(f"{server.endpoint}/login", data={"token": server.token})
        assert value not in other.headers["set-cookie"]
        assert len({value, secret_in(answer), secret_in(other)}) == 3

    def test_behind_https_the_cookie_stays_there(self, server: LocalServer, visitor: httpx.Client) -> None:
        forwarded = {"X-Forwarded-Proto": "https"}
        answer = visitor.post("/login", data={"token": server.token}, headers=forwarded)
        assert "secure" in answer.headers["set-cookie"].lower()

    def test_login_leads_back_to_the_invocation_asked_for_and_nowhere_else(
        self, server: LocalServer, visitor: httpx.Client
    ) -> None:
        assert 'name="invocation_id" value="iv_7"' in visitor.get("/actions/invocations/iv_7").text
        for asked, place in {"iv_7": "iv_7", "//evil.example/": "%2F%2Fevil.example%2F"}.items():
            form = {"token": server.token, "invocation_id": asked}
            answer = visitor.post("/login", data=form)
            assert place_in(answer) == f"/actions/invocations/{place}"

    @pytest.mark.parametrize("site", ["cross-site", "same-site"])
    def test_login_and_logout_from_another_site_are_rejected(
        self, server: LocalServer, visitor: httpx.Client, site: str
    ) -> None:
        elsewhere = {"Sec-Fetch-Site": site}
        answer = visitor.post("/login", data={"token": server.token}, headers=elsewhere)
        assert answer.status_code == 403
        assert "set-cookie" not in answer.headers
        visitor.post("/login", data={"token": server.token})
        visitor.post("/logout", headers=elsewhere)
        assert visitor.get("/").status_code == 200

    def test_logout_ends_the_session_not_only_the_cookie(
        self, server: LocalServer, reader: httpx.Client
    ) -> None:
        kept = dict(reader.cookies)
        assert reader.get("/").status_code == 200
        assert reader.post("/logout").status_code == 303
        assert not reader.cookies
        assert httpx.get(f"{server.endpoint}/", cookies=kept).status_code == 401

    def test_a_revoked_token_ends_its_sessions(self, server: LocalServer, visitor: httpx.Client) -> None:
        token = token_command(server, "add", "onlooker", "--role", "read")
        visitor.post("/login", data={"token": token})
        assert visitor.get("/").status_code == 200
        token_command(server, "revoke", "onlooker")
        assert visitor.get("/").status_code == 401
        assert visitor.get("/v1/actions/invocations/iv_1").status_code == 401


class TestSessions:
    def test_the_number_of_sessions_is_bounded_and_the_oldest_end(self) -> None:
        sessions = Sessions()
        opened = [sessions.open(f"token-{number}") for number in range(MAX_SESSIONS + 2)]
        known = [sessions.authorization(request_with(session)) for session in opened]
        assert known[:2] == [None, None]
        assert known[2:] == [f"Bearer token-{number}" for number in range(2, MAX_SESSIONS + 2)]

    def test_a_session_ends_however_much_it_is_used(self, monkeypatch: pytest.MonkeyPatch) -> None:
        now = time.monotonic()
        monkeypatch.setattr(page_module.time, "monotonic", lambda: now)
        sessions = Sessions()
        session = sessions.open("token")
        now += SESSION_AGE - 1
        assert sessions.authorization(request_with(session)) == "Bearer token"
        now += 1
        assert sessions.authorization(request_with(session)) is None

    def test_many_logins_with_one_token_end_its_own_sessions_only(self) -> None:
        sessions = Sessions()
        theirs = sessions.open("theirs")
        mine = [sessions.open("mine") for _ in range(MAX_SESSIONS + 2)]
        assert sessions.authorization(request_with(theirs)) == "Bearer theirs"
        known = [sessions.authorization(request_with(session)) for session in mine]
        assert known == [None] * (len(mine) - MAX_SESSIONS_OF_TOKEN) + ["Bearer mine"] * MAX_SESSIONS_OF_TOKEN

    def test_one_half_opens_nothing(self) -> None:
        sessions = Sessions()
        one, other = sessions.open("token"), sessions.open("token")
        for session_id, secret in (
            (one.session_id, ""), (one.session_id, other.secret), ("", one.secret),
            (one.session_id, one.session_id),
        ):  # fmt: skip
            assert sessions.authorization(request_with(NewSession(session_id, secret))) is None


def request_with(session: NewSession, method: str = "GET") -> Request:
    cookie = f"invocations_session_80={session.session_id}".encode()
    secret = (b"x-invocations-session", session.secret.encode())
    headers = [(b"host", b"server:80"), (b"cookie", cookie), secret]
    server = ("server", 80)
    return Request(
        {"type": "http", "method": method, "scheme": "http", "path": "/", "query_string": b"",
         "headers": headers, "server": server}
    )  # fmt: skip


class TestCookie:
    def test_alone_it_opens_nothing(self, server: LocalServer, reader: httpx.Client) -> None:
        """Browsers send it to every port of the host: whoever listens there may repeat it."""
        name = new_action(server, "true")
        invocation_id = invoke(server, name)
        with httpx.Client(base_url=server.endpoint, cookies=reader.cookies, timeout=30) as thief:
            for path in (
                "/page/rows", "/page/who", f"/page/invocations/{invocation_id}", f"/v1/actions/{name}",
                "/v1/actions/invocations/watch", f"/v1/actions/invocations/{invocation_id}", "/v1/users",
            ):  # fmt: skip
                assert thief.get(path).status_code == 401, path
            for path in ("/", f"/actions/invocations/{invocation_id}"):
                shell = thief.get(path)
                assert shell.status_code == 200
                assert name not in shell.text
                assert "og_local" not in shell.text
            assert name in reader.get("/").text

    def test_it_opens_gets_of_the_api_and_nothing_that_changes_anything(
        self, server: LocalServer, reader: httpx.Client
    ) -> None:
        name = new_action(server, "true")
        invocation_id = invoke(server, name)
        values = {"name": name, "invocation_id": invocation_id}
        tried: dict[str, int] = {}
        for path, methods in reader.get("/openapi.json").json()["paths"].items():
            address = re.sub(r"\{(\w+)[^}]*\}", lambda name: values.get(name[1], "x"), path)
            if not path.startswith("/v1/") or path.endswith("/content"):  # that wants a signed address
                continue
            for method in methods:
                with reader.stream(method.upper(), address, json=None if method == "get" else {}) as answer:
                    tried[method] = tried.get(method, 0) + 1
                    assert (answer.status_code == 401) is (method != "get"), (method, path)
        assert set(tried) >= {"get", "post", "put", "delete", "patch"}
        assert server.request("GET", f"v1/actions/{name}").status_code == 200

    def test_a_bearer_header_goes_before_it(self, server: LocalServer, reader: httpx.Client) -> None:
        wrong = reader.get("/v1/actions/invocations/iv_1", headers={"Authorization": "Bearer wrong"})
        assert wrong.status_code == 401
        right = {"Authorization": f"Bearer {server.token}"}
        assert reader.post("/v1/actions/query", json={}, headers=right).status_code == 200
        assert httpx.get(f"{server.endpoint}/", headers=right).status_code == 200


class TestPage:
    def test_it_lists_invocations_with_what_asked_for_them(
        self, server: LocalServer, reader: httpx.Client
    ) -> None:
        name = new_action(server, "true")
        source = DagRunProvenance(
            dag_id="fleet/quality", run_id="manual__2026-05-09T07:31:12+00:00", run_type="manual",
            task_id="group.find", map_index=3, try_number=2,
        )  # fmt: skip
        invocation_id = invoke(server, name, source.source_id)
        wait_for_status(server, invocation_id, 5)
        row = html.unescape(reader.get(f"/page/rows?ids={invocation_id}").text)
        for shown in (name, "Completed", "fleet/quality", "group.find", "[3]", f"{source.run_id}, try 2"):
            assert shown in row, shown
        assert row.count("<tr ") == 1
        assert reader.get("/").text.count(f'data-id="{invocation_id}"') == 1

    def test_the_address_of_an_invocation_selects_it(self, server: LocalServer, reader: httpx.Client) -> None:
        invocation_id = invoke(server, new_action(server, "true"), parameter_values={"speed": [1, 2]})
        answer = reader.get(f"/actions/invocations/{invocation_id}")
        assert answer.status_code == 200
        assert answer.text.count('aria-current="true"') == 1
        assert '<section id="detail" aria-label="The selected invocation">' in answer.text
        assert "<dt>speed</dt><dd>[1, 2]</dd>" in answer.text

    def test_an_invocation_that_is_not_there_is_404_and_the_list(self, reader: httpx.Client) -> None:
        answer = reader.get("/actions/invocations/iv_gone")
        assert answer.status_code == 404
        assert "Invocation iv_gone was not found." in answer.text
        assert reader.get("/page/invocations/iv_gone").status_code == 404

    def test_another_organisation_sees_none_of_it(self, server: LocalServer, visitor: httpx.Client) -> None:
        invocation_id = invoke(server, new_action(server, "true"))
        token = token_command(server, "add", "neighbour", "--org", "og_next_door", "--role", "admin")
        let_in(visitor, token)
        assert invocation_id not in visitor.get("/").text
        assert visitor.get(f"/actions/invocations/{invocation_id}").status_code == 404
        assert invocation_id not in visitor.get(f"/page/rows?ids={invocation_id}").text
        token_command(server, "revoke", "neighbour")

    @pytest.mark.parametrize("path", ["/", "/actions/invocations/iv_1", "/page/rows", "/login-form"])
    def test_every_answer_says_what_a_browser_may_run(
        self, server: LocalServer, reader: httpx.Client, path: str
    ) -> None:
        answer = httpx.get(f"{server.endpoint}/") if path == "/login-form" else reader.get(path)
        policy = dict(rule.split(" ", 1) for rule in answer.headers["content-security-policy"].split("; "))
        nonce = re.fullmatch(r"'nonce-([\w-]{20,})'", policy["script-src"])
        assert nonce is not None
        assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
        assert policy["connect-src"] == policy["form-action"] == "'self'"
        assert "unsafe" not in answer.headers["content-security-policy"]
        assert all(nonce[1] in tag for tag in re.findall(r"<(?:script|style)[^>]*>", answer.text))
        assert not re.search(r"<[^>]*\s(on\w+|style)=|(src|href)=\"(https?:)?//", answer.text)
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"

    def test_no_two_pages_have_the_same_nonce(self, reader: httpx.Client) -> None:
        policies = {reader.get("/").headers["content-security-policy"] for _ in range(3)}
        assert len(policies) == 3

    @pytest.mark.parametrize("evil", EVIL)
    def test_outside_values_are_shown_as_text(
        self, server: LocalServer, reader: httpx.Client, evil: str
    ) -> None:
        name = {"name": evil, "container_parameters": {"command": ["true"]}}
        assert server.request("POST", "v1/actions", json=name).status_code == 400
        invocation_id = invoke_evil(server, evil)
        wait_for_status(server, invocation_id, 998)
        text = reader.get(f"/actions/invocations/{invocation_id}").text
        # The source, in the row and in the facts; there also parameters, and the last line as the detail.
        [row] = re.findall(rf'<tr data-id="{invocation_id}".*?</tr>', text, re.S)
        [facts] = re.findall(r'<div class="facts".*?</ol>', text, re.S)
        assert html.unescape(row).count(evil) == 1
        assert html.unescape(facts).count(evil) >= 4
        if "<" in evil:
            assert evil not in text
        assert text.count("<script") == 1

    def test_a_reflected_id_and_a_task_instance_are_text_too(
        self, server: LocalServer, reader: httpx.Client
    ) -> None:
        evil = "<img src=x onerror=pwned>"
        assert evil not in reader.get(f"/actions/invocations/{evil}").text
        assert evil not in httpx.get(f"{server.endpoint}/actions/invocations/{evil}").text
        form = {"token": "wrong", "invocation_id": evil}
        assert evil not in reader.post("/login", data=form).text
        source = DagRunProvenance(dag_id=evil, run_id=evil, run_type="manual", task_id=evil, try_number=1)
        invocation_id = invoke(server, new_action(server, "true"), source.source_id)
        text = reader.get(f"/actions/invocations/{invocation_id}").text
        assert evil not in text
        assert html.unescape(text).count(evil) == 6

    def test_facts_show_the_caller_and_what_an_invocation_has_invoked(
        self, server: LocalServer, reader: httpx.Client
    ) -> None:
        name = new_action(server, "true")
        root = invoke(server, name)
        child = invoke(server, name, root)
        grandchild = invoke(server, name, child)
        shown = reader.get(f"/page/invocations/{root}").text
        assert re.findall(r'<li class="depth-(\d)">.*?/invocations/(\w+)"', shown, re.S) == [
            ("1", child), ("2", grandchild),
        ]  # fmt: skip
        assert f'Invoked by</dt><dd><a href="/actions/invocations/{child}">' in (
            reader.get(f"/page/invocations/{grandchild}").text
        )
        assert "Attempts" not in shown

    def test_facts_show_attempts_of_an_invocation_that_ran_again(
        self, start_server: Callable[..., LocalServer]
    ) -> None:
        server = start_server("--slots", "1", "--grace", "0.5")
        invocation_id = invoke(server, new_action(server, "sleep 60"))
        wait_for_status(server, invocation_id, 3)
        server.kill()
        server.start()
        wait_for_status(server, invocation_id, 3)
        with httpx.Client(base_url=server.endpoint, timeout=30) as viewer:
            let_in(viewer, server.token)
            shown = viewer.get(f"/page/invocations/{invocation_id}").text
        assert re.findall(r"<b>(\d)</b>", shown) == ["1", "2"]

    def test_cancel_needs_both_halves_of_a_session_and_the_role(
        self, server: LocalServer, reader: httpx.Client
    ) -> None:
        name = new_action(server, "sleep 60")
        root = invoke(server, name)
        child = invoke(server, name, root)
        path = f"/page/invocations/{root}/cancel"
        assert f'data-cancel="{root}"' in reader.get(f"/page/invocations/{root}").text
        with httpx.Client(base_url=server.endpoint, cookies=reader.cookies, timeout=30) as cookie_only:
            assert cookie_only.post(path).status_code == 401
        elsewhere = {"Sec-Fetch-Site": "cross-site"}
        assert reader.post(path, headers=elsewhere).status_code == 403
        viewing = token_command(server, "add", f"viewer-{next(_numbers)}", "--role", "read")
        with httpx.Client(base_url=server.endpoint, timeout=30) as viewer:
            let_in(viewer, viewing)
            assert "data-cancel" not in viewer.get(f"/page/invocations/{root}").text
            assert viewer.post(path).status_code == 403
        assert reader.post("/page/invocations/iv_unknown/cancel").status_code == 404
        assert reader.post(path).status_code == 200
        for invocation_id in (root, child):
            wait_for_status(server, invocation_id, 997)
        assert "data-cancel" not in reader.get(f"/page/invocations/{root}").text

    def test_long_values_are_cut(self, server: LocalServer, reader: httpx.Client) -> None:
        invocation_id = invoke(
            server, new_action(server, "true"), "s" * 4_000,
            parameter_values={"text": "x" * 100_000} | {f"p{number}": number for number in range(300)},
        )  # fmt: skip
        text = reader.get(f"/page/invocations/{invocation_id}").text
        assert len(text) < 40_000
        assert "(100000 characters)" in text
        assert "and 201 more" in text

    def test_the_page_is_not_part_of_the_api(self, reader: httpx.Client) -> None:
        paths = reader.get("/openapi.json").json()["paths"]
        assert not [
            path for path in paths if "log" in path.split("/")[1] or path.startswith(("/page", "/actions"))
        ]


def invoke_evil(server: LocalServer, evil: str) -> str:
    """An invocation with a bad word in everything that it can say or be told."""
    name = new_action(server, 'printf "%s\\n" "$EVIL"; printf "%s\\n" "$EVIL" >&2; exit 3')
    parameters = {"EVIL": evil, evil.replace("=", " "): "a name", "list": [evil]}
    overrides = {"env_vars": {"EVIL": evil}}
    return invoke(server, name, evil, parameter_values=parameters, container_parameter_overrides=overrides)


class Wire:
    """A way to the server that can be cut and mended."""

    def __init__(self, endpoint: str) -> None:
        self._target = (httpx.URL(endpoint).host, httpx.URL(endpoint).port)
        self._ends: list[socket.socket] = []
        self._asked: list[bytes] = []
        self._port = 0
        self.mend()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def asked(self) -> bytes:
        """What was sent to the server, in lower case."""
        return b"".join(self._asked).lower()

    def mend(self) -> None:
        listener = socket.create_server(("127.0.0.1", self._port))
        self._port = listener.getsockname()[1]
        self._ends.append(listener)
        self._accepting = threading.Thread(target=self._accept, args=(listener,))
        self._accepting.start()

    def cut(self) -> None:
        """End every connection, and take no more."""
        while self._accepting.is_alive():  # one that is just being made is cut on the next turn
            for end in self._ends:
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
            self._accepting.join(0.05)
        for end in self._ends:
            end.close()
        self._ends.clear()

    def _accept(self, listener: socket.socket) -> None:
        pumps = []
        with suppress(OSError):
            while True:
                near, far = listener.accept()[0], socket.create_connection(self._target)
                self._ends += [near, far]
                for way in ((near, far), (far, near)):
                    pumps.append(threading.Thread(target=self._pump, args=way))
                    pumps[-1].start()
        for pump in pumps:
            pump.join()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if sink.getpeername() == self._target:
                    self._asked.append(data)
                sink.sendall(data)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)


@pytest.fixture
def wire(server: LocalServer) -> Iterator[Wire]:
    wire = Wire(server.endpoint)
    yield wire
    wire.cut()


def send_token(tab: Any, server: LocalServer, path: str = "/", wire: Wire | None = None) -> None:
    tab.goto(f"{(wire or server).endpoint}{path}")
    tab.fill("#token", server.token)
    tab.keyboard.press("Enter")


def log_in(tab: Any, server: LocalServer, path: str = "/", wire: Wire | None = None) -> None:
    send_token(tab, server, path, wire)
    tab.wait_for_selector("#link[data-state=live]")


def status_in(tab: Any, invocation_id: str) -> Callable[[str], None]:
    def shows(status: str) -> None:
        tab.wait_for_selector(f'tr[data-id="{invocation_id}"] [data-status={status}]')

    return shows


class TestInABrowser:
    def test_an_invocation_is_seen_from_queued_to_completed_with_its_lines(
        self, start_server: Callable[..., LocalServer], tab: Any, tmp_path: Path
    ) -> None:
        server = start_server("--slots", "1", "--grace", "0.5")
        go = tmp_path / "go"
        wait = 'while ! [ -e "$1" ]; do sleep 0.02; done'
        blocking = new_action(server, f"set -- {go}-0; {wait}")
        name = new_action(server, f"echo first; set -- {go}-1; {wait}; echo second; set -- {go}-2; {wait}")
        log_in(tab, server)
        tab.evaluate("window.loadedOnce = true")
        assert tab.inner_text(".none").startswith("No invocations yet")

        invoke(server, blocking)
        invocation_id = invoke(server, name)
        shows = status_in(tab, invocation_id)
        shows("Queued")
        assert tab.get_attribute("#rows tr:first-child", "data-id") == invocation_id  # new ones on top
        tab.click(f'tr[data-id="{invocation_id}"]')
        assert tab.url == f"{server.endpoint}/actions/invocations/{invocation_id}"
        assert tab.inner_text("#log") == ""

        Path(f"{go}-0").touch()
        shows("Processing")
        tab.wait_for_selector("#log .line:has-text('first')")
        assert "second" not in tab.inner_text("#log")
        Path(f"{go}-1").touch()
        tab.wait_for_selector("#log .line:has-text('second')")
        Path(f"{go}-2").touch()
        shows("Completed")
        tab.wait_for_selector("#facts h2 [data-status=Completed]")
        assert tab.locator("#log .line:not(.aside) span").all_inner_texts() == ["first", "second"]
        assert tab.evaluate("window.loadedOnce")

        picture = tmp_path / "page.png"
        tab.screenshot(path=picture)
        assert picture.read_bytes().startswith(b"\x89PNG")

    def test_the_keyboard_is_enough(self, server: LocalServer, tab: Any) -> None:
        name = new_action(server, "echo by hand")
        ids = [invoke(server, name), invoke(server, name)]
        for invocation_id in ids:
            wait_for_status(server, invocation_id, 5)
        log_in(tab, server)
        for invocation_id in reversed(ids):  # the newest is on top
            tab.keyboard.press("ArrowDown")
            tab.wait_for_selector(f'tr[data-id="{invocation_id}"] a:focus')
        tab.keyboard.press("Enter")
        tab.wait_for_selector("#log .line:has-text('by hand')")
        assert tab.url.endswith(ids[0])
        assert tab.locator("[aria-current=true]").count() == 1
        tab.keyboard.press("Escape")
        assert tab.locator("#detail").is_hidden()
        assert tab.url == f"{server.endpoint}/"
        tab.go_back()
        tab.wait_for_selector("#log .line:has-text('by hand')")
        assert tab.url.endswith(ids[0])

    def test_cancel_button_cancels_what_was_invoked_too(self, server: LocalServer, tab: Any) -> None:
        name = new_action(server, "sleep 60")
        root = invoke(server, name)
        child = invoke(server, name, root)
        tab.on("dialog", lambda dialog: dialog.accept())
        log_in(tab, server, f"/actions/invocations/{root}")
        tab.click("#facts [data-cancel]")
        tab.wait_for_selector("#facts .tree [data-status=Cancelled]")
        tab.wait_for_selector("#facts h2 [data-status=Cancelled]")
        tab.click("#facts .tree a")
        tab.wait_for_selector(f"#facts .id:has-text('{child}')")
        assert tab.url.endswith(child)

    def test_the_focus_stays_in_its_row_though_the_row_changes(
        self, server: LocalServer, tab: Any, tmp_path: Path
    ) -> None:
        go = tmp_path / "go"
        name = new_action(server, f"while ! [ -e {go} ]; do sleep 0.02; done")
        invocation_id = invoke(server, name)
        log_in(tab, server)
        shows = status_in(tab, invocation_id)
        shows("Processing")
        tab.focus(f'tr[data-id="{invocation_id}"] a')
        go.touch()
        shows("Completed")
        assert tab.locator(f'tr[data-id="{invocation_id}"] a:focus').count() == 1

    def test_a_click_opens_its_row_though_the_row_changes_meanwhile(
        self, server: LocalServer, tab: Any, tmp_path: Path
    ) -> None:
        go = tmp_path / "go"
        name = new_action(server, f"while ! [ -e {go} ]; do sleep 0.02; done; echo clicked")
        invocation_id = invoke(server, name)
        log_in(tab, server)
        shows = status_in(tab, invocation_id)
        shows("Processing")
        tab.hover(f'tr[data-id="{invocation_id}"] .state')
        tab.mouse.down()
        go.touch()
        shows("Completed")
        tab.mouse.up()
        tab.wait_for_selector("#log .line:has-text('clicked')")
        assert tab.url.endswith(invocation_id)

    def test_the_list_is_not_called_live_or_empty_before_its_rows_have_come(
        self, server: LocalServer, tab: Any
    ) -> None:
        invocation_id = invoke(server, new_action(server, "true"))
        held: list[Any] = []
        tab.route("**/page/rows", lambda route: held.append(route))
        with tab.expect_request("**/page/rows"):
            send_token(tab, server)
        assert tab.get_attribute("#link", "data-state") == "waiting"
        assert tab.locator("#none").is_hidden()
        held[0].continue_()
        tab.wait_for_selector("#link[data-state=live]")
        assert tab.locator(f'tr[data-id="{invocation_id}"]').is_visible()

    @pytest.mark.parametrize("evil", EVIL)
    def test_nothing_that_comes_from_outside_runs(self, server: LocalServer, tab: Any, evil: str) -> None:
        log_in(tab, server)
        invocation_id = invoke_evil(server, evil)
        status_in(tab, invocation_id)("Failed")
        tab.click(f'tr[data-id="{invocation_id}"] a')
        tab.locator("#log .line").nth(1).wait_for()
        texts = tab.locator("#log .line span").all_inner_texts()
        assert texts.count(evil) == 2
        assert evil in tab.text_content("#facts")
        assert tab.evaluate("window.pwned") is None
        assert tab.locator("main :is(script, img, svg, iframe)").count() == 0
        tab.reload()
        tab.wait_for_selector("#log .line")
        assert tab.evaluate("window.pwned") is None

    def test_a_stream_that_breaks_is_said_and_resumed_where_it_broke(
        self, server: LocalServer, tab: Any, wire: Wire
    ) -> None:
        name = new_action(server, "true")
        wait_for_status(server, invoke(server, name), 5)  # an event to resume after
        log_in(tab, server, wire=wire)
        wire.cut()
        tab.wait_for_selector("#link[data-state=lost]")
        assert tab.inner_text("#link") == "Connection lost, reconnecting…"
        missed = invoke(server, name)
        wait_for_status(server, missed, 5)
        assert b"last-event-id" not in wire.asked
        wire.mend()
        tab.wait_for_selector("#link[data-state=live]", timeout=60_000)  # the browser takes its time
        status_in(tab, missed)("Completed")
        assert re.search(rb"last-event-id: [1-9]", wire.asked)

    def test_a_service_that_was_killed_wants_a_new_login_and_the_page_goes_on(
        self, start_server: Callable[..., LocalServer], tab: Any
    ) -> None:
        server = start_server("--slots", "2", "--grace", "0.5")
        name = new_action(server, "true")
        log_in(tab, server)
        server.kill()
        tab.wait_for_selector("#link[data-state=lost]")
        server.options = (*server.options, "--port", str(httpx.URL(server.endpoint).port))
        server.start()
        # Sessions don't outlive the process.
        tab.wait_for_selector("#link[data-state=ended]", timeout=60_000)
        tab.click("#link a")
        tab.fill("#token", server.token)
        tab.keyboard.press("Enter")
        tab.wait_for_selector("#link[data-state=live]")
        status_in(tab, invoke(server, name))("Completed")

    def test_a_link_on_a_page_of_another_site_finds_the_session(self, server: LocalServer, tab: Any) -> None:
        invocation_id = invoke(server, new_action(server, "true"))
        log_in(tab, server)
        other = server.endpoint.replace("127.0.0.1", "localhost")
        tab.goto(other)  # another host, and no cookie for it
        tab.wait_for_selector("#token")
        tab.evaluate(
            "address => { location.href = address }",
            f"{server.endpoint}/actions/invocations/{invocation_id}",
        )
        tab.wait_for_selector("#link[data-state=live]")
        assert tab.url == f"{server.endpoint}/actions/invocations/{invocation_id}"

    def test_a_long_log_is_kept_to_its_last_lines(self, server: LocalServer, tab: Any) -> None:
        name = new_action(server, "seq 1 50000; printf '%070000d\\n' 0; echo end")
        invocation_id = invoke(server, name)
        wait_for_status(server, invocation_id, 5)
        log_in(tab, server, f"/actions/invocations/{invocation_id}")
        tab.wait_for_selector("#log .line:last-child:has-text('end')")
        tab.wait_for_selector("#log .line span.cut")
        assert tab.locator("#log .line").count() == 2000
        assert len(tab.inner_text("#log .line span.cut")) == 20_000

    def test_it_asks_nobody_but_the_service(self, server: LocalServer, tab: Any) -> None:
        asked: list[str] = []
        tab.on("request", lambda request: asked.append(request.url))
        invocation_id = invoke(server, new_action(server, "echo hello"))
        log_in(tab, server, f"/actions/invocations/{invocation_id}")
        tab.wait_for_selector("#log .line")
        assert asked
        assert not [url for url in asked if not url.startswith((server.endpoint, "data:"))]
        cookies = tab.evaluate("document.cookie")
        assert json.dumps(cookies) == '""'
