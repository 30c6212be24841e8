"""Routes of the page in Airflow: permissions, content, and values from outside."""

from __future__ import annotations

import html
import json
import re
from typing import Any

import pytest
from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
from airflow.sdk.log import mask_secret
from fastapi.testclient import TestClient

from airflow_invocations.platforms import UnavailableError
from airflow_invocations.ui.airflow import app as page_app
from airflow_invocations.ui.airflow.runs import Instance, RunKey, Try, TryKey

from .conftest import RUN, Auth, Person, S, World, at, page_of, record

OF_RUN = {"dag_id": RUN.dag_id, "run_id": RUN.run_id}
ONE = {**OF_RUN, "conn_id": "c", "invocation_id": "iv_1"}
OTHER = RunKey("other", "r1")

#: Every route, and what it is asked with.
ROUTES = {"/": {}, "/rows": {}, "/run": OF_RUN, "/run/rows": OF_RUN, "/facts": ONE, "/log": ONE}

EVIL = (
    "<script>window.pwned=1</script>",
    "</script></style></title></template><script>window.pwned=1</script>",
    "<img src=x onerror=window.pwned=1>",
    "\"'><svg onload=window.pwned=1>",
    "{{ 7*7 }}{% raw %}",
    "javascript:window.pwned=1",
)


@pytest.fixture
def one(world: World) -> World:
    world.connect("c", record(action="find-anomalies")).pages[None] = page_of("a line")
    world.runs[OTHER] = False
    return world


class TestPermissions:
    @pytest.mark.parametrize("path", ROUTES)
    @pytest.mark.parametrize(("token", "status"), [(None, 401), ("wrong", 403)])
    def test_route_rejects_viewer_without_login(
        self, client: TestClient, one: World, path: str, token: str | None, status: int
    ) -> None:
        if token:
            client.cookies.set("_token", token)
        answer = client.get(path, params=ROUTES[path])
        assert answer.status_code == status
        assert "find-anomalies" not in answer.text
        assert "a line" not in answer.text

    @pytest.mark.parametrize("path", ROUTES)
    def test_route_shows_permitted_viewer(self, ada: TestClient, one: World, path: str) -> None:
        answer = ada.get(path, params=ROUTES[path])
        assert answer.status_code == 200
        assert ("a line" if path == "/log" else "find-anomalies") in answer.text

    def test_token_in_header_is_a_login(self, client: TestClient, one: World) -> None:
        assert client.get("/", headers={"Authorization": "Bearer ada"}).status_code == 200

    @pytest.mark.parametrize("path", [path for path in ROUTES if ROUTES[path]])
    def test_route_rejects_viewer_who_may_not_read_the_dag(
        self, client: TestClient, one: World, path: str
    ) -> None:
        client.cookies.set("_token", "bob")
        answer = client.get(path, params=ROUTES[path])
        assert answer.status_code == 403
        assert "find-anomalies" not in answer.text

    def test_list_of_all_has_readable_dags_only(self, client: TestClient, one: World) -> None:
        one.platforms["c"].records.append(record("iv_of_other", OTHER, action="secret-action"))
        one.named[OTHER] = ["c"]
        for token, sees, does_not in (("ada", "iv_1", "iv_of_other"), ("bob", "iv_of_other", "iv_1")):
            client.cookies.set("_token", token)
            shown = client.get("/rows").text
            assert f'data-id="{sees}"' in shown
            assert f'data-id="{does_not}"' not in shown

    def test_invocation_of_another_run_is_not_found(self, client: TestClient, one: World) -> None:
        client.cookies.set("_token", "bob")
        one.named[OTHER] = ["c"]
        for path in ("/facts", "/log"):
            answer = client.get(path, params={**ONE, "dag_id": OTHER.dag_id, "run_id": OTHER.run_id})
            assert answer.status_code == 404
            assert "a line" not in answer.text
            assert "find-anomalies" not in answer.text

    @pytest.mark.parametrize("dag_ids", [["other", "fleet"], ["fleet", "other"], ["~"], [""], []])
    def test_odd_dag_ids_grant_nothing(self, client: TestClient, one: World, dag_ids: list[str]) -> None:
        client.cookies.set("_token", "bob")
        for path in ("/run", "/run/rows", "/facts", "/log"):
            answer = client.get(path, params={**ROUTES[path], "dag_id": dag_ids})
            assert answer.status_code in (403, 404, 422)
            assert "find-anomalies" not in answer.text

    @pytest.mark.parametrize(
        ("may_not", "paths"),
        [
            (DagAccessEntity.RUN, set(ROUTES)),
            (DagAccessEntity.TASK_INSTANCE, set(ROUTES)),
            (DagAccessEntity.TASK_LOGS, {"/log"}),
        ],
    )
    def test_route_needs_each_permission_of_the_dag(
        self, ada: TestClient, auth: Auth, one: World, may_not: DagAccessEntity, paths: set[str]
    ) -> None:
        auth.people["ada"] = Person({"fleet"}, may_not=frozenset({may_not}))
        rejected = {path for path in ROUTES if ada.get(path, params=ROUTES[path]).status_code == 403}
        assert rejected == paths

    def test_detail_is_shown_to_readers_of_logs_only(self, ada: TestClient, auth: Auth, one: World) -> None:
        steps = ((S.Queued, 1), (S.Processing, 3), (S.Failed, 63))
        one.platforms["c"].records = [record(steps=steps, detail="exit code 1: no such topic")]
        shown = ("/", "/rows", "/run", "/run/rows", "/facts")
        assert [path for path in shown if "no such topic" in ada.get(path, params=ROUTES[path]).text] == [
            *shown
        ]
        auth.people["ada"] = Person({"fleet"}, may_not=frozenset({DagAccessEntity.TASK_LOGS}))
        for path in shown:
            answer = ada.get(path, params=ROUTES[path])
            assert "Failed" in answer.text
            assert "no such topic" not in answer.text

    def test_connection_that_no_task_names_needs_permission_to_list(
        self, ada: TestClient, one: World
    ) -> None:
        one.connect("of_a_hook", record("iv_2"))
        one.named[RUN] = ["c"]
        one.listed = {"of_a_hook": "roboto"}
        assert 'data-id="iv_2"' in ada.get("/run/rows", params=OF_RUN).text
        one.listed = None
        shown = ada.get("/run/rows", params=OF_RUN).text
        assert 'data-id="iv_1"' in shown
        assert 'data-id="iv_2"' not in shown
        assert (
            ada.get("/facts", params={**ONE, "conn_id": "of_a_hook", "invocation_id": "iv_2"}).status_code
            == 404
        )

    @pytest.mark.parametrize("path", ROUTES)
    def test_route_needs_permission_to_see_plugins(
        self, ada: TestClient, auth: Auth, one: World, path: str
    ) -> None:
        auth.people["ada"] = Person({"fleet"}, may_see_plugins=False)
        assert ada.get(path, params=ROUTES[path]).status_code == 403

    def test_connection_of_another_run_is_not_queried(self, ada: TestClient, one: World) -> None:
        foreign = one.connect("foreign", record())
        one.named[RUN] = ["c"]
        for path in ("/facts", "/log"):
            assert ada.get(path, params={**ONE, "conn_id": "foreign"}).status_code == 404
        assert foreign.asked == []

    def test_routes_are_not_documented(self, client: TestClient) -> None:
        for path in ("/docs", "/redoc", "/openapi.json"):
            assert client.get(path).status_code == 404


class TestContent:
    def test_unknown_run_is_not_found(self, ada: TestClient, world: World) -> None:
        answer = ada.get("/run", params={**OF_RUN, "run_id": "none"})
        assert answer.status_code == 404
        assert "There is no such DAG run." in answer.text

    def test_row_content(self, ada: TestClient, world: World) -> None:
        steps = ((S.Queued, 1), (S.Processing, 3), (S.Completed, 63))
        world.connect("c", record(steps=steps, map_index=4, task_id="the task"))
        key = TryKey(RUN.dag_id, RUN.run_id, "the task", 4)
        world.instances[key] = Instance((Try(1, at(0), at(70)),), "a.csv")
        shown = ada.get("/run/rows", params=OF_RUN).text
        assert 'data-status="Completed"' in shown
        assert (
            "../dags/fleet/runs/manual__2026-01-31T12%3A00%3A00%2B00%3A00/tasks/the%20task/mapped/4" in shown
        )
        assert "the task [4]" in shown
        assert "a.csv, try 1" in shown
        assert re.findall(r'data-seconds="([\d.]+)"', shown) == ["60.0", "10.0"]
        assert "going" not in shown
        assert "Roboto (invocation API)" in shown
        assert 'data-live="no"' in shown

    def test_row_has_iteration_of_a_loop(self, ada: TestClient, world: World) -> None:
        region = {"iteration": 2, "region_id": "01999999-0000-7000-8000-00000000000a", "region_index": 2}
        world.connect(
            "c", record(asked_in=region, steps=((S.Queued, 1), (S.Processing, 3), (S.Completed, 63)))
        )
        for index, end in ((1, 999), (2, 70), (3, 888)):
            key = TryKey(RUN.dag_id, RUN.run_id, "ask", -1, region["region_id"], index)
            world.instances[key] = Instance((Try(1, at(0), at(end)),))
        shown = ada.get("/run/rows", params=OF_RUN).text
        assert "ask, iteration 2" in shown
        assert re.findall(r'data-seconds="([\d.]+)"', shown) == ["60.0", "10.0"]
        address = "/tasks/ask?region_id=01999999-0000-7000-8000-00000000000a&amp;region_index=2"
        assert address in shown

    def test_row_of_retried_task_has_label_and_waiting_of_all_tries(
        self, ada: TestClient, world: World
    ) -> None:
        steps = ((S.Queued, 1), (S.Processing, 3), (S.Completed, 63))
        world.connect("c", record(steps=steps, task_id="ask"))
        key = TryKey(RUN.dag_id, RUN.run_id, "ask", -1)
        world.instances[key] = Instance((Try(1, at(0), at(20)), Try(2, at(50), at(75))), "rec-27.mcap")
        for path, about in (("/rows", {}), ("/run/rows", OF_RUN)):
            shown = ada.get(path, params=about).text
            assert "rec-27.mcap" in shown
            assert re.findall(r'data-seconds="([\d.]+)"', shown) == ["60.0", "15.0"]

    def test_empty_list_names_unavailable_platform(self, ada: TestClient, world: World) -> None:
        world.connect("down").error = UnavailableError("down")
        for path, about in (("/rows", {}), ("/run/rows", OF_RUN)):
            shown = ada.get(path, params=about).text
            assert "Connection down: The platform is unavailable." in shown
            assert "invoked nothing" not in shown
            assert "has invoked anything" not in shown

    def test_duration_of_active_invocation_grows(self, ada: TestClient, world: World) -> None:
        world.connect("c", record())
        shown = ada.get("/run/rows", params=OF_RUN).text
        assert shown.count('class="duration going"') == 1
        assert 'data-live="yes"' in shown

    def test_unchanged_list_is_not_sent_again(self, ada: TestClient, world: World) -> None:
        world.connect("c", record())
        for path, about in (("/rows", {}), ("/run/rows", OF_RUN)):
            (version,) = re.findall(r'data-version="(\w+)"', ada.get(path, params=about).text)
            again = ada.get(path, params={**about, "seen": version})
            assert (again.status_code, again.content) == (204, b"")
            other = ada.get(path, params={**about, "seen": "0" * 64})
            assert (other.status_code, 'data-id="iv_1"' in other.text) == (200, True)

    def test_list_is_newest_first_and_limited(
        self, ada: TestClient, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(page_app, "MAX_ROWS", 3)
        world.connect("c", *(record(f"iv_{n}", created=at(n)) for n in (5, 3, 1)))
        world.connect("d", *(record(f"iv_{n}", created=at(n)) for n in (4, 2)))
        shown = ada.get("/run/rows", params=OF_RUN).text
        assert re.findall(r'data-id="(\w+)"', shown) == ["iv_5", "iv_4", "iv_3"]
        assert "Only the newest 3 are shown." in shown
        assert [limit for _, _, _, limit in world.platforms["c"].asked] == [3]

    def test_empty_list(self, ada: TestClient, world: World) -> None:
        world.connect("c")
        assert "This DAG run has invoked nothing." in ada.get("/run/rows", params=OF_RUN).text
        assert "No DAG run that you may see has invoked anything." in ada.get("/rows").text

    def test_unnamed_connection_is_listed_only_with_invocations(self, ada: TestClient, world: World) -> None:
        world.connect("named", record("iv_1"))
        world.connect("quiet").error = UnavailableError("down")
        world.connect("used_by_a_hook", record("iv_2"))
        world.named[RUN] = ["named"]
        world.listed = {"quiet": "roboto", "used_by_a_hook": "roboto"}
        shown = ada.get("/run/rows", params=OF_RUN).text
        assert re.findall(r"<b>(\w+)</b>", shown) == ["named", "used_by_a_hook"]
        assert sorted(re.findall(r'data-id="(\w+)"', shown)) == ["iv_1", "iv_2"]
        world.named.clear()
        shown = ada.get("/run/rows", params=OF_RUN).text
        assert "<b>quiet</b>: The platform is unavailable." in shown

    def test_unavailable_platform_is_listed_beside_others(self, ada: TestClient, world: World) -> None:
        world.connect("good", record())
        world.connect("down").error = UnavailableError("https://secret-host.example: s3cret")
        for path, about in (("/run/rows", OF_RUN), ("/rows", {}), ("/run", OF_RUN)):
            shown = ada.get(path, params=about).text
            assert '<li data-state="wrong"><b>down</b>: The platform is unavailable.</li>' in shown
            assert 'data-id="iv_1"' in shown
            assert "secret" not in shown
        facts = ada.get("/facts", params={**ONE, "conn_id": "down"})
        assert facts.status_code == 503
        assert "The platform is unavailable." in facts.text

    def test_queries_are_limited(
        self, ada: TestClient, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(page_app, "MAX_QUERIES", 4)
        monkeypatch.setattr(page_app.runs, "MAX_CONNECTIONS", 2)
        for number in range(9):
            world.connect(f"c{number}")
            world.runs[RunKey("fleet", f"r{number}")] = False
            world.named[RunKey("fleet", f"r{number}")] = [f"c{number}", "c0", "c1"]
        assert ada.get("/rows").status_code == 200
        assert sum(len(platform.asked) for platform in world.platforms.values()) == 4
        for platform in world.platforms.values():
            platform.asked.clear()
        assert ada.get("/run/rows", params=OF_RUN).status_code == 200
        assert sum(len(platform.asked) for platform in world.platforms.values()) == 2

    def test_facts_content(self, ada: TestClient, world: World) -> None:
        steps = ((S.Queued, 1), (S.Processing, 3), (S.Failed, 63))
        world.connect(
            "c", record(steps=steps, detail="exit code 3: no such topic", parameter_values={"file": "a.csv"})
        )
        shown = ada.get("/facts", params=ONE).text
        for words in (
            "exit code 3: no such topic",
            "a.csv",
            "https://platform.example/iv_1",
            "try 1",
            "Failed",
        ):
            assert words in shown
        assert 'data-ended="yes"' in shown

    def test_the_log_is_read_on_from_its_cursor(self, ada: TestClient, world: World) -> None:
        platform = world.connect("c", record())
        platform.pages = {
            None: page_of("one", more=True, last_read="p 1&"),
            "p 1&": page_of("two", last_read="p2"),
        }
        first = ada.get("/log", params=ONE).json()
        assert (first["kept"], first["more"], first["cursor"]) == (True, True, "p 1&")
        second = ada.get("/log", params={**ONE, "cursor": first["cursor"]}).json()
        assert [line["text"] for line in (*first["lines"], *second["lines"])] == ["one", "two"]
        assert (second["more"], second["cursor"]) == (False, "p2")

    def test_long_values_and_lines_are_shortened(
        self, ada: TestClient, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        long = "x" * 100_000
        values = {"text": long} | {f"p{number}": number for number in range(300)}
        platform = world.connect("c", record(parameter_values=values, detail=long, action=long))
        monkeypatch.setattr(page_app, "_LINES", 2)
        platform.pages[None] = page_of("first", long, "last")
        assert len(ada.get("/run/rows", params=OF_RUN).text) < 6000
        shown = ada.get("/facts", params=ONE).text
        assert len(shown) < 60_000
        assert "and 201 more" in shown
        log = ada.get("/log", params=ONE).json()
        assert [len(line["text"]) for line in log["lines"]] == [20_000, 4]
        assert log["cut"]


class TestHostileValues:
    @pytest.mark.parametrize("evil", EVIL)
    def test_values_from_outside_are_escaped(
        self, ada: TestClient, auth: Auth, world: World, evil: str
    ) -> None:
        run = RunKey("fleet", evil)
        world.runs = {run: False}
        world.connect(
            evil,
            record(
                evil, run, evil, action=evil, detail=evil, parameter_values={evil: evil, "list": [evil]},
                steps=((S.Queued, 0), (S.Failed, 2)),
            ),
        ).pages[None] = page_of(evil)  # fmt: skip
        world.named = {run: [evil]}
        about = {"dag_id": "fleet", "run_id": evil}
        texts = {
            path: ada.get(path, params=params)
            for path, params in {
                "/": {}, "/rows": {}, "/run": about, "/run/rows": about,
                "/facts": {**about, "conn_id": evil, "invocation_id": evil},
            }.items()
        }  # fmt: skip
        for path, answer in texts.items():
            assert answer.status_code == 200
            if "<" in evil:
                assert evil not in answer.text
            assert html.unescape(answer.text).count(evil) >= 4
            assert answer.text.count("<script") == (2 if path in ("/", "/run") else 0)
            assert not re.search(r"href=[\"']?javascript", answer.text)
            assert "default-src 'none'" in answer.headers["content-security-policy"]
        log = ada.get("/log", params={**about, "conn_id": evil, "invocation_id": evil})
        assert log.headers["content-type"] == "application/json"
        assert log.headers["x-content-type-options"] == "nosniff"
        assert log.json()["lines"][0]["text"] == evil

    def test_script_url_is_not_a_link(self, ada: TestClient, world: World) -> None:
        world.connect("c", record()).link_base = "javascript:alert(1)//"
        for path in ("/run/rows", "/facts"):
            assert "javascript" not in ada.get(path, params=ONE).text

    def test_secrets_that_airflow_masks_are_masked(self, ada: TestClient, world: World) -> None:
        mask_secret("t0ken-0f-a-connection")
        platform = world.connect(
            "c",
            record(
                action="a t0ken-0f-a-connection", detail="detail t0ken-0f-a-connection",
                steps=((S.Queued, 0), (S.Failed, 2)),
                parameter_values={
                    "password": "unkn0wn", "nested": {"api_key": "unkn0wn", "x": "t0ken-0f-a-connection"},
                },
            ),
        )  # fmt: skip
        platform.pages[None] = page_of("line t0ken-0f-a-connection")
        for path in ("/", "/rows", "/run", "/run/rows", "/facts", "/log"):
            shown = ada.get(path, params=ROUTES[path]).text
            assert "t0ken" not in shown
            assert "unkn0wn" not in shown
        assert "line ***" in ada.get("/log", params=ONE).text

    def test_security_headers(self, ada: TestClient, one: World) -> None:
        for path, about in ROUTES.items():
            headers = ada.get(path, params=about).headers
            assert headers["cache-control"] == "no-store"
            assert headers["x-content-type-options"] == "nosniff"
        policy = ada.get("/").headers["content-security-policy"]
        assert "frame-ancestors 'self'" in policy
        assert "connect-src 'self'" in policy
        assert "unsafe" not in policy

    @pytest.mark.parametrize(
        "params",
        [
            {"run_id": "x" * 251}, {"conn_id": "x" * 251}, {"cursor": "x" * 1025},
            {"invocation_id": ""}, {"invocation_id": "x" * 257},
        ],
        ids=json.dumps,
    )  # fmt: skip
    def test_invalid_parameter_is_rejected_without_echo(
        self, ada: TestClient, one: World, params: dict[str, Any]
    ) -> None:
        answer = ada.get("/log", params={**ONE, **params})
        assert answer.status_code == 422
        assert "x" * 250 not in answer.text
