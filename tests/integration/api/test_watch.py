"""Watch streams: every change once and in order, resumed by event id, extended and shrunk while open."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from airflow_invocations.server.admin import add_token, revoke_token

from ...support.waiting import until
from ..conftest import LocalServer

ENOUGH = httpx.Limits(max_connections=200)
WATCH = "v1/actions/invocations/watch"


class Stream:
    """An open stream, read event by event."""

    def __init__(self, answer: httpx.Response) -> None:
        self._lines = answer.iter_lines()
        self.last_id: int | None = None
        name, data = self.next()
        assert name == "open"
        self.watch_id: str = data["watch_id"]

    def next(self) -> tuple[str, dict[str, Any]]:
        """The next event's name and data; comments (heartbeats) are passed over."""
        fields: dict[str, str] = {}
        for line in self._lines:
            if not line:
                if fields:
                    break
                continue
            name, _, value = line.partition(": ")
            if name:
                fields[name] = value
        assert fields, "the stream ended"
        if "id" in fields:
            self.last_id = int(fields["id"])
        return fields["event"], json.loads(fields["data"])

    def until(self, event: str) -> list[tuple[str, dict[str, Any]]]:
        """Everything up to and with the next event of this name."""
        seen = []
        while not seen or seen[-1][0] != event:
            seen.append(self.next())
        return seen

    def until_status(self, invocation_id: str, status: int) -> list[tuple[str, dict[str, Any]]]:
        seen = []
        while True:
            name, data = self.next()
            seen.append((name, data))
            if name == "status" and (data["invocation_id"], data["status"]) == (invocation_id, status):
                return seen


@pytest.fixture
def watch(server: LocalServer) -> Callable[..., Any]:
    @contextmanager
    def opened(last_event_id: int | None = None, **body: Any) -> Iterator[Stream]:
        headers = {"Authorization": f"Bearer {server.token}"}
        if last_event_id is not None:
            headers["Last-Event-ID"] = str(last_event_id)
        with httpx.stream(
            "POST", f"{server.endpoint}/{WATCH}", json=body, headers=headers, timeout=30
        ) as answer:
            assert answer.status_code == 200, answer.read()
            assert answer.headers["content-type"].startswith("text/event-stream")
            yield Stream(answer)

    return opened


def action(server: LocalServer, command: str, **fields: Any) -> str:
    name = f"watched-{time.time_ns()}"
    body = {"name": name, "container_parameters": {"command": ["sh", "-c", command]}, **fields}
    server.request("POST", "v1/actions", json=body).raise_for_status()
    return name


def invoke(server: LocalServer, name: str, **fields: Any) -> str:
    body = {
        "data_source_id": "__UNSPECIFIED_DATA_SOURCE__", "data_source_type": "Dataset", "input_data": [],
        "invocation_source": "Manual", **fields,
    }  # fmt: skip
    answer = server.request("POST", f"v1/actions/{name}/invoke", json=body).raise_for_status()
    return str(answer.json()["data"]["invocation_id"])


def statuses(seen: list[tuple[str, dict[str, Any]]], invocation_id: str) -> list[int]:
    told = [data for name, data in seen if name == "status"]
    return [data["status"] for data in told if data["invocation_id"] == invocation_id]


def has_ended(stream: Stream) -> bool:
    """Whether a stream has ended; where it goes on, one more event of it is read."""
    try:
        stream.next()
    except (AssertionError, httpx.HTTPError):
        return True
    return False


def change(server: LocalServer, stream: Stream, **body: Any) -> int:
    """Extend or shrink an open stream; how many invocations it then watches."""
    answer = server.request("PATCH", f"{WATCH}/{stream.watch_id}", json=body).raise_for_status()
    return int(answer.json()["data"]["watching"])


def test_each_change_is_told_once_and_in_order(server: LocalServer, watch: Any) -> None:
    name = action(server, "true")
    with watch(action=name) as stream:
        assert stream.until("ready")[-1][0] == "ready"
        invocation_id = invoke(server, name)
        seen = stream.until_status(invocation_id, 5)
    # Not Scheduled (1): a claim makes it Downloading in the same commit, so nobody could ever see the other.
    assert statuses(seen, invocation_id) == [0, 2, 3, 4, 5]
    numbers = [data["number"] for _, data in seen]
    assert numbers == sorted(set(numbers))
    assert stream.last_id == numbers[-1]


def test_missed_events_are_sent_once_after_a_reconnect(server: LocalServer, watch: Any) -> None:
    name = action(server, "sleep 0.3")
    with watch(action=name) as stream:
        stream.until("ready")
        invocation_id = invoke(server, name)
        before = stream.until_status(invocation_id, 3)
    server.request("POST", f"v1/actions/invocations/{invocation_id}/cancel").raise_for_status()
    with watch(last_event_id=stream.last_id, action=name) as again:
        after = again.until_status(invocation_id, 997)
    told = statuses(before, invocation_id) + statuses(after, invocation_id)
    assert told == [0, 2, 3, 997]


def test_without_a_place_to_resume_from_the_present_status_comes_first(
    server: LocalServer, watch: Any
) -> None:
    invocation_id = invoke(server, action(server, "true"))
    with watch(ids=[invocation_id]) as stream:
        seen = stream.until_status(invocation_id, 5)
    assert statuses(seen, invocation_id)[-1] == 5


def test_other_invocations_are_not_told(server: LocalServer, watch: Any) -> None:
    name = action(server, "true")
    mine = invoke(server, name)
    with watch(ids=[mine]) as stream:
        stream.until("ready")
        other = invoke(server, name)
        change(server, stream, add=[mine])
        last = invoke(server, name)
        change(server, stream, add=[last])
        seen = stream.until_status(last, 5)
    assert not statuses(seen, other)


def test_only_the_statuses_asked_for_are_told_live_and_from_the_past(server: LocalServer, watch: Any) -> None:
    name = action(server, "true")
    with watch(action=name, statuses=[5, 998]) as stream:
        begin = stream.until("ready")[-1][1]["number"]
        first = invoke(server, name)
        assert statuses(stream.until_status(first, 5), first) == [5]
    second = invoke(server, name)
    with watch(action=name, statuses=[0], since=begin) as stream:
        seen = stream.until_status(second, 0)
    assert (statuses(seen, first), statuses(seen, second)) == ([0], [0])


def test_a_status_that_there_is_not_is_rejected(server: LocalServer) -> None:
    answer = server.request("POST", WATCH, json={"statuses": [4711]})
    assert answer.status_code == 400
    assert "997 (Cancelled)" in answer.json()["error"]["message"]


def test_ids_join_and_leave_an_open_stream(server: LocalServer, watch: Any) -> None:
    name = action(server, "sleep 0.2")
    with watch(ids=[]) as stream:
        stream.until("ready")
        first = invoke(server, name)
        assert change(server, stream, add=[first]) == 1
        assert statuses(stream.until_status(first, 5), first)[-1] == 5
        assert change(server, stream, remove=[first]) == 0
    gone = server.request("PATCH", f"{WATCH}/wt_unknown", json={"add": [first]})
    assert gone.status_code == 404
    assert gone.json()["error"]["error_code"] == "RobotoNotFoundException"


def test_log_lines_come_before_the_end_and_go_on_at_a_cursor(server: LocalServer, watch: Any) -> None:
    invocation_id = invoke(server, action(server, "for i in 1 2 3; do echo $i; sleep 0.1; done"))
    with watch(ids=[invocation_id], logs={invocation_id: None}) as stream:
        seen = stream.until_status(invocation_id, 5)
        if not any(name == "log" for name, _ in seen):
            seen += stream.until("log")  # it had ended before the stream was opened
    logs = [data for name, data in seen if name == "log"]
    lines = [item["log"] for data in logs for item in data["items"]]
    assert lines == ["1", "2", "3"]
    with watch(ids=[invocation_id], logs={invocation_id: logs[-1]["last_read"]}) as stream:
        assert [name for name, _ in stream.until("ready")].count("log") == 0


def test_requeued_invocation_is_not_reported_as_failed(start_server: Callable[..., LocalServer]) -> None:
    server = start_server("--slots", "1", "--grace", "0.2")
    name = action(server, "sleep 60")
    headers = {"Authorization": f"Bearer {server.token}"}
    with httpx.stream("POST", f"{server.endpoint}/{WATCH}", json={}, headers=headers, timeout=30) as answer:
        stream = Stream(answer)
        stream.until("ready")
        invocation_id = invoke(server, name)
        stream.until_status(invocation_id, 3)
    server.restart()
    headers = {"Authorization": f"Bearer {server.token}", "Last-Event-ID": str(stream.last_id)}
    with httpx.stream("POST", f"{server.endpoint}/{WATCH}", json={}, headers=headers, timeout=30) as answer:
        seen = Stream(answer).until_status(invocation_id, 3)
    assert statuses(seen, invocation_id) == [0, 2, 3]
    assert {data["attempt"] for name, data in seen if name == "status"} == {2}
    server.request("POST", f"v1/actions/invocations/{invocation_id}/cancel").raise_for_status()


def test_many_ids_on_one_stream(server: LocalServer, watch: Any) -> None:
    name = action(server, "true")
    with watch(ids=[f"iv_none_{number}" for number in range(10_000)]) as stream:
        stream.until("ready")
        invocation_id = invoke(server, name)
        change(server, stream, add=[invocation_id])
        assert statuses(stream.until_status(invocation_id, 5), invocation_id)
    too_many = server.request("POST", WATCH, json={"ids": [str(number) for number in range(20_001)]})
    assert too_many.status_code == 400


def test_a_stream_ends_when_the_service_stops(start_server: Callable[..., LocalServer]) -> None:
    server = start_server()
    headers = {"Authorization": f"Bearer {server.token}"}
    with httpx.stream("GET", f"{server.endpoint}/{WATCH}", headers=headers, timeout=30) as answer:
        stream = Stream(answer)
        stream.until("ready")
        began = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - began < 10
        with pytest.raises((AssertionError, httpx.HTTPError)):
            stream.next()


def test_a_log_of_another_organisation_is_not_told(server: LocalServer) -> None:
    invocation_id = invoke(server, action(server, "echo a word of ours"))
    other = add_token(server.data_dir, f"other-{time.time_ns()}", "og_other", "read")
    headers = {"Authorization": f"Bearer {other}"}
    with httpx.stream(
        "GET", f"{server.endpoint}/{WATCH}?logs=true&ids={invocation_id}", headers=headers, timeout=30
    ) as answer:
        assert [name for name, _ in Stream(answer).until("unreadable")] == ["ready", "unreadable"]
    with httpx.stream(
        "POST", f"{server.endpoint}/{WATCH}", json={"ids": []}, headers=headers, timeout=30
    ) as answer:
        stream = Stream(answer)
        stream.until("ready")
        wanted = {"add": [invocation_id], "logs": {invocation_id: None}}
        server.request("PATCH", f"{WATCH}/{stream.watch_id}", json=wanted, headers=headers)
        assert stream.next()[0] == "unreadable"


def test_a_stream_ends_with_the_token_that_opened_it(server: LocalServer) -> None:
    name = action(server, "true")
    user = f"leaves-{time.time_ns()}"
    token = add_token(server.data_dir, user, "og_local", "read")
    headers = {"Authorization": f"Bearer {token}"}
    with httpx.stream("GET", f"{server.endpoint}/{WATCH}", headers=headers, timeout=30) as answer:
        stream = Stream(answer)
        stream.until("ready")
        revoke_token(server.data_dir, user)
        until(lambda: invoke(server, name) and has_ended(stream))


def test_a_stream_of_an_action_ends_with_the_action(server: LocalServer, tmp_path: Path) -> None:
    told, gate = tmp_path / "token", tmp_path / "gate"
    say = f"echo $ROBOTO_API_KEY > {told}.new; mv {told}.new {told}"
    name = action(server, f"{say}; while [ ! -e {gate} ]; do sleep 0.05; done", may_invoke=True)
    invoke(server, name)
    token = until(lambda: told.exists() and told.read_text().strip())
    headers = {"Authorization": f"Bearer {token}"}
    with httpx.stream("GET", f"{server.endpoint}/{WATCH}", headers=headers, timeout=30) as answer:
        stream = Stream(answer)
        stream.until("ready")
        gate.touch()
        until(lambda: has_ended(stream))


def test_watches_and_what_they_name_are_limited(server: LocalServer) -> None:
    token = add_token(server.data_dir, f"many-{time.time_ns()}", "og_local", "read")
    headers = {"Authorization": f"Bearer {token}"}
    url = f"{server.endpoint}/{WATCH}"
    for body in (
        {"ids": ["x" * 65]}, {"logs": {"x" * 65: None}}, {"logs": {"iv_1": "x" * 65}}, {"root": "x" * 65},
        {"action": "x" * 257}, {"statuses": [5] * 65},
        {"logs": {str(number): None for number in range(20_001)}},
    ):  # fmt: skip
        assert httpx.post(url, json=body, headers=headers, timeout=30).status_code == 400, str(body)[:80]
    assert httpx.get(f"{url}?ids={','.join(['a'] * 20_001)}", headers=headers).status_code == 400
    with ExitStack() as streams, httpx.Client(timeout=30, headers=headers, limits=ENOUGH) as client:
        for _ in range(100):
            answer = streams.enter_context(client.stream("GET", url))
            assert answer.status_code == 200
        rejected = client.get(url)
        assert (rejected.status_code, rejected.headers["retry-after"]) == (503, "2")
        assert "at most 100 open watches" in rejected.json()["error"]["message"]
