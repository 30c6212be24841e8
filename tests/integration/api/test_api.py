"""Everything beyond the main job, by the published client where it has a method for it."""

from __future__ import annotations

import datetime
import itertools
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from airflow_invocations.cli.main import main

from ...support.published import actions as published
from ...support.published import exceptions, http, query
from ...support.waiting import until
from ..conftest import LocalServer

TOKEN = (sys.executable, "-m", "airflow_invocations.cli", "token")
CONNECTION = (sys.executable, "-m", "airflow_invocations.cli", "connection")

_numbers = itertools.count(time.time_ns())


@pytest.fixture
def client(server: LocalServer) -> Any:
    return client_of(server)


def client_of(server: LocalServer, token: str | None = None) -> Any:
    decorator = http.BearerTokenDecorator(token=token or server.token)
    return http.RobotoClient(endpoint=server.endpoint, auth_decorator=decorator)


def fresh_name() -> str:
    return f"action-{next(_numbers)}"


def create(client: Any, command: str = "true", **fields: Any) -> Any:
    container = published.ContainerParameters(command=["sh", "-c", command])
    return published.Action.create(
        fresh_name(), container_parameters=container, roboto_client=client, **fields
    )


def invoke(action: Any, **fields: Any) -> Any:
    return action.invoke(invocation_source=published.InvocationSource.Manual, **fields)


class TestActions:
    def test_an_update_makes_a_new_version_and_the_old_one_stays_invocable(self, client: Any) -> None:
        action = create(client, "echo old", short_description="one")
        old = action.digest
        action.update(
            short_description="two",
            container_parameters=published.ContainerParameters(command=["sh", "-c", "echo new"]),
        )
        assert action.digest != old
        assert action.record.short_description == "two"
        before = published.Action.from_name(action.name, digest=old, roboto_client=client)
        assert before.record.short_description == "one"
        for version, line in ((before, "old"), (action, "new")):
            invocation = invoke(version)
            invocation.wait_for_terminal_status(timeout=20, poll_interval=0.05)
            assert [log.log for log in invocation.get_logs()] == [line]
            assert invocation.action.digest == version.digest

    def test_same_content_is_the_same_version(self, client: Any) -> None:
        action = create(client)
        digest = action.digest
        assert action.update(timeout=5).digest != digest
        assert action.update(timeout=None).digest == digest

    def test_metadata_tags_and_parameters_are_changed_by_changesets(self, client: Any) -> None:
        action = create(
            client,
            metadata={"team": "perception", "a": 1, "b": 2},
            tags=["old", "kept"],
            parameters=[published.ActionParameter(name="p", default=1), published.ActionParameter(name="q")],
        )
        changes = published_updates()
        action.update(
            metadata_changeset=changes.MetadataChangeset(
                put_tags=["new"],
                remove_tags=["old"],
                put_fields={"c": 1.5},
                remove_fields=["a"],
            ),
            parameter_changeset=published.ActionParameterChangeset(
                put_parameters=[published.ActionParameter(name="r", required=True)], remove_parameters=["q"]
            ),
        )
        assert action.metadata == {"team": "perception", "b": 2, "c": 1.5}
        assert action.tags == ["kept", "new"]
        assert [parameter.name for parameter in action.parameters] == ["p", "r"]

    def test_accessibility_opens_an_action_to_the_hub(self, client: Any) -> None:
        action = create(client)
        hub = [found["name"] for found in hub_of(client)]
        assert action.name not in hub
        action.set_accessibility(published.Accessibility.ActionHub)
        assert action.accessibility is published.Accessibility.ActionHub
        assert action.published is not None
        assert action.name in [found["name"] for found in hub_of(client)]

    def test_a_deleted_action_is_gone_and_its_invocations_are_not(self, client: Any) -> None:
        action = create(client)
        invocation = invoke(action)
        action.delete()
        with pytest.raises(exceptions.RobotoNotFoundException):
            published.Action.from_name(action.name, roboto_client=client)
        invocation.wait_for_terminal_status(timeout=20, poll_interval=0.05)
        assert invocation.current_status is published.InvocationStatus.Completed

    def test_an_action_inherits_what_it_does_not_say(self, client: Any) -> None:
        parent = create(
            client, "echo $ROBOTO_PARAM_p $MINE", timeout=7,
            parameters=[published.ActionParameter(name="p", default="from-parent")],
        )  # fmt: skip
        child = published.Action.create(
            fresh_name(),
            inherits=parent.record.reference,
            container_parameters=published.ContainerParameters(env_vars={"MINE": "own"}),
            roboto_client=client,
        )
        invocation = invoke(child)
        invocation.wait_for_terminal_status(timeout=20, poll_interval=0.05)
        assert [log.log for log in invocation.get_logs()] == ["from-parent own"]
        assert invocation.timeout == 7


class TestInvocations:
    def test_one_idempotency_id_is_one_invocation_under_50_requests_at_once(
        self, server: LocalServer, client: Any
    ) -> None:
        action = create(client)
        barrier = threading.Barrier(50)

        def ask(_: int) -> str:
            barrier.wait()
            answer = invoke(action, idempotency_id=f"key-{action.name}", parameter_values={"n": 1})
            return str(answer.id)

        with ThreadPoolExecutor(50) as threads:
            ids = set(threads.map(ask, range(50)))
        assert len(ids) == 1
        other = create(client)
        with pytest.raises(exceptions.RobotoConflictException, match="belongs to"):
            invoke(other, idempotency_id=f"key-{action.name}", parameter_values={"n": 1})
        with pytest.raises(exceptions.RobotoConflictException, match="Differences: parameter 'n'"):
            invoke(action, idempotency_id=f"key-{action.name}", parameter_values={"n": 2})

    def test_an_idempotency_id_holds_across_a_restart(self, start_server: Callable[..., LocalServer]) -> None:
        server = start_server("--slots", "0")
        action = create(client_of(server))
        first = invoke(action, idempotency_id="k")
        server.restart()
        again = published.Action.from_name(action.name, roboto_client=client_of(server))
        assert invoke(again, idempotency_id="k").id == first.id

    def test_all_active_ones_can_be_cancelled_at_once(self, start_server: Callable[..., LocalServer]) -> None:
        server = start_server("--slots", "1", "--grace", "0.2")
        client = client_of(server)
        action = create(client, "sleep 60")
        invocations = [invoke(action) for _ in range(5)]
        answer = client.post("v1/actions/invocations/cancel/all", data={}).to_dict(json_path=["data"])
        assert answer == {"success_count": 5, "failure_count": 0, "has_more": False}
        for invocation in invocations:
            invocation.wait_for_terminal_status(timeout=20, poll_interval=0.05)
            assert invocation.current_status is published.InvocationStatus.Cancelled

    def test_a_person_may_move_one_that_nobody_runs(self, start_server: Callable[..., LocalServer]) -> None:
        server = start_server("--slots", "0")
        invocation = invoke(create(client_of(server)))
        steps = [status for status in published.InvocationStatus if 1 <= status <= 5]
        for status in steps:
            invocation.update_status(status, detail=f"now {status}")
        assert [step.status for step in invocation.status_log] == [published.InvocationStatus.Queued, *steps]
        with pytest.raises(exceptions.RobotoInvalidStateTransitionException, match="can't become"):
            invocation.update_status(published.InvocationStatus.Processing)

    def test_image_digest_and_logs_location_are_remembered(self, client: Any) -> None:
        invocation = invoke(create(client))
        invocation.set_container_image_digest("sha256:abc")
        assert invocation.executable.container_image_digest == "sha256:abc"
        invocation.set_logs_location(published.LogsLocation(bucket="b", prefix="p"))
        invocation.wait_for_terminal_status(timeout=20, poll_interval=0.05)

    def test_statistics_count_by_action(self, client: Any) -> None:
        begin = datetime.datetime.now(datetime.UTC)
        good, bad = create(client), create(client, "exit 1")
        for invocation in [invoke(good), invoke(good), invoke(bad)]:
            invocation.wait_for_terminal_status(timeout=20, poll_interval=0.05)
        end = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=1)
        window = {"start_time": begin.isoformat(), "end_time": end.isoformat()}
        data = client.get("v1/actions/invocations/org-stats", query=window).to_dict(json_path=["data"])
        counted = {item["action_name"]: item for item in data["items"]}
        assert counted[good.name]["completed_count"] == 2
        assert counted[bad.name]["fail_count"] == 1

    def test_queries_find_by_status_action_source_and_in_batches(self, client: Any) -> None:
        action = create(client)
        invocations = [invoke(action, invocation_source_id=f"source-{action.name}-{n}") for n in range(7)]
        for invocation in invocations:
            invocation.wait_for_terminal_status(timeout=20, poll_interval=0.05)

        def found(condition: Any, **spec: Any) -> list[str]:
            specification = query.QuerySpecification(condition=condition, limit=3, **spec)
            return [found.id for found in published.Invocation.query(specification, roboto_client=client)]

        def equals(field: str, value: Any) -> Any:
            return query.Condition(field=field, comparator=query.Comparator.Equals, value=value)

        ids = [invocation.id for invocation in invocations]
        mine = equals("provenance.action.name", action.name)
        assert found(mine) == ids[::-1]
        assert found(mine, sort_by="created", sort_direction=query.SortDirection.Ascending) == ids
        batch = query.ConditionGroup(
            operator=query.ConditionOperator.Or,
            conditions=[equals("invocation_id", each) for each in ids[2:5]],
        )
        assert sorted(found(batch)) == sorted(ids[2:5])
        assert found(equals("provenance.source.source_id", f"source-{action.name}-4")) == [ids[4]]
        done = query.ConditionGroup(
            operator=query.ConditionOperator.And, conditions=[mine, equals("last_status", 5)]
        )
        assert len(found(done)) == 7
        with pytest.raises(exceptions.RobotoInvalidRequestException, match="allowed"):
            client.post(
                "v1/actions/invocations/query",
                data={"condition": {"field": "colour", "comparator": "EQUALS", "value": "red"}},
            )

    def test_custom_state_is_remembered_as_a_whole(self, server: LocalServer, client: Any) -> None:
        invocation = invoke(create(client))
        path = f"v1/actions/invocations/{invocation.id}/state"
        assert server.request("GET", path).json() == {"data": {"state": None}}
        server.request("PUT", path, json={"state": "step 3 of 5"}).raise_for_status()
        assert server.request("GET", path).json() == {"data": {"state": "step 3 of 5"}}
        assert server.request("PUT", path, json={"state": "x" * 70_000}).status_code == 400

    def test_an_action_finds_a_token_that_ends_with_it(
        self, server: LocalServer, client: Any, tmp_path: Path
    ) -> None:
        gate = tmp_path / "gate"
        command = f"echo $ROBOTO_API_KEY; while [ ! -e {gate} ]; do sleep 0.05; done"
        invocation = invoke(create(client, command))
        token = until(lambda: [log.log for log in invocation.get_logs()])[0]
        headers = {"Authorization": f"Bearer {token}"}
        own = f"{server.endpoint}/v1/actions/invocations/{invocation.id}"
        assert token != server.token
        assert httpx.get(own, headers=headers).status_code == 200
        assert (
            httpx.post(f"{server.endpoint}/v1/actions", json={"name": "x"}, headers=headers).status_code
            == 403
        )
        gate.touch()
        invocation.wait_for_terminal_status(timeout=20, poll_interval=0.05)
        assert until(lambda: httpx.get(own, headers=headers).status_code == 401)


class TestTrees:
    @pytest.fixture
    def tree(self, client: Any) -> list[Any]:
        """A root, its child and its grandchild, all active."""
        action = create(client, "sleep 60")
        root = invoke(action)
        child = invoke(action, invocation_source_id=root.id)
        return [root, child, invoke(action, invocation_source_id=child.id)]

    def test_tree_is_depth_first(self, server: LocalServer, tree: list[Any]) -> None:
        path = f"v1/actions/invocations/{tree[0].id}/tree"
        items = server.request("GET", path).raise_for_status().json()["data"]["items"]
        assert [(item["depth"], item["invocation"]["invocation_id"]) for item in items] == [
            (depth, invocation.id) for depth, invocation in enumerate(tree)
        ]
        assert server.request("GET", "v1/actions/invocations/iv_unknown/tree").status_code == 404

    def test_cancel_cascades_on_request_only(self, server: LocalServer, tree: list[Any]) -> None:
        root, child, grandchild = tree
        child.cancel()
        until(lambda: child.refresh().current_status is published.InvocationStatus.Cancelled)
        assert not root.refresh().reached_terminal_status
        assert not grandchild.refresh().reached_terminal_status
        path = f"v1/actions/invocations/{root.id}/cancel"
        server.request("POST", path, params={"cascade": "true"}).raise_for_status()
        for invocation in (root, grandchild):
            until(lambda one=invocation: one.refresh().reached_terminal_status)
            assert invocation.current_status is published.InvocationStatus.Cancelled

    def test_events_by_attempt(self, server: LocalServer, client: Any) -> None:
        invocation = invoke(create(client, "echo no; exit 3"))
        invocation.wait_for_terminal_status(timeout=20, poll_interval=0.05)
        path = f"v1/actions/invocations/{invocation.id}/events"
        events = server.request("GET", path).raise_for_status().json()["data"]["items"]
        assert [event["status"] for event in events][:1] == [0]
        last = events[-1]
        assert (last["status"], last["attempt"], last["exit_code"]) == (998, 1, 3)
        later = server.request("GET", path, params={"after": events[0]["number"]}).json()["data"]["items"]
        assert later == events[1:]
        for attempt, expected in ((1, events), (2, [])):
            found = server.request("GET", path, params={"attempt": attempt}).json()["data"]["items"]
            assert found == expected

    def test_watch_of_a_tree_by_its_root(self, server: LocalServer, client: Any, tree: list[Any]) -> None:
        invoke(create(client))  # of another tree
        url = f"{server.endpoint}/v1/actions/invocations/watch"
        headers = {"Authorization": f"Bearer {server.token}", "Last-Event-ID": "0"}
        with httpx.stream("GET", url, params={"root": tree[0].id}, headers=headers) as response:
            seen: set[str] = set()
            for line in response.iter_lines():
                if line.startswith("data: {") and "invocation_id" in line:
                    seen.add(json.loads(line[6:])["invocation_id"])
                if line == "event: ready":
                    break
        assert seen == {invocation.id for invocation in tree}

    def test_commands_show_events_and_tree(
        self, server: LocalServer, tree: list[Any], capsys: pytest.CaptureFixture[str]
    ) -> None:
        def printed(*arguments: str) -> str:
            assert main([*arguments, "--data-dir", str(server.data_dir)]) == 0
            return capsys.readouterr().out

        header, *lines = printed("tree", tree[0].id).splitlines()
        assert header.split() == ["ACTION", "INVOCATION_ID", "STATUS", "CREATED", "DETAIL"]
        assert [line.split()[1] for line in lines] == [invocation.id for invocation in tree]
        assert [len(line) - len(line.lstrip()) for line in lines] == [0, 2, 4]
        assert [item["depth"] for item in json.loads(printed("tree", tree[0].id, "--json"))] == [0, 1, 2]
        header, first, *_ = printed("events", tree[0].id).splitlines()
        assert header.split() == ["ATTEMPT", "STATUS", "TIMESTAMP", "EXIT_CODE", "DETAIL"]
        assert first.split()[:2] == ["1", "Queued"]
        assert main(["tree", "iv_unknown", "--data-dir", str(server.data_dir)]) == 1
        assert "iv_unknown" in capsys.readouterr().err

    def test_list_command_shows_roots_in_a_period(
        self, server: LocalServer, tree: list[Any], capsys: pytest.CaptureFixture[str]
    ) -> None:
        def listed(*options: str) -> list[str]:
            assert main(["list", "--data-dir", str(server.data_dir), "--json", *options]) == 0
            return [item["invocation_id"] for item in json.loads(capsys.readouterr().out)]

        root, *children = (invocation.id for invocation in tree)
        created = tree[0].created
        assert listed("--limit", "1") == [root]
        assert not {*children} & {*listed()}
        assert listed("--since", created.isoformat(), "--limit", "1") == [root]
        later = (created + datetime.timedelta(microseconds=1)).isoformat()
        assert root not in listed("--since", later)
        assert root not in listed("--until", created.isoformat())
        assert main(["list", "--data-dir", str(server.data_dir), "--limit", "1"]) == 0
        assert capsys.readouterr().out.splitlines()[1].split()[1] == root
        with pytest.raises(SystemExit):
            main(["list", "--since", "yesterday"])
        assert "'yesterday' is not a time" in capsys.readouterr().err

    def test_watch_command_prints_changes_until_the_tree_has_ended(
        self, server: LocalServer, client: Any, tree: list[Any], capsys: pytest.CaptureFixture[str]
    ) -> None:
        invoke(create(client))  # of another tree
        watch = [
            sys.executable,
            "-m",
            "airflow_invocations.cli",
            "watch",
            "--data-dir",
            str(server.data_dir),
        ]
        with subprocess.Popen([*watch, tree[0].id], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            first = [process.stdout.readline().split()[1] for _ in tree]
            path = f"v1/actions/invocations/{tree[0].id}/cancel"
            server.request("POST", path, params={"cascade": "true"}).raise_for_status()
            changes = [line.split() for line in process.stdout]
            assert process.wait(timeout=60) == 0
        assert first == [invocation.id for invocation in tree]
        assert {words[1] for words in changes if words[3] == "Cancelled"} == {*first}
        assert main(["watch", "--data-dir", str(server.data_dir), tree[1].id]) == 1
        assert f"was started by {tree[0].id}; watch that one" in capsys.readouterr().err


class TestTokens:
    @staticmethod
    def command(server: LocalServer, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*TOKEN, "--data-dir", str(server.data_dir), *arguments],
            capture_output=True,
            text=True,
            check=False,
        )

    def test_tokens_are_added_listed_used_and_revoked_while_the_service_runs(
        self, server: LocalServer
    ) -> None:
        name = f"reader-{next(_numbers)}"
        token = self.command(server, "add", name, "--role", "read").stdout.strip()
        listed = self.command(server, "list", "--json").stdout
        assert {"name": name, "org_id": "og_local", "role": "read"}.items() <= next(
            one for one in json.loads(listed) if one["name"] == name
        ).items()
        assert token not in listed
        assert token.encode() not in b"".join(
            path.read_bytes() for path in server.data_dir.glob("server.db*")
        )
        reader = client_of(server, token)
        assert list(published.Action.query(roboto_client=reader)) is not None
        with pytest.raises(exceptions.RobotoUnauthorizedException, match="needs the role admin"):
            create(reader)
        twice = self.command(server, "add", name)
        assert (twice.returncode, twice.stdout, twice.stderr.count("\n")) == (1, "", 1)
        former, token = token, self.command(server, "rotate", name).stdout.strip()
        with pytest.raises(exceptions.RobotoUnauthorizedException, match="is unknown"):
            list(published.Action.query(roboto_client=client_of(server, former)))
        reader = client_of(server, token)
        assert list(published.Action.query(roboto_client=reader)) is not None
        assert self.command(server, "rotate", "no-such-token").returncode == 1
        assert self.command(server, "revoke", name).returncode == 0
        with pytest.raises(exceptions.RobotoUnauthorizedException, match="is unknown"):
            list(published.Action.query(roboto_client=reader))
        assert self.command(server, "revoke", name).returncode == 1

    @pytest.mark.parametrize("name", ["", " ", "two words", "a" * 65, "-x", "line\nfeed"])
    def test_a_name_that_cannot_be_one_is_rejected(self, server: LocalServer, name: str) -> None:
        rejected = self.command(server, "add", "--", name)
        assert (rejected.returncode, rejected.stdout) == (1, "")
        assert "is not a valid token name" in rejected.stderr

    def test_the_line_of_a_connection_is_printed_whole_or_not_at_all(self, server: LocalServer) -> None:
        name = f"airflow-{next(_numbers)}"
        command = [*CONNECTION, "--data-dir", str(server.data_dir), "--name", name]

        def run(*options: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run([*command, *options], capture_output=True, text=True, check=False)

        first, second, third = run(), run(), run("--replace")
        assert (second.returncode, second.stdout) == (1, "")
        assert "already" in second.stderr
        port = server.endpoint.rpartition(":")[2]
        for printed in (first, third):
            line = rf"export AIRFLOW_CONN_ROBOTO_DEFAULT='roboto://:([\w-]+)@127\.0\.0\.1:{port}/http'\n"
            assert re.fullmatch(line, printed.stdout), printed.stderr
        token = third.stdout.partition("//:")[2].partition("@")[0]
        assert list(published.Action.query(roboto_client=client_of(server, token))) is not None
        away = subprocess.run(
            [*CONNECTION, "--data-dir", "nowhere"], capture_output=True, text=True, check=False
        )
        assert (away.returncode, away.stdout) == (1, "")
        assert "no server is running on nowhere" in away.stderr

    def test_organisations_do_not_see_one_another(self, server: LocalServer, client: Any) -> None:
        name = f"other-{next(_numbers)}"
        token = self.command(server, "add", name, "--role", "admin", "--org", "og_other").stdout.strip()
        other = client_of(server, token)
        mine, theirs = create(client), create(other)
        assert (mine.org_id, theirs.org_id) == ("og_local", "og_other")
        with pytest.raises(exceptions.RobotoNotFoundException):
            published.Action.from_name(mine.name, roboto_client=other)
        invocation = invoke(mine)
        with pytest.raises(exceptions.RobotoNotFoundException):
            published.Invocation.from_id(invocation.id, roboto_client=other)
        self.command(server, "revoke", name)

    def test_a_folder_that_is_none_is_one_clear_line(self, tmp_path: Any) -> None:
        done = subprocess.run(
            [*TOKEN, "--data-dir", str(tmp_path), "list"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1
        assert done.stderr.startswith(f"invocations token: {tmp_path} is not a data folder")


def test_probes_and_metrics_need_no_token(server: LocalServer, client: Any) -> None:
    invoke(create(client, "echo hello")).wait_for_terminal_status(timeout=20, poll_interval=0.05)
    assert httpx.get(f"{server.endpoint}/healthz").text == "ok\n"
    assert httpx.get(f"{server.endpoint}/readyz").text == "ok\n"
    text = httpx.get(f"{server.endpoint}/metrics").text
    for sample in (
        'invocations_http_requests_total{method="POST",route="/v1/actions/{name}/invoke",status="200"}',
        'invocations{status="Completed"}',
        "invocations_queue_seconds_count",
        'invocations_run_seconds_count{status="Completed"}',
        "invocations_open_watches",
        "invocations_log_bytes_total",
    ):
        assert sample in text


def hub_of(client: Any) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = client.post("v1/actions/query/actionhub", data={}).to_dict(
        json_path=["data"]
    )["items"]
    return items


def published_updates() -> Any:
    from roboto import updates

    return updates
