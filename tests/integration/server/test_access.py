"""Who may call which route: every route of the app's own table, by every kind of token.

A route without a row in ROUTES fails `test_every_route_has_a_decision`; what a row expects is tried with real
requests, and a request that is let through may only fail for what it asks for, never for who asks.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute

from airflow_invocations.server.admin import add_token, revoke_token
from airflow_invocations.server.api.app import create_app
from airflow_invocations.server.settings import ServerSettings

from ...support.waiting import until
from ..conftest import LocalServer

#: Statuses of a request that was let through.
THROUGH = frozenset({200, 204, 400, 404, 409, 501})

IDENTITIES = ("nobody", "revoked", "action", "read", "invoke", "invoking action", "admin", "other admin")


@dataclass(frozen=True)
class Rule:
    """Which identities a route lets through; all others of IDENTITIES are rejected."""

    #: The least role.
    role: str
    #: Whether an action's own token is let through where the path names what is its own.
    own: bool = False

    @property
    def let_through(self) -> set[str]:
        ranks = ["read", "invoke", "admin"]
        if self.role == "open":
            return set(IDENTITIES)
        rank = ranks.index(self.role)
        through = {name for name in ranks if ranks.index(name) >= rank} | {"other admin"}
        if rank <= ranks.index("invoke"):
            through.add("invoking action")
        return through | ({"action", "invoking action"} if self.own else set())


OPEN, READ, INVOKE, ADMIN = Rule("open"), Rule("read"), Rule("invoke"), Rule("admin")
OWN_READ, OWN_INVOKE, OWN_ADMIN = Rule("read", own=True), Rule("invoke", own=True), Rule("admin", own=True)

#: Each route's rule, and the body that it is sent.
ROUTES: dict[tuple[str, str], tuple[Rule, Any]] = {
    ("POST", "/v1/actions/invocations/query"): (READ, {}),
    ("POST", "/v1/actions/invocations/cancel/all"): (ADMIN, {"created_before": "1990-01-01T00:00:00Z"}),
    ("GET", "/v1/actions/invocations/org-stats"): (READ, None),
    ("GET", "/v1/actions/invocations/roots"): (READ, None),
    ("GET", "/v1/actions/invocations/{invocation_id}"): (OWN_READ, None),
    ("GET", "/v1/actions/invocations/{invocation_id}/events"): (OWN_READ, None),
    ("GET", "/v1/actions/invocations/{invocation_id}/tree"): (READ, None),
    ("POST", "/v1/actions/invocations/{invocation_id}/cancel"): (OWN_INVOKE, None),
    ("POST", "/v1/actions/invocations/{invocation_id}/status"): (OWN_ADMIN, {"status": 0}),
    ("GET", "/v1/actions/invocations/{invocation_id}/logs"): (OWN_READ, None),
    ("GET", "/v1/actions/invocations/{invocation_id}/logs/stream"): (OWN_READ, None),
    ("PUT", "/v1/actions/invocations/{invocation_id}/logs"): (ADMIN, {"bucket": "b", "prefix": "p"}),
    ("PUT", "/v1/actions/invocations/{invocation_id}/container-info"): (ADMIN, {"image_digest": "sha256:a"}),
    ("GET", "/v1/actions/invocations/{invocation_id}/state"): (OWN_READ, None),
    ("PUT", "/v1/actions/invocations/{invocation_id}/state"): (OWN_INVOKE, {"state": "half way"}),
    ("GET", "/v1/actions/invocations/watch"): (READ, None),
    ("POST", "/v1/actions/invocations/watch"): (READ, {"ids": []}),
    ("PATCH", "/v1/actions/invocations/watch/{watch_id}"): (READ, {"add": []}),
    ("POST", "/v1/actions"): (ADMIN, {"name": "made", "container_parameters": {"command": ["true"]}}),
    ("POST", "/v1/actions/query"): (READ, {}),
    ("POST", "/v1/actions/query/actionhub"): (READ, {}),
    ("GET", "/v1/actions/{name}"): (OWN_READ, None),
    ("PUT", "/v1/actions/{name}"): (ADMIN, {}),
    ("PUT", "/v1/actions/{name}/accessibility"): (ADMIN, {"accessibility": "organization"}),
    ("DELETE", "/v1/actions/{name}"): (ADMIN, None),
    ("POST", "/v1/actions/{name}/invoke"): (INVOKE, {"invocation_source": "Manual"}),
    ("POST", "/v1/datasets"): (INVOKE, {"name": "made"}),
    ("POST", "/v1/datasets/create_if_not_exists"): (
        INVOKE,
        {"match_roboql_query": "name = 'made'", "create_request": {"name": "made"}},
    ),
    ("POST", "/v1/datasets/query"): (READ, {}),
    ("GET", "/v1/datasets/{dataset_id}"): (OWN_READ, None),
    ("PUT", "/v1/datasets/{dataset_id}"): (OWN_INVOKE, {}),
    ("DELETE", "/v1/datasets/{dataset_id}"): (ADMIN, None),
    ("POST", "/v1/datasets/{dataset_id}/files/query"): (OWN_READ, {}),
    ("GET", "/v1/datasets/id/{dataset_id}/credentials"): (OWN_READ, None),
    ("GET", "/v1/files/association/id/{dataset_id}/credentials"): (OWN_READ, None),
    ("GET", "/v1/files/association/id/{dataset_id}/directories"): (OWN_READ, None),
    ("PUT", "/v1/datasets/{dataset_id}/directory"): (INVOKE, {"name": "made"}),
    ("PUT", "/v1/datasets/{dataset_id}/directory/rename"): (INVOKE, {"old_path": "x", "new_path": "y"}),
    ("POST", "/v1/datasets/{dataset_id}/files/delete-directories"): (INVOKE, {"directory_paths": ["none"]}),
    ("POST", "/v1/files/upload"): (  # the body has the dataset
        INVOKE,
        {
            "association": {"association_id": "ds_1", "association_type": "dataset"},
            "resource_manifest": {"x.csv": 1},
        },
    ),
    ("GET", "/v1/files/upload/{upload_id}/credentials"): (INVOKE, None),
    ("PUT", "/v1/files/upload/{upload_id}/progress"): (INVOKE, {"manifest_items": []}),
    ("PUT", "/v1/files/upload/{upload_id}/complete"): (INVOKE, None),
    ("DELETE", "/v1/files/{file_id}"): (INVOKE, None),
    ("PUT", "/v1/files/{file_id}/rename"): (INVOKE, {"association_id": "ds_1", "new_path": "x/y.csv"}),
    ("POST", "/v1/files/query"): (READ, {}),
    ("GET", "/v1/files/record/{file_id}"): (OWN_READ, None),
    ("PUT", "/v1/files/record/{file_id}"): (OWN_INVOKE, {}),
    ("GET", "/v1/files/record/path/{path:path}/association/{dataset_id}"): (OWN_READ, None),
    ("GET", "/v1/files/{file_id}/signed-url"): (OWN_READ, None),
    ("POST", "/v1/secrets"): (ADMIN, {"name": "made"}),
    ("GET", "/v1/secrets"): (READ, None),
    ("GET", "/v1/secrets/name/{name}"): (READ, None),
    ("GET", "/v1/secrets/name/{name}/creds"): (ADMIN, None),
    ("DELETE", "/v1/secrets/name/{name}"): (ADMIN, None),
    ("POST", "/v1/query/submit/roboql"): (READ, {"query": "size = 0", "target": "files"}),
    ("POST", "/v1/query/submit/structured"): (READ, {"query": {}, "target": "datasets"}),
    ("GET", "/v1/query/id/{query_id}"): (READ, None),
    ("GET", "/v1/query/id/{query_id}/results"): (READ, None),
    ("GET", "/v1/orgs/caller"): (OWN_READ, None),
    ("GET", "/v1/orgs/id/{org_id}"): (OWN_READ, None),
    ("GET", "/v1/users"): (OWN_READ, None),
    ("GET", "/v1/users/whoami"): (OWN_READ, None),
    ("GET", "/v1/users/id/{user_id}"): (OWN_READ, None),
    ("GET", "/v1/users/id/{user_id}/orgs"): (OWN_READ, None),
}

#: Open to all; what they answer is tested where they are.
OPEN_ROUTES = {
    ("GET", "/v1/files/{file_id}/content"),  # its address is signed
    ("HEAD", "/v1/files/{file_id}/content"),
    *((method, "/invocations_files/{key:path}") for method in ("GET", "HEAD", "PUT", "POST", "DELETE")),
    ("GET", "/healthz"),
    ("GET", "/readyz"),
    ("GET", "/metrics"),
    ("GET", "/"),
    ("GET", "/actions/invocations/{invocation_id}"),
    ("GET", "/page/rows"),
    ("GET", "/page/who"),
    ("GET", "/page/invocations/{invocation_id}"),
    ("POST", "/page/invocations/{invocation_id}/cancel"),
    ("POST", "/"),  # its requests are signed
    ("GET", "/login"),
    ("POST", "/login"),
    ("POST", "/logout"),
}


def routes_of_the_app() -> list[BaseRoute]:
    anything: Any = None
    return create_app(*[anything] * 10, settings=ServerSettings(Path("unused"))).routes


def test_every_route_has_a_decision() -> None:
    found = {
        (method, route.path)
        for route in routes_of_the_app()
        if isinstance(route, APIRoute)
        for method in route.methods
    }
    assert found == set(ROUTES) | OPEN_ROUTES


class World:
    """A server with one invocation that runs and holds a token of its own, and a token of each kind."""

    def __init__(self, server: LocalServer, folder: Path) -> None:
        self.server = server
        self.folder = folder
        self.client = httpx.Client(timeout=30, verify=False)
        source = folder / "drives"
        source.mkdir()
        (source / "a.csv").write_text("1")
        self.dataset = self._post("v1/datasets", {"name": "theirs"})["dataset_id"]
        (server.data_dir / "datasets" / self.dataset).mkdir(parents=True, exist_ok=True)
        (server.data_dir / "datasets" / self.dataset / "a.csv").write_text("1")
        (file,) = self._post(f"v1/datasets/{self.dataset}/files/query", {})["items"]
        self.file = file["file_id"]
        self.query = self._post("v1/query/submit/roboql", {"query": "size = 0", "target": "files"})[
            "query_id"
        ]
        data = server.data_dir
        self.tokens = {
            "nobody": None,
            "revoked": add_token(data, "revoked", "og_local", "admin"),
            "action": self._token_of_process("keeps", may_invoke=False),
            "read": add_token(data, "reads", "og_local", "read"),
            "invoke": add_token(data, "invokes", "og_local", "invoke"),
            "invoking action": self._token_of_process("invokes", may_invoke=True),
            "admin": server.token,
            "other admin": add_token(data, "other", "og_other", "admin"),
        }
        revoke_token(data, "revoked")
        self.invocations = {name: self._invocation(name) for name in ("action", "invoking action")}

    def path(self, template: str, identity: str) -> str:
        """A route's path with what is an action's own in it, whoever asks."""
        mine = identity if identity in self.invocations else "action"
        values = {
            "invocation_id": self.invocations[mine],
            "watch_id": "wt_0",
            "name": "keeps" if mine == "action" else "invokes",
            "dataset_id": self.dataset,
            "file_id": self.file,
            "path:path": "a.csv",
            "query_id": self.query,
            "org_id": "og_local",
        }
        path = template.removeprefix("/")
        for name, value in values.items():
            path = path.replace(f"{{{name}}}", value)
        return path + "?start_time=2026-01-01T00:00:00Z&end_time=2026-01-02T00:00:00Z"

    def status(self, method: str, path: str, identity: str, body: Any) -> int:
        """The status of an answer; of a stream that is open, what it began with."""
        token = self.tokens[identity]
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        url = f"{self.server.endpoint}/{path}"
        with self.client.stream(method, url, headers=headers, json=body) as answer:
            return answer.status_code

    def _token_of_process(self, name: str, *, may_invoke: bool) -> str:
        told = self.folder / f"{name}.token"
        command = f'printf %s "$ROBOTO_API_KEY" > {told}.part; mv {told}.part {told}; exec sleep 600'
        action = {
            "name": name,
            "may_invoke": may_invoke,
            "container_parameters": {"command": ["sh", "-c", command]},
        }
        self._post("v1/actions", action)
        asked = {"data_source_id": self.dataset, "input_data": ["*.csv"], "invocation_source": "Manual"}
        self._post(f"v1/actions/{name}/invoke", asked)
        return until(lambda: told.exists() and told.read_text(), within=60) or ""

    def _invocation(self, identity: str) -> str:
        headers = {"Authorization": f"Bearer {self.tokens[identity]}"}
        return str(self.server.request("GET", "v1/users", headers=headers).json()["data"]["user_id"])

    def _post(self, path: str, body: Any) -> Any:
        return self.server.request("POST", path, json=body).raise_for_status().json()["data"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("access")
    server = LocalServer(folder / "data", "--slots", "4", "--grace", "0.2")
    server.start()
    yield World(server, folder)
    server.end()


#: Those that end what the others are tried on come last.
IN_ORDER = sorted(ROUTES, key=lambda route: (route[1].endswith("/cancel"), route[0] == "DELETE"))


def test_an_action_has_nothing_that_is_not_its_own(world: World) -> None:
    asked = {"invocation_source": "Manual"}
    other = world.server.request("POST", "v1/actions/keeps/invoke", json=asked).json()["data"]
    dataset = world.server.request("POST", "v1/datasets", json={"name": "not theirs"}).json()["data"]
    folder = world.server.data_dir / "datasets" / dataset["dataset_id"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "secret.csv").write_text("not theirs")
    listed = world.server.request("POST", f"v1/datasets/{dataset['dataset_id']}/files/query", json={})
    names = {
        "invocation_id": other["invocation_id"],
        "dataset_id": dataset["dataset_id"],
        "file_id": listed.json()["data"]["items"][0]["file_id"],
        "name": "invokes",
        "path:path": "secret.csv",
    }
    tried = 0
    for (method, template), (rule, body) in ROUTES.items():
        path = template.removeprefix("/")
        if rule.own and "{" in path and "org_id" not in path and "user_id" not in path:
            for name, value in names.items():
                path = path.replace(f"{{{name}}}", value)
            assert world.status(method, path, "action", body) == 403, (method, path)
            tried += 1
    assert tried > 10
    world.server.request("POST", f"v1/actions/invocations/{other['invocation_id']}/cancel")


@pytest.mark.parametrize(
    "overrides",
    [{"command": ["cat", "token"]}, {"workdir": "/"}, {"env_vars": {"PYTHONWARNINGS": "x", "BROWSER": "id"}}],
)
def test_overrides_need_admin(world: World, overrides: dict[str, Any]) -> None:
    body = {"invocation_source": "Manual", "container_parameter_overrides": overrides, "timeout": 1}
    path = "v1/actions/keeps/invoke"
    statuses = {each: world.status("POST", path, each, body) for each in ("invoke", "invoking action")}
    assert statuses == {"invoke": 403, "invoking action": 403}
    headers = {"Authorization": f"Bearer {world.tokens['invoke']}"}
    rejected = world.server.request("POST", path, json=body, headers=headers).json()["error"]
    assert rejected["error_code"] == "RobotoUnauthorizedException"
    assert "role admin" in rejected["message"]
    allowed = world.server.request("POST", path, json=body)
    assert allowed.status_code == 200
    invocation_id = allowed.json()["data"]["invocation_id"]
    world.server.request("POST", f"v1/actions/invocations/{invocation_id}/cancel")


def test_overrides_can_be_allowed(start_server: Callable[..., LocalServer]) -> None:
    server = start_server("--slots", "0", "--allow-overrides")
    server.request("POST", "v1/actions", json={"name": "a", "container_parameters": {"command": ["true"]}})
    token = add_token(server.data_dir, "airflow", "og_local", "invoke")
    body = {"invocation_source": "Manual", "container_parameter_overrides": {"command": ["false"]}}
    headers = {"Authorization": f"Bearer {token}"}
    answer = server.request("POST", "v1/actions/a/invoke", json=body, headers=headers)
    assert answer.json()["data"]["container_parameters"]["command"] == ["false"]


def test_report_does_not_complete_an_invocation_that_waits_for_the_runner(
    start_server: Callable[..., LocalServer],
) -> None:
    server = start_server("--slots", "1", "--grace", "0.2")
    action = {"name": "waits", "container_parameters": {"command": ["sleep", "600"]}}
    server.request("POST", "v1/actions", json=action)
    body = {"invocation_source": "Manual"}
    for _ in range(2):
        asked = server.request("POST", "v1/actions/waits/invoke", json=body).json()["data"]
    path = f"v1/actions/invocations/{asked['invocation_id']}/status"
    rejected = server.request("POST", path, json={"status": 5})
    assert (rejected.status_code, rejected.json()["error"]["error_code"]) == (409, "RobotoConditionException")
    assert server.request("POST", path, json={"status": 998, "detail": "not needed"}).status_code == 200


@pytest.mark.parametrize("identity", ["nobody", "read"])
def test_a_body_is_read_only_of_those_who_may_send_it(world: World, identity: str) -> None:
    token = world.tokens[identity]
    headers = {"Content-Type": "application/json", "Content-Length": str(7_000_000)}
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    host, port = world.server.endpoint.removeprefix("http://").split(":")
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        # The rest of the body never comes, and the answer doesn't wait for it.
        connection.sendall(f"POST /v1/actions HTTP/1.1\r\nHost: {host}\r\n{head}\r\n".encode() + b'{"name":')
        answer = connection.recv(4096).decode()
    assert answer.startswith("HTTP/1.1 401" if token is None else "HTTP/1.1 403")


@pytest.mark.parametrize(("method", "template"), IN_ORDER, ids=lambda part: str(part))
def test_a_route_lets_through_whom_it_should(world: World, method: str, template: str) -> None:
    rule, body = ROUTES[method, template]
    statuses = {
        identity: world.status(method, world.path(template, identity), identity, body)
        for identity in sorted(IDENTITIES, key=lambda identity: identity in rule.let_through)
    }
    rejected = {
        identity: 401 if identity in ("nobody", "revoked") else 403
        for identity in IDENTITIES
        if identity not in rule.let_through
    }
    assert {identity: statuses[identity] for identity in rejected} == rejected
    assert {identity for identity in rule.let_through if statuses[identity] not in THROUGH} == set()
    if "{" in template and "/v1/actions/{name}" not in template and "org_id" not in template:
        assert statuses["other admin"] == 404, "another organisation's things are not there"
